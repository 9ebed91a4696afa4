"""The work of a phase or training step: tokens that count, and FLOPs."""

from typing import Any, NamedTuple

import jax
import numpy as np

from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import DecoderConfig, forward_flops
from dareu_jax.parallel import on_host
from dareu_jax.training.throughput import Work


class Texts(NamedTuple):
    """Tokens of a batch: those of prompts, those of responses, slots of one text."""

    prompt: int
    response: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens of both."""
        return self.prompt + self.response


def texts_of(batch: TokenBatch) -> Texts:
    """Count the masks of a batch that is on the devices."""
    prompt, response = batch.prompt_mask, batch.response_mask
    length = prompt.shape[1] + response.shape[1]
    return Texts(trues(prompt), trues(response), length)


def trues(mask: jax.Array) -> int:
    """Return the number of true entries of a mask, over all processes."""
    return int(np.count_nonzero(on_host(mask)))


def read(cfg: DecoderConfig, text: Texts) -> float:
    """Return FLOPs of a forward pass with logits at every response token."""
    return forward_flops(cfg, text.tokens, text.length, text.response)


def learn(cfg: DecoderConfig, text: Texts, is_adapted: bool) -> float:
    """Return FLOPs of a gradient step: a forward pass, and two products backwards.

    With adapters the product that gives the gradients of weights counts as nothing: it
    is of the adapters alone.
    """
    return (2 if is_adapted else 3) * read(cfg, text)


def training_work(
    cfg: DecoderConfig, batches: list[TokenBatch], frozen: Any, references: int = 0
) -> Work:
    """Return the work of one step of supervised training on ``batches``.

    A reference reads the first ``references`` of them; ``frozen`` is ``{}`` without
    adapters.
    """
    texts = [texts_of(batch) for batch in batches]
    flops = sum(learn(cfg, text, bool(frozen)) for text in texts)
    flops += sum(read(cfg, text) for text in texts[:references])
    return Work(sum(text.tokens for text in texts), flops)
