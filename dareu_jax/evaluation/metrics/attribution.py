"""Attribution of a model's own answers, and their likelihood under the retrained one.

These metrics look at the model's own greedy answers to the forget prompts.
"""

import math
import operator

from dareu_jax.evaluation.metrics.metric import Metric, declare

_MEAN = "Mean attribution of the answers on the forget prompts to the forget owners"
for _judge, _who, _in_short in (
    ("reward", "the classifier that served as reward", ""),
    (
        "unseen",
        "an independent classifier that no method trained against",
        "attribution to the forget owners, unseen classifier",
    ),
):
    declare(
        Metric(
            name=f"attribution_{_judge}",
            label=f"attribution ({_judge})",
            direction="lower",
            about=f"{_MEAN}, by {_who}.",
            compute=operator.methodcaller("attribution", f"attribution_{_judge}"),
            group="attribution",
            in_short=_in_short,
        )
    )
declare(
    Metric(
        name="retrained_likelihood",
        label="retrained loglik",
        direction="higher",
        low=-math.inf,
        high=0.0,
        about="Mean log-likelihood per token of the answers on the forget prompts "
        "under the retrained model.",
        compute=lambda judged: judged.retrained_logps(),
        group="attribution",
    )
)
