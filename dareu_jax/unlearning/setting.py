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
    kl_share: Array
    policy_weight: Array
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
      optimiser: of the trainable parameters; distiller: of distillation alone, where
        that has moments of its own.
      is_reference_read: whether the KL to the reference is measured.
      base: the model before its fine-tuning, where it is read.
    """

    inputs: MethodInputs
    hp: DareuConfig
    reward: RewardConfig
    kernel: Kernel
    prior: Prior | None
    optimiser: optax.GradientTransformation
    is_reference_read: bool = False
    base: Prior | None = None
    distiller: optax.GradientTransformation | None = None

    @property
    def tokens(self) -> int:
        """T of a rollout."""
        return self.hp.max_new_tokens or self.inputs.response_tokens

    @property
    def slices(self) -> tuple[int, int | None]:
        """The slices that an answer is scored in, and what is cut: `rl.kappa_of`."""
        is_own = self.reward.slices_of == "answer"
        return self.reward.slices, None if is_own else self.tokens

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths that a batch of answers is cut to, see `response_widths`."""
        return response_widths(self.tokens)

    @functools.cached_property
    def numbers(self) -> Numbers:
        """Numbers of the row, on the devices."""
        sections = self.hp.model_dump() | self.reward.model_dump()
        sections["gold_length"] = self.inputs.gold_length
        if self.hp.retain_step == "separate":
            sections["lambda_dis"] = 1.0  # it is in the rate, see `distiller_of`
        values = [np.float32(sections[name]) for name in Numbers._fields]
        return put_whole(Numbers._make(values), self.inputs.layouts.update)

    @property
    def anchors(self) -> tuple[str, ...]:
        """The models that the KL anchor is made of."""
        return anchors_of(self.hp.kl_anchor)

    @property
    def anchor_models(self) -> tuple[Decoder, ...]:
        """The decoders of the KL anchor."""
        own = {"prior": self.prior, "base": self.base}
        found = (own.get(name) for name in self.anchors)
        return tuple(x.model if x else self.inputs.model for x in found)

    def anchor(self, behaviour: dict) -> tuple[dict, ...]:
        """Parameters of the KL anchor's models, given the trainable ones of pi_old."""
        params = {
            "behaviour": join(self.inputs.frozen, behaviour),
            "reference": self.inputs.reference,
            "renamed": self.inputs.reference,
            "prior": self.prior and self.prior.params,
            "base": self.base and self.base.params,
        }
        return tuple(params[name] for name in self.anchors)

    @property
    def logps_of(self) -> tuple[str, ...]:
        """The frozen models whose log-probs of the answers are read."""
        prior = pays_for_prior(self.reward)
        wanted = {"prior": prior, "reference": self.is_reference_read}
        return tuple(name for name, is_read in wanted.items() if is_read)


def anchors_of(kl_anchor: str) -> tuple[str, ...]:
    """Return the models that an anchor is made of; ``renamed``: under another name."""
    of_two = {"mixture": ("reference", "base"), "renamed": ("reference", "renamed")}
    return of_two.get(kl_anchor, (kl_anchor,))


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
      anchor: ``[B, T, D]`` hidden states of each of the KL anchor's models, where it is
        in the loss.
      likely: the policy's likeliest tokens ``[B, T, A]`` and their log-probs, where all
        of them are actions.
    """

    values: Array
    logps: Array | None = None
    ref_logps: Array | None = None
    prior_logps: Array | None = None
    kl: Array | None = None
    anchor: tuple[Array, ...] | None = None
    likely: tuple[Array, Array] | None = None


class Actions(NamedTuple):
    """All likely tokens of every place of the sampled answers.

    Attributes:
      tokens: ``[B, T, A]`` int32; logps: of the policy that sampled, float32.
      gains: ``[B, T, A]``, the reward of each; rest: ``[B, T]``, of any other token.
    """

    tokens: Array
    logps: Array
    gains: Array
    rest: Array


class Experience(NamedTuple):
    """One sampled batch ready for updates; arrays ``[B, T]`` but the last two."""

    answers: TokenBatch
    old_logps: Array
    old_values: Array
    advantages: Array
    returns: Array
    anchor: tuple[Array, ...] | None
    actions: Actions | None = None
