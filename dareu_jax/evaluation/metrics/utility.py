"""Model utility of TOFU: one number for what a model should keep."""

from collections.abc import Mapping

import numpy as np

from dareu_jax.evaluation.metrics.metric import declare_each

Array = np.ndarray
EPSILON = 1e-10
TERMS = (
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_Truth_Ratio",
    "ra_Q_A_Prob_normalised",
    "ra_Q_A_ROUGE",
    "ra_Truth_Ratio",
    "wf_Q_A_Prob_normalised",
    "wf_Q_A_ROUGE",
    "wf_Truth_Ratio",
)
"""Open-unlearning's names of the nine; ra: real authors, wf: world facts."""

_CHOSEN = "Mean probability of the right answer among the four given, on questions"
_UTILITY = (
    "Harmonic mean of probability, ROUGE and truth ratio on retain rows, real authors "
    "and world facts."
)
declare_each(
    [
        ("model_utility", "model utility", "higher", _UTILITY),
        *(
            (f"{name}_probability", f"{spelt} prob", "higher", f"{_CHOSEN} about {on}.")
            for name, spelt, on in (
                ("real_authors", "real authors", "real authors"),
                ("world_facts", "world facts", "the world"),
            )
        ),
    ],
    of=("log",),
)


def model_utility(terms: Mapping[str, float]) -> float:
    """Return harmonic mean ``9 / sum_i 1 / x_i`` of the nine `TERMS`; 0 if any is 0.

    Maini et al. 2024 (arXiv 2401.06121).

    Raises:
      ValueError: a term is missing, or lies outside [0, 1].
    """
    if missing := [name for name in TERMS if name not in terms]:
        raise ValueError(f"model utility needs {', '.join(missing)}")
    values = [float(terms[name]) for name in TERMS]
    for name, value in zip(TERMS, values, strict=True):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} = {value} is outside [0, 1]")
    if min(values) == 0.0:
        return 0.0
    return len(values) / sum(1.0 / value for value in values)


def normalised_probability(right: Array, wrong: Array) -> Array:
    """Return ``right / (right + sum_j wrong_j + 1e-10)``, ``[N]``.

    Args:
      right: ``[N]``, wrong: ``[N, K]`` length-normalised probabilities.
    """
    return right / (right + wrong.sum(axis=1) + EPSILON)
