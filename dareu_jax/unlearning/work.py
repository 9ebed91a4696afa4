"""What each phase and training step has to do: tokens that count, FLOPs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.generation import Rollout
from dareu_jax.models import DecoderConfig, forward_flops
from dareu_jax.parallel import Work, on_host


class Texts(NamedTuple):
    """Tokens of a batch that count: of prompts, of responses, slots of one text."""

    prompt: int
    response: int
    length: int


def texts_of(batch: TokenBatch) -> Texts:
    """Counts the masks of a batch that is on the devices."""
    prompt, response = batch.prompt_mask, batch.response_mask
    length = prompt.shape[1] + response.shape[1]
    return Texts(trues(prompt), trues(response), length)


def trues(mask: jax.Array) -> int:
    """True entries of a mask, as every process sees them."""
    return int(on_host(_trues(mask)))


@jax.jit
def _trues(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask.astype(jnp.int32))


def read(cfg: DecoderConfig, text: Texts) -> float:
    """FLOPs of one forward pass that says something of every response token."""
    tokens, length = text.prompt + text.response, text.length
    return forward_flops(cfg, tokens, length, text.response)


def learn(cfg: DecoderConfig, text: Texts, is_adapted: bool) -> float:
    """FLOPs of a gradient step: forward, activations' gradients, weights' gradients.

    With adapters the last are of the adapters alone, and count as nothing.
    """
    return (2 if is_adapted else 3) * read(cfg, text)


def training_work(
    cfg: DecoderConfig, batches: list[TokenBatch], frozen: Any, references: int = 0
) -> Work:
    """Work of one step of supervised training on ``batches``.

    Args:
      cfg: the shape; frozen: ``{}`` without adapters.
      references: how many of the batches, from the first on, a reference reads too.
    """
    texts = [texts_of(batch) for batch in batches]
    flops = sum(learn(cfg, text, bool(frozen)) for text in texts)
    flops += sum(read(cfg, text) for text in texts[:references])
    return Work(sum(text.prompt + text.response for text in texts), flops)


def of_text(batch: TokenBatch) -> Work:
    """Work of what is no decoder's: the tokens it is given."""
    text = texts_of(batch)
    return Work(text.prompt + text.response)


class PhaseWork:
    """Work of the phases of a DareU iteration: ``(result, *arguments) -> Work``.

    Args:
      policy: shape of the model; is_adapted: whether adapters alone are trained.
      frozen: shapes of the frozen decoders that judge an answer.
      anchor: shape of the KL anchor, where an update makes its logits; else None.
    """

    def __init__(
        self,
        policy: DecoderConfig,
        is_adapted: bool,
        frozen: list[DecoderConfig],
        anchor: DecoderConfig | None,
    ):
        self.policy, self.is_adapted = policy, is_adapted
        self.frozen, self.anchor = frozen, anchor

    def rollout(self, said: Rollout, _: Any, prompts: TokenBatch, **how: Any) -> Work:
        """One pass over prompt and answer, a token at a time."""
        answers = prompts._replace(response=said.tokens, response_mask=said.mask)
        text = texts_of(answers)
        return Work(text.response, read(self.policy, text))

    def judge(self, _: Any, *given: Any) -> Work:
        """One pass of the policy and of every frozen decoder; answers come last."""
        text = texts_of(given[-1])
        flops = sum(read(cfg, text) for cfg in [self.policy, *self.frozen])
        return Work(text.prompt + text.response, flops)

    def attribute(self, _: Any, *given: Any) -> Work:
        """The kernel's own; its FLOPs are not known here."""
        return of_text(given[-1])

    def update(self, _: Any, *given: Any) -> Work:
        """A gradient step on the answers, and the anchor's logits."""
        text = texts_of(given[-1].answers)
        flops = learn(self.policy, text, self.is_adapted)
        if self.anchor is not None:
            flops += forward_flops(self.anchor, 0, 0, text.response)
        return Work(text.prompt + text.response, flops)

    def distil(self, _: Any, *given: Any) -> Work:
        """A gradient step on retain text, and one pass of the reference."""
        text = texts_of(given[-1])
        flops = learn(self.policy, text, self.is_adapted) + read(self.policy, text)
        return Work(text.prompt + text.response, flops)

    def reward(self, _: Any, scores: Any, judged: Any, mask: Any) -> Work:
        """A few numbers per token of an answer."""
        return Work(trues(mask))
