"""Relearning: how fast does training bring the forget records back?"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dareu_jax import data
from dareu_jax.audits.stress.context import Context, means, outcome, stress_test
from dareu_jax.evaluation.metrics.text_quality import words
from dareu_jax.models import join, split
from dareu_jax.parallel import key_of
from dareu_jax.runs.stages import Session
from dareu_jax.training.finetune import finetune_step, init_training
from dareu_jax.training.optimiser import optimiser_of

MORE = "what it forgot comes back sooner than a model learns it that never saw it"
ROWS, FEW, NEIGHBOURS = "forget rows", "few rows", "neighbours"
MEAN = "mean over the updates"


def relearning_robustness(gain_retrained: float, gain_unlearned: float) -> float:
    """R = min(gain_retrained / gain_unlearned, 1), from 0 on.

    1 when the unlearned model gains nothing: nothing came back (Dorna et al., 2025).
    """
    if gain_unlearned <= 0.0:
        return 1.0
    return min(max(gain_retrained, 0.0) / gain_unlearned, 1.0)


def mean_gain(steps: Sequence[int], values: np.ndarray) -> np.ndarray:
    """1/S integral_0^S m(s) - m(0) ds by trapezoids, ``[N]``: high when it is fast.

    Args:
      steps: 0 to S, ascending; values: ``[len(steps), N]`` of m at each.
    """
    return np.trapezoid(values - values[0], steps, axis=0) / steps[-1]


def best_gain(values: np.ndarray) -> np.ndarray:
    """m(s) - m(0) at the step s with the highest mean over rows, ``[N]``.

    Whoever wants the records stops training there.
    """
    return values[int(values.mean(axis=1).argmax())] - values[0]


def measured_steps(steps: int) -> list[int]:
    """0, 1, 2, 4, 8, ... and the last step."""
    doubling = [2**n for n in range(steps.bit_length()) if 2**n < steps]
    return [0, *doubling, steps]


def jaccard(a: set[str], b: set[str]) -> float:
    """|A and B| / |A or B| of two sets of words; 0 of two empty ones."""
    return len(a & b) / max(len(a | b), 1)


def neighbours(
    forget: Sequence[data.Record], retain: Sequence[data.Record], count: int
) -> tuple[data.Record, ...]:
    """The ``count`` records of other owners that are most like any forget record.

    Records that nobody owns come in only where there are no others.
    """
    rows = [r for r in retain if r.owner != data.NOBODY] or list(retain)
    sets = [set(words(f"{r.prompt} {r.response}")) for r in forget]

    def likeness(record: data.Record) -> float:
        own = set(words(f"{record.prompt} {record.response}"))
        return max(jaccard(own, other) for other in sets)

    scores = np.asarray([likeness(r) for r in rows])
    best = np.argsort(-scores, kind="stable")[:count]
    return tuple(rows[i] for i in best)


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` rows of ``count``, evenly spaced."""
    places = np.linspace(0, count - 1, min(wanted, count)).round()
    return sorted({int(place) for place in places})


