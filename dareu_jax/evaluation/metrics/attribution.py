"""Attribution of a model's own answers, and their likelihood under the retrained one.

These metrics look at the model's own greedy answers to the forget prompts.
"""

import math

from dareu_jax.evaluation.metrics.metric import Metric, declare

_MEAN = "Mean attribution of the answers on the forget prompts to the forget owners"
declare(
    Metric(
        name="attribution_reward",
        label="attribution (reward)",
        direction="lower",
        about=f"{_MEAN}, by the classifier that served as reward.",
        compute=lambda judged: judged.attribution("attribution_reward"),
        group="attribution",
    )
)
declare(
    Metric(
        name="attribution_unseen",
        label="attribution (unseen)",
        direction="lower",
        about=f"{_MEAN}, by an independent classifier that no method trained against.",
        compute=lambda judged: judged.attribution("attribution_unseen"),
        group="attribution",
        in_short="attribution to the forget owners, unseen classifier",
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
