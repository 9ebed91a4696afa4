"""What the phases of a DareU iteration have in common, and what they exchange."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import optax

from dareu_jax.attribution import Kernel
from dareu_jax.config import RewardConfig
from dareu_jax.data.batches import TokenBatch, rounded_up
from dareu_jax.models import Decoder, join
from dareu_jax.parallel import put_whole
from dareu_jax.unlearning.dareu_options import DareuConfig
from dareu_jax.unlearning.method import MethodInputs, Prior

Array = jax.Array
WIDTHS = 4
"""At most so many widths of a batch of answers, each with programs of its own."""


class Numbers(NamedTuple):
    """Numbers of a row as float32 scalars: rows that differ in them share programs.

    Their meaning is that of `DareuConfig`, `RewardConfig` and `MethodInputs`.
    """

    temperature: Array
    clip: Array
    kl_coef: Array
    value_coef: Array
    lambda_dis: Array
    gamma: Array
    gae_lambda: Array
    c_seg: Array
    eps: Array
    attribution_weight: Array
    prior_weight: Array
    prior_floor: Array
    gold_length: Array


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the phases of one row have in common.

    Attributes:
      inputs: what the method reads; hp, reward: sections of the row's configuration.
      kernel: the attribution kernel of the reward.
      prior: the counterfactual prior, where it is read.
      optimiser: of the trainable parameters.
      is_reference_read: whether the KL to the reference is measured.
    """

    inputs: MethodInputs
    hp: DareuConfig
    reward: RewardConfig
    kernel: Kernel
    prior: Prior | None
    optimiser: optax.GradientTransformation
    is_reference_read: bool = False

    @property
    def tokens(self) -> int:
        """T of a rollout."""
        return self.hp.max_new_tokens or self.inputs.response_tokens

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths that a batch of answers is cut to, see `response_widths`."""
        return response_widths(self.tokens)

    @functools.cached_property
    def numbers(self) -> Numbers:
        """Numbers of the row, on the devices."""
        sections = self.hp.model_dump() | self.reward.model_dump()
        sections["gold_length"] = self.inputs.gold_length
        values = [np.float32(sections[name]) for name in Numbers._fields]
        return put_whole(Numbers._make(values), self.inputs.layouts.update)

    @property
    def anchor_model(self) -> Decoder:
        """The decoder of the KL anchor."""
        is_prior = self.hp.kl_anchor == "prior"
        return self.prior.model if self.prior and is_prior else self.inputs.model

    def anchor(self, behaviour: dict) -> dict:
        """Parameters of the KL anchor, given the trainable ones of pi_old."""
        if self.hp.kl_anchor == "behaviour":
            return join(self.inputs.frozen, behaviour)
        if self.prior and self.hp.kl_anchor == "prior":
            return self.prior.params
        return self.inputs.reference

    @property
    def logps_of(self) -> tuple[str, ...]:
        """The frozen models whose log-probs of the answers are read."""
        prior = pays_for_prior(self.reward)
        wanted = {"prior": prior, "reference": self.is_reference_read}
        return tuple(name for name, is_read in wanted.items() if is_read)


def pays_for_prior(reward: RewardConfig) -> bool:
    """Return whether the reward reads the counterfactual prior."""
    return reward.prior != "none" or reward.combine == "product"


def response_widths(tokens: int) -> tuple[int, ...]:
    """Return at most `WIDTHS` widths up to ``tokens``, the rest multiples of 8.

    They are at least 16 slots apart: a narrower batch would not pay for its programs.
    """
    apart = max(16, rounded_up(-(-tokens // WIDTHS), 8))
    return (*range(apart, tokens, apart), tokens)


class Judged(NamedTuple):
    """What the frozen models and the value head say of the sampled answers.

    Attributes:
      values: ``[B, T]`` float32, V(c_t); zeros without a value head.
      logps, ref_logps, prior_logps: ``[B, T]`` float32, policy, reference, prior; None
        where they are not read.
      kl: ``[B, T]`` float32, KL(policy || anchor) by the configured estimator, where it
        is in the reward.
      anchor: ``[B, T, D]`` hidden states of the KL anchor, where it is in the loss.
    """

    values: Array
    logps: Array | None = None
    ref_logps: Array | None = None
    prior_logps: Array | None = None
    kl: Array | None = None
    anchor: Array | None = None


class Experience(NamedTuple):
    """One sampled batch ready for updates; every array ``[B, T]`` but ``anchor``."""

    answers: TokenBatch
    old_logps: Array
    old_values: Array
    advantages: Array
    returns: Array
    anchor: Array | None
