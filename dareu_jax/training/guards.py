"""Rules that stop unlearning before it breaks the model."""

from collections.abc import Mapping

from dareu_jax.config import GuardConfig


class Guards:
    """Watches the metrics of each step; a rule broken ``patience`` times stops.

    ``broken`` counts the violations in a row so far by rule, from a checkpoint.
    """

    def __init__(self, cfg: GuardConfig, broken: Mapping[str, int] | None = None):
        self.cfg = cfg
        self.broken = dict(broken or {})

    def check(self, metrics: Mapping[str, float]) -> str | None:
        """Return the reason to stop after this step, or None."""
        now = violations(self.cfg, metrics)
        self.broken = {rule: self.broken.get(rule, 0) + 1 for rule in now}
        for rule, times in self.broken.items():
            if times >= self.cfg.patience:
                return now[rule]
        return None


def violations(cfg: GuardConfig, metrics: Mapping[str, float]) -> dict[str, str]:
    """Return ``rule -> reason`` for every limit that ``metrics`` break."""
    rules = (
        ("kl_budget", "kl_reference", cfg.kl_budget, 1),
        ("utility_floor", "retain_accuracy", cfg.utility_floor, -1),
        ("collapse", "collapse_share", cfg.collapse_share, 1),
        ("too_short", "length_ratio", cfg.min_length, -1),
        ("too_long", "length_ratio", cfg.max_length, 1),
    )
    found = {}
    for rule, name, limit, sign in rules:
        if limit is None or name not in metrics:
            continue
        if sign * metrics[name] > sign * limit:
            side = "above" if sign > 0 else "below"
            found[rule] = f"{rule}: {name} {metrics[name]:.3g} {side} {limit:g}"
    return found
