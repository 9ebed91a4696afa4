"""Hide from a kernel what a response repeats of its prompt: that is no attribution.

An answer about a person names that person, whoever wrote it. What it says of whose data
it comes from is what it adds to its prompt.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attribution.kernel import Kernel, OwnerBatch, Setup
from dareu_jax.config import AttributionConfig
from dareu_jax.data import Tokenizer
from dareu_jax.data.batches import Rows, TokenBatch
from dareu_jax.data.words import word_numbers
from dareu_jax.registry import KERNELS

NONE = -1
"""The word of what is no token of a prompt."""


@dataclasses.dataclass(frozen=True)
class Echo:
    """What a prompt says already, as words; equal ones share a program.

    Attributes:
      words: `word_numbers` of every token, ``[V]`` int32, as bytes.
      hidden: the token that a kernel reads in the place of one that is hidden.
    """

    words: bytes
    hidden: int

    def own(self, batch: TokenBatch) -> Rows:
        """Return ``[B, T]`` bool: response tokens whose words the prompt lacks."""
        words = np.frombuffer(self.words, np.int32)
        if isinstance(batch.response, np.ndarray):
            asked = np.where(batch.prompt_mask, words[batch.prompt], NONE)
            echoed = np.zeros_like(batch.response_mask)
            for row, said in enumerate(words[batch.response]):
                echoed[row] = np.isin(said, asked[row])
            return batch.response_mask & ~echoed
        return batch.response_mask & ~echoed_in(jnp.asarray(words), batch)


def echoed_in(words: jax.Array, batch: TokenBatch) -> jax.Array:
    """Return ``[B, T]`` bool: response tokens whose ``words [V]`` the prompt has."""
    asked = jnp.where(batch.prompt_mask, words[batch.prompt], NONE)
    return jnp.any(words[batch.response][:, :, None] == asked[:, None, :], axis=-1)


def echo_of(cfg: AttributionConfig, tokenizer: Tokenizer, vocab: int) -> Echo | None:
    """Return what ``attribution.echo`` hides of a vocabulary; None: nothing."""
    if cfg.echo == "keep":
        return None
    words = word_numbers(tokenizer, vocab)
    return Echo(words.tobytes(), min(tokenizer.pad_id, vocab - 1))


@dataclasses.dataclass(frozen=True)
class Mark:
    """Mark in a batch which tokens are the response's own.

    A kernel that reads the response alone is given `Echo.hidden` for the others; one
    that runs the attributed model on prompt and response reads them all, and leaves
    them out of its sums.
    """

    echo: Echo
    is_replaced: bool

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        """Return the batch with ``own``; as it is, where it has that already."""
        if batch.own is not None:
            return batch
        if isinstance(batch.response, np.ndarray):
            return self.marked(batch)
        return _on_devices(self, batch)

    def marked(self, batch: TokenBatch) -> TokenBatch:
        """Return the batch with ``own``, and other tokens replaced."""
        own = self.echo.own(batch)
        if not self.is_replaced:
            return batch._replace(own=own)
        xp: Any = np if isinstance(own, np.ndarray) else jnp
        is_hidden, hidden = batch.response_mask & ~own, np.int32(self.echo.hidden)
        response = xp.where(is_hidden, hidden, batch.response)
        return batch._replace(response=response, own=own)


_on_devices = jax.jit(Mark.marked, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class OfQueries:
    """``score``, ``prefix_score`` or ``fold`` of a kernel, of marked queries."""

    function: Callable[..., jax.Array]
    mark: Mark

    def __call__(self, params: Any, index: Any, *rest: Any) -> jax.Array:
        """Return what the function returns; ``rest`` ends with the queries."""
        return self.function(params, index, *rest[:-1], self.mark(rest[-1]))


@dataclasses.dataclass(frozen=True)
class OfBranches:
    """``branch_score`` of a kernel, of marked queries and branches."""

    function: Callable[..., jax.Array]
    mark: Mark

    def __call__(
        self, params: Any, index: Any, queries: TokenBatch, branches: jax.Array
    ) -> jax.Array:
        """Return what the function returns."""
        flat = branches.reshape(len(branches), -1)
        asked = queries._replace(
            response=flat, response_mask=jnp.ones(flat.shape, bool), own=None
        )
        said = self.mark(asked).response.reshape(branches.shape)
        return self.function(params, index, self.mark(queries), said)


@dataclasses.dataclass(frozen=True)
class OfRecords:
    """``update`` of a kernel, of marked records."""

    function: Callable[..., Any]
    mark: Mark

    def __call__(self, params: Any, batch: OwnerBatch, acc: Any) -> Any:
        """Return what the function returns."""
        marked = batch._replace(text=self.mark(batch.text))
        return self.function(params, marked, acc)


def beyond_prompt(kernel: Kernel, echo: Echo | None) -> Kernel:
    """Return the kernel of what a response adds to its prompt; None: of all of it."""
    if echo is None:
        return kernel
    runs_model = kernel.follows_model or kernel.differentiates is not None
    mark = Mark(echo, is_replaced=not runs_model)
    seen = functools.partial(OfQueries, mark=mark)
    return dataclasses.replace(
        kernel,
        mark=mark,
        update=OfRecords(kernel.update, mark),
        score=seen(kernel.score),
        prefix_score=kernel.prefix_score and seen(kernel.prefix_score),
        branch_score=kernel.branch_score and OfBranches(kernel.branch_score, mark),
        fold=kernel.fold and seen(kernel.fold),
    )


def make_kernel(name: str, setup: Setup, echo: Echo | None) -> Kernel:
    """Return kernel ``name``, which hides ``echo`` from itself."""
    return beyond_prompt(KERNELS.get(name)(setup), echo)
