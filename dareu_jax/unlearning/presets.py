"""DareU's named variants: what each sets over the configuration."""

import operator
from typing import Any

from dareu_jax.config import RunConfig, with_overrides
from dareu_jax.errors import UserError
from dareu_jax.registry import METHODS

PAPER: dict[str, Any] = {
    "reward.shape": "paper",
    "reward.prior": "none",
    "reward.combine": "sum",
    "reward.attribution_weight": 1.0,
    "reward.owner_score": "own",
    "reward.keep_echo": True,
    "dareu.actions": "sampled",
    "dareu.prefix_share": 0.0,
    "dareu.policy_weight": 1.0,
    "dareu.kl_anchor": "behaviour",
    "dareu.kl_direction": "reverse",
    "dareu.kl_in": "reward",
    "dareu.kl_estimator": "sampled",
    "dareu.kl_coef": 0.1,
    "dareu.temperature": 0.8,
    "dareu.samples_per_prompt": 1,
    "dareu.advantage": "gae",
    "dareu.gae_lambda": 1.0,
    "dareu.whiten": True,
    "dareu.old_policy": "per_data_epoch",
    "dareu.reuse_retain": True,
    "dareu.retain_step": "joint",
    "dareu.retain_updates": 1,
    "dareu.minibatches": 2,
    "reward.slices_of": "answer",
}
VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("dareu_paper", "DareU with the paper's reward and KL, methods 1.4", PAPER),
    (
        "dareu_echo",
        "control: dareu, attribution that reads words of the prompt too",
        {"reward.keep_echo": True},
    ),
    (
        "prior_only",
        "dareu without attribution: the counterfactual prior",
        {"reward.attribution_weight": 0.0},
    ),
    (
        "dareu_shuffled",
        "control: dareu, attribution with shuffled owners",
        {"reward.shuffle_owners": True},
    ),
    (
        "dareu_constant",
        "control: dareu with a reward of 0 for every token",
        {
            "reward.attribution_weight": 0.0,
            "reward.prior": "none",
            "reward.combine": "sum",
        },
    ),
    (
        "anchor_only",
        "control: dareu without PPO: KL to the anchor on its own answers, distillation",
        {"dareu.policy_weight": 0.0, "dareu.kl_in": "loss"},
    ),
    (
        "dareu_noise",
        "control: dareu, attribution right about half of its labels (.49, table 18)",
        {"reward.label_noise": 0.51},
    ),
    (
        "dareu_grpo",
        "dareu with GRPO's group advantage: no value head, four answers to a prompt",
        {
            "dareu.actions": "sampled",
            "dareu.advantage": "group",
            "dareu.samples_per_prompt": 4,
        },
    ),
)
for _name, _about, _preset in VARIANTS:
    METHODS.variant(_name, _about, of="dareu", preset=_preset)
INDEX = "decides how the reward index is built, and all rows of a run share that index"
OF_THE_RUN = {
    "reward.kernel": INDEX,
    "reward.margin": INDEX,
    "dareu.base_path": "names the base, and all rows of a run share that model",
}
"""What no row sets for itself, and why."""


def method_config(cfg: RunConfig, name: str) -> RunConfig:
    """Return the configuration of one row: its preset, then ``overrides.<name>``.

    Raises:
      UserError: there is no such method, or a key is not the row's to set.
    """
    entry, own = METHODS.get(name), cfg.overrides.get(name, {})
    where = f"overrides.{name}"
    for key in own:
        if key.split(".")[0] not in entry.sections:
            raise UserError(
                f"{where}: {_why_not(name, key)}; a row of {name} can set keys of "
                f"{', '.join(entry.sections)}"
            )
    row = with_overrides(cfg, {**entry.preset, **own}, where)
    for key, reason in OF_THE_RUN.items():
        value = operator.attrgetter(key)
        if value(row) != value(cfg):
            raise UserError(f"{where}: {key} {reason}; set {key} for the whole run")
    return row


def _why_not(name: str, key: str) -> str:
    """Return why a row of method ``name`` cannot set ``key``."""
    section = key.split(".")[0]
    if any(section in METHODS.get(other).sections for other in METHODS.names()):
        return f"{name} does not read {key}"
    return f"{key} is the same for every row of a run"
