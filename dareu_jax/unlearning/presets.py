"""DareU's named variants: what each sets over the configuration."""

from typing import Any

from dareu_jax.config import RunConfig, with_overrides
from dareu_jax.errors import UserError
from dareu_jax.registry import METHODS
from dareu_jax.unlearning.dareu import make_dareu

PAPER: dict[str, Any] = {
    "reward.shape": "paper",
    "reward.prior": "none",
    "reward.combine": "sum",
    "reward.attribution_weight": 1.0,
    "reward.owner_score": "own",
    "dareu.kl_anchor": "behaviour",
    "dareu.kl_in": "reward",
    "dareu.kl_estimator": "sampled",
    "dareu.kl_coef": 0.1,
    "dareu.temperature": 0.8,
    "dareu.samples_per_prompt": 1,
    "dareu.gae_lambda": 1.0,
    "dareu.whiten": True,
    "dareu.old_policy": "per_data_epoch",
}
PRESETS: dict[str, dict[str, Any]] = {
    "dareu_paper": PAPER,
    "prior_only": {"reward.attribution_weight": 0.0},
    "dareu_shuffled": {"reward.shuffle_owners": True},
}
OF_A_ROW = ("dareu", "reward", "guards", "grad_diff", "npo")
METHODS.register("dareu_paper", "DareU with the paper's reward and KL, methods 1.4")(
    make_dareu
)
METHODS.register("prior_only", "dareu without attribution: the counterfactual prior")(
    make_dareu
)
METHODS.register("dareu_shuffled", "control: dareu, attribution with shuffled owners")(
    make_dareu
)


def method_config(cfg: RunConfig, name: str) -> RunConfig:
    """Returns the configuration of one row: its preset, then ``overrides.<name>``."""
    METHODS.get(name)
    own = cfg.overrides.get(name, {})
    for key in own:
        if key.split(".")[0] not in OF_A_ROW or key == "reward.kernel":
            raise UserError(
                f"overrides.{name}: {key} is the same for every row of a run; a row "
                f"can set keys of {', '.join(OF_A_ROW)}"
            )
    changes = {**PRESETS.get(name, {}), **own}
    return with_overrides(cfg, changes, f"overrides.{name}")
