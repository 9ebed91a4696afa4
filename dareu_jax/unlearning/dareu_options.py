"""The section ``dareu`` of a configuration."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dareu_jax.config import Section, divisor
from dareu_jax.errors import UserError


class DareuConfig(Section):
    """PPO with prefix rewards and retain distillation (methods 1.4, 1.5).

    Where a default is ours, the preset ``dareu_paper`` has the paper's.
    """

    learning_rate: float = Field(1.5e-4, gt=0)  # methods 1.5
    batch_size: int = Field(32, ge=1)  # methods 1.5
    data_epochs: int = Field(1, ge=1)  # methods 1.5
    updates_per_batch: int = Field(20, ge=1)  # methods 1.5
    retain_batch_size: int = Field(32, ge=1)  # not stated
    retain_updates: int = Field(1, ge=0)  # per forget update; 1.6: they alternate
    distil_on: Literal["gold", "reference"] = "gold"  # methods 1.6: whose answers
    reuse_retain: bool = False  # ours; the paper draws one retain batch per sampled one
    retain_step: Literal["alternate", "separate", "joint"] = "alternate"  # ours
    lambda_dis: float = Field(2.0, ge=0)  # methods 1.5 (ablation)
    kl_coef: float = Field(0.3, ge=0)  # ours; methods 1.5: 0.1
    kl_anchor: Literal[
        "reference", "behaviour", "prior", "base", "mixture", "renamed"
    ] = "prior"
    base_path: str | None = None  # of the base; none: model.path, where it is tuned
    kl_share: float = Field(0.5, ge=0, le=1)  # of the base, in mixture
    kl_direction: Literal["reverse", "forward"] = "reverse"  # KL(anchor || policy)
    kl_estimator: Literal["sampled", "full"] = "sampled"  # methods 1.6; of the reward
    kl_in: Literal["reward", "loss"] = "loss"  # ours, over the full vocabulary
    policy_weight: float = Field(1.0, ge=0)  # ours: of the PPO and the value loss
    advantage: Literal["gae", "group"] = "gae"  # ours: group is GRPO's, no value head
    value_coef: float = Field(0.2, ge=0)  # methods 1.5
    value_gradient: Literal["trunk", "head"] = "trunk"  # methods 1.6: how far it goes
    clip: float = Field(0.2, gt=0, lt=1)  # methods 1.5
    temperature: float = Field(1.0, gt=0)  # ours; methods 1.5: 0.8
    gamma: float = Field(1.0, gt=0, le=1)  # methods 1.6
    gae_lambda: float = Field(0.95, ge=0, le=1)  # methods 1.6; 1 = plain returns
    whiten: bool = False  # ours: whitening blows noise up once attribution is gone
    old_policy: Literal["per_data_epoch", "per_batch"] = "per_batch"  # methods 1.6
    actions: Literal["sampled", "top_k"] = "sampled"  # ours: all likely tokens
    top_k: int = Field(8, ge=1)  # tokens of a place that are actions
    top_k_as: Literal["teacher", "gradient"] = "teacher"  # how they are learned from
    prefix_share: float = Field(0.0, ge=0, le=1)  # ours: rows begun with gold text
    samples_per_prompt: int = Field(1, ge=1)  # G of group
    minibatches: int = Field(1, ge=1)  # updates of a pass; fewer where it divides none
    minibatch_size: int | None = Field(None, ge=1)  # answers of an update, wins over it
    microbatch_size: int | None = Field(None, ge=1)  # rows at a time; none: by size
    max_new_tokens: int | None = Field(None, ge=1)  # methods 1.6; none: the longest
    warmup: float = Field(0.0, ge=0, lt=1)  # methods 1.6
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)

    @property
    def answers(self) -> int:
        """Sampled answers of one batch."""
        return self.batch_size * self.samples_per_prompt

    @property
    def likely(self) -> int:
        """Likeliest tokens of a place that are actions; 0: the sampled one alone."""
        return self.top_k if self.actions == "top_k" else 0

    @property
    def learn(self) -> str:
        """What an update learns by, see `objectives.Objective`."""
        return self.top_k_as if self.actions == "top_k" else "ppo"

    @property
    def has_values(self) -> bool:
        """Whether a value head is the baseline of an action."""
        return self.advantage == "gae" and self.actions == "sampled"

    @property
    def updates_per_pass(self) -> int:
        """PPO updates that one pass over the answers is made of.

        Without `minibatch_size` they are `minibatches`, or the next smaller number that
        divides the answers, and the retain batch that a joint step reads with them.
        """
        if self.minibatch_size:
            return self.answers // self.minibatch_size
        rows = [self.answers] + [self.retain_batch_size] * (self.retain_step == "joint")
        counts = range(min(self.minibatches, self.answers), 0, -1)
        return next(n for n in counts if not any(size % n for size in rows))

    @property
    def rows_per_update(self) -> int:
        """Answers that a PPO update learns from."""
        return self.answers // self.updates_per_pass

    @property
    def retain_rows_per_update(self) -> int:
        """Retain records that a step reads."""
        parts = self.updates_per_pass if self.retain_step == "joint" else 1
        return self.retain_batch_size // parts

    @property
    def distillations(self) -> int:
        """Retain batches that are learnt from in an iteration."""
        return self.updates_per_batch * self.retain_updates

    @field_validator("minibatch_size")
    @classmethod
    def _parts_of_a_batch(cls, given: int | None, info: ValidationInfo) -> int | None:
        rows = info.data.get("batch_size", 0) * info.data.get("samples_per_prompt", 0)
        return divisor(given, rows, "batch_size x samples_per_prompt")

    @field_validator("microbatch_size")
    @classmethod
    def _parts_of_a_step(cls, given: int | None, info: ValidationInfo) -> int | None:
        rows = info.data.get("batch_size", 0) * info.data.get("samples_per_prompt", 0)
        divisor(given, info.data.get("retain_batch_size", 0), "retain_batch_size")
        if part := info.data.get("minibatch_size"):
            return divisor(given, part, "minibatch_size")
        return divisor(given, rows, "batch_size x samples_per_prompt")

    @model_validator(mode="after")
    def _fits(self) -> "DareuConfig":
        if self.retain_step == "joint" and self.retain_updates != 1:
            raise UserError(
                "dareu.retain_step = joint adds one retain batch to every pass, and "
                f"dareu.retain_updates = {self.retain_updates}; set it to 1, and weigh "
                "the batch by dareu.lambda_dis"
            )
        is_joint, parts = self.retain_step == "joint", self.updates_per_pass
        if is_joint and self.retain_batch_size % parts:
            raise UserError(
                f"dareu.minibatch_size = {self.minibatch_size} makes {parts} joint "
                "steps of a pass, which must divide dareu.retain_batch_size = "
                f"{self.retain_batch_size}"
            )
        if self.kl_direction == "forward" and self.kl_in == "reward":
            raise UserError(
                "dareu.kl_direction = forward is a sum over the vocabulary, and "
                "dareu.kl_in = reward looks at sampled tokens; set dareu.kl_in=loss"
            )
        if self.kl_anchor == "renamed" and self.kl_in == "reward":
            raise UserError(
                "dareu.kl_anchor = renamed is read over the vocabulary, and dareu."
                "kl_in = reward looks at sampled tokens; set dareu.kl_in=loss"
            )
        if self.actions == "top_k" and (self.kl_in == "reward" or not self.kl_coef):
            raise UserError(
                "dareu.actions = top_k learns beside a KL anchor in the loss, and "
                f"dareu.kl_in = {self.kl_in}, dareu.kl_coef = {self.kl_coef}; set "
                "dareu.kl_in=loss and a kl_coef above 0"
            )
        if self.policy_weight == 0 and self.kl_in == "reward":
            raise UserError(
                "dareu.policy_weight = 0 leaves the loss the KL to the anchor alone, "
                "and dareu.kl_in = reward takes it out; set dareu.kl_in=loss"
            )
        if self.advantage == "group" and self.samples_per_prompt < 2:
            raise UserError(
                "dareu.advantage = group compares the answers to one prompt, and "
                f"dareu.samples_per_prompt = {self.samples_per_prompt}; set it to at "
                "least 2"
            )
        return self
