"""The configuration of a run: its sections, and how it is read."""

from dareu_jax.config.load import (
    all_keys,
    attribution_config,
    build_config,
    completed,
    dump_config,
    load_config,
    with_overrides,
)
from dareu_jax.config.schema import (
    AttributionConfig,
    ClassifierConfig,
    FinetuneConfig,
    GuardConfig,
    LoraConfig,
    ModelConfig,
    OptimiserConfig,
    PriorConfig,
    RewardConfig,
    RunConfig,
    Section,
    StressConfig,
    divisor,
)