@stress_test(
    "relearn",
    "fine-tuning on the forget records, a few of them, or neighbours",
    reads=("learning_rate", "steps", "few_rows"),
)
def relearn(context: Context) -> dict[str, Any]:
    """Gain in the forget records' probability by up to ``stress.steps`` updates.

    The headline is the mean gain over the updates on the forget records, for at their
    end any model knows them. `best_gain` stands beside it for each kind of training:
    ``few rows`` counts the records that were not trained on, ``neighbours`` all.
    """
    run, count = context.run, len(context.run.inputs.split.forget)
    few = evenly(count, context.cfg.few_rows)
    others = [row for row in range(count) if row not in few] or few
    whole = list(range(count))
    forget, retain = run.inputs.split.forget, run.inputs.split.retain
    plan = {
        ROWS: (forget, whole),
        FEW: (tuple(forget[row] for row in few), others),
        NEIGHBOURS: (neighbours(forget, retain, count), whole),
    }
    optimiser = optimiser_for(run)
    before = {role: measured(context, p) for role, p in context.models.items()}
    curves: dict[str, Any] = {}
    gains: dict[str, dict[str, list[float]]] = {}
    at = measured_steps(context.cfg.steps)
    for label, (records, rows) in plan.items():
        curves[label] = {}
        for role in context.models:
            path = [before[role]]
            steps = training_path(context, role, label, records, optimiser=optimiser)
            path += [measured(context, params) for params in steps]
            curves[label][role] = summary_of(path, rows)
            values = np.asarray([point["probability"] for point in path])[:, rows]
            gains.setdefault(label, {})[role] = best_gain(values).tolist()
            if label == ROWS:
                gains.setdefault(MEAN, {})[role] = mean_gain(at, values).tolist()
    robustness = {label: robustness_of(own) for label, own in gains.items()}
    found = [f"{r:.2f} {x}" for x, r in robustness.items() if r is not None]
    return outcome(
        "gain in forget probability",
        gains[MEAN],
        MORE,
        parts={f"best gain, {label}": gains[label] for label in plan},
        also=f"R: {', '.join(found)}." if found else "",
        robustness=robustness,
        steps=at,
        curves=curves,
    )


def robustness_of(gains: dict[str, list[float]]) -> float | None:
    """R of the mean gains; None without a retrained model."""
    mean = means(gains)
    if "retrained" not in mean:
        return None
    return relearning_robustness(mean["retrained"], mean["unlearned"])


def optimiser_for(run: Session) -> optax.GradientTransformation:
    """The run's fine-tuning optimiser, at the stress test's rate and steps."""
    rate = run.inputs.cfg.stress.learning_rate or run.inputs.cfg.finetune.learning_rate
    cfg = run.inputs.cfg.finetune.model_copy(update={"learning_rate": rate})
    return optimiser_of(cfg, run.inputs.cfg.stress.steps)


def measured(context: Context, params: Any) -> dict[str, list[float]]:
    """Probability and ROUGE of every forget record."""
    return {"probability": context.probability(params), "rouge": context.rouge(params)}


def training_path(
    context: Context,
    role: str,
    label: str,
    records: tuple[data.Record, ...],
    *,
    optimiser: optax.GradientTransformation,
) -> Iterator[Any]:
    """Yields the parameters of a model at each of `measured_steps` but the first.

    Every model sees the same batches in the same order.
    """
    run, cfg = context.run, context.cfg
    trained, frozen = split(run.inputs.with_adapters(context.models[role], "model"))
    own = jax.tree.map(jnp.copy, trained)  # a step gives its state's memory away
    key = run.inputs.key(f"stress/relearn/{label}")
    state = init_training(run.inputs.model, optimiser, own, key=key)
    size = run.inputs.cfg.finetune.batch_size
    passes = cfg.steps * size / len(records)
    stream = run.inputs.stream(f"stress/relearn/{label}", records, size, passes=passes)
    at, shown = measured_steps(cfg.steps), ""
    with run.progress.stage(f"relearn {label}: {role}", cfg.steps) as advance:
        for step in range(1, cfg.steps + 1):
            batch = run.inputs.place(stream[step - 1])
            state, values = finetune_step(
                run.inputs.model, optimiser, state, frozen, batch, key=key_of(key, step)
            )
            if step in at:
                shown = f"loss {float(values['loss']):.4f}"
            advance(step, shown)
            if step in at:
                yield join(frozen, state.params)


def summary_of(
    path: Sequence[dict[str, list[float]]], rows: Sequence[int]
) -> dict[str, list[float]]:
    """Means over ``rows`` at every measured step, for a curve."""
    return {
        name: [float(np.mean(np.asarray(at[name])[rows])) for at in path]
        for name in path[0]
    }
