"""Every rule that stops unlearning, how long it waits, and what a resume keeps."""

import pytest

from dareu_jax.config import GuardConfig
from dareu_jax.training.guards import Guards, violations

OFF = dict.fromkeys(
    ("kl_budget", "utility_floor", "collapse_share", "min_length", "max_length")
)
FINE = {
    "kl_reference": 0.1,
    "retain_accuracy": 0.9,
    "collapse_share": 0.0,
    "length_ratio": 1.0,
}
# rule, its key, the limit, the metric, a value on the limit, a value beyond, side
RULES = [
    ("kl_budget", "kl_budget", 0.5, "kl_reference", 0.5, 0.75, "above"),
    ("utility_floor", "utility_floor", 0.5, "retain_accuracy", 0.5, 0.25, "below"),
    ("collapse", "collapse_share", 0.5, "collapse_share", 0.5, 0.625, "above"),
    ("too_short", "min_length", 0.25, "length_ratio", 0.25, 0.125, "below"),
    ("too_long", "max_length", 3.0, "length_ratio", 3.0, 3.5, "above"),
]


def config(patience=1, **limits):
    return GuardConfig(**{**OFF, **limits}, patience=patience)


@pytest.mark.parametrize(
    ("rule", "key", "limit", "metric", "edge", "beyond", "side"), RULES
)
def test_a_rule_stops_beyond_its_limit_and_says_why(
    rule, key, limit, metric, edge, beyond, side
):
    guards = Guards(config(**{key: limit}))
    assert guards.check(FINE) is None
    assert guards.check({**FINE, metric: edge}) is None
    reason = guards.check({**FINE, metric: beyond})
    assert reason == f"{rule}: {metric} {beyond:.3g} {side} {limit:g}"


def test_no_limit_is_no_rule():
    wild = {name: 1e9 for name in FINE}
    assert violations(config(), wild) == {}
    assert violations(config(), {name: -1e9 for name in FINE}) == {}


def test_metrics_a_method_does_not_report_are_not_judged():
    limits = {key: limit for _, key, limit, *_ in RULES}
    assert violations(config(**limits), {"loss": 1e9}) == {}


def test_all_broken_rules_are_found_at_once():
    cfg = config(kl_budget=0.5, utility_floor=0.5, collapse_share=0.5)
    bad = {"kl_reference": 2.0, "retain_accuracy": 0.1, "collapse_share": 0.2}
    assert set(violations(cfg, bad)) == {"kl_budget", "utility_floor"}


def test_patience_counts_violations_in_a_row():
    guards = Guards(config(patience=3, collapse_share=0.5))
    bad = {"collapse_share": 1.0}
    assert guards.check(bad) is None
    assert guards.check(bad) is None
    assert guards.check(FINE) is None and guards.broken == {}
    assert [guards.check(bad) is None for _ in range(3)] == [True, True, False]


def test_rules_are_counted_apart():
    guards = Guards(config(patience=2, kl_budget=0.5, utility_floor=0.5))
    assert guards.check({**FINE, "kl_reference": 9.0}) is None
    assert guards.check({**FINE, "retain_accuracy": 0.0}) is None
    reason = guards.check({**FINE, "retain_accuracy": 0.0})
    assert reason is not None and reason.startswith("utility_floor")


def test_a_resume_goes_on_counting_where_the_checkpoint_was():
    cfg = config(patience=2, collapse_share=0.5)
    before = Guards(cfg)
    assert before.check({"collapse_share": 1.0}) is None
    assert before.broken == {"collapse": 1}
    resumed = Guards(cfg, before.broken)
    assert resumed.check({"collapse_share": 1.0}) is not None
    assert before.broken == {"collapse": 1}  # the resumed run has its own count


def test_the_default_limits():
    cfg = GuardConfig()
    assert cfg.kl_budget is None and cfg.patience == 2
    assert violations(cfg, FINE) == {}
    assert set(violations(cfg, {**FINE, "length_ratio": 0.1})) == {"too_short"}
