"""Rows of `details.py`: `dareu_paper` with one detail of the paper switched back."""

from dareu_jax.registry import METHODS
from dareu_jax.unlearning.presets import PAPER

FRESH = {"dareu.reuse_retain": False}
LONGEST = {"reward.slices_of": "longest"}
ALTERNATE = {"dareu.retain_step": "alternate"}
WHOLE = {"dareu.minibatches": 1}
ROWS = {
    "paper_fresh_retain": ("a fresh retain batch for every update", FRESH),
    "paper_longest": ("slices of the longest answer", LONGEST),
    "paper_alternate": ("retain steps of their own, one shared optimiser", ALTERNATE),
    "paper_separate": (
        "retain steps of their own, with moments of their own",
        {"dareu.retain_step": "separate"},
    ),
    "paper_within_count": (
        "retain steps of their own, half as many of both",
        {**ALTERNATE, "dareu.updates_per_batch": 2},
    ),
    "paper_whole_batch": ("one update a pass", WHOLE),
    "paper_minibatches_4": ("four updates a pass", {"dareu.minibatches": 4}),
    "paper_none": (
        "all four switched back",
        {**FRESH, **LONGEST, **ALTERNATE, **WHOLE},
    ),
    "paper_lambda_1": ("lambda_dis 1", {"dareu.lambda_dis": 1.0}),
    "paper_lambda_3": ("lambda_dis 3", {"dareu.lambda_dis": 3.0}),
    "paper_gamma": ("gamma .99", {"dareu.gamma": 0.99}),
    "paper_value_head": (
        "no gradient of the value head into the trunk",
        {"dareu.value_gradient": "head"},
    ),
}
for _name, (_about, _changes) in ROWS.items():
    METHODS.variant(_name, _about, of="dareu", preset={**PAPER, **_changes})
