"""What the phases of a DareU iteration have in common, and what they exchange."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from dareu_jax.attribution import Kernel
from dareu_jax.config import RewardConfig
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder, join
from dareu_jax.training.throughput import Work
from dareu_jax.unlearning.dareu_options import DareuConfig
from dareu_jax.unlearning.method import MethodInputs, Prior

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the phases of one row have in common.

    Attributes:
      inputs: what the method reads; hp, reward: sections of the row's configuration.
      kernel: the attribution kernel of the reward.
      prior: the counterfactual prior, where it is read.
      optimiser: of the trainable parameters.
    """

    inputs: MethodInputs
    hp: DareuConfig
    reward: RewardConfig
    kernel: Kernel
    prior: Prior | None
    optimiser: optax.GradientTransformation

    @property
    def tokens(self) -> int:
        """T of a rollout."""
        return self.hp.max_new_tokens or self.inputs.response_tokens

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


class Phase(NamedTuple):
    """One phase of an iteration.

    Attributes:
      run: ``(setting, *, named arguments) -> result``.
      work: ``(setting, result, *, named arguments) -> Work``; None: it is not timed.
      used_up: names of arguments whose memory the result takes over.
      is_jitted: whether ``run`` is one program; a rollout moves what it is given first.
    """

    run: Callable[..., Any]
    work: Callable[..., Work] | None = None
    used_up: tuple[str, ...] = ()
    is_jitted: bool = True

    def bound(self, name: str, setting: Setting) -> Callable[..., Any]:
        """Return the phase of one row: jitted, and timed where its work is known."""
        run: Callable[..., Any] = functools.partial(self.run, setting)
        if self.is_jitted:
            run = jax.jit(run, donate_argnames=self.used_up)
        if self.work is None:
            return run
        work = functools.partial(self.work, setting)
        return setting.inputs.watch.timed(name, run, work)


class Judged(NamedTuple):
    """What the frozen models and the value head say of the sampled answers.

    Attributes:
      logps, ref_logps, prior_logps: ``[B, T]`` float32, policy, reference, prior
        (zeros without one).
      values: ``[B, T]`` float32, V(c_t).
      anchor: ``[B, T, D]`` hidden states of the KL anchor.
      kl: ``[B, T]`` float32, KL(policy || anchor) by the configured estimator.
    """

    logps: Array
    ref_logps: Array
    prior_logps: Array
    values: Array
    anchor: Array
    kl: Array


class Experience(NamedTuple):
    """One sampled batch ready for updates; every array ``[B, T]`` but ``anchor``."""

    answers: TokenBatch
    old_logps: Array
    old_values: Array
    advantages: Array
    returns: Array
    anchor: Array
