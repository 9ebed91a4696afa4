"""One pass over texts that branch: several tokens in the place of each of its own."""

import chex
import jax
import jax.numpy as jnp

from dareu_jax.models.decoder import Decoder
from dareu_jax.models.scoring import positions_of

Array = jax.Array


def can_branch(model: Decoder) -> bool:
    """Return whether `branch_states` serves a decoder: not where layers have windows.

    A window counts slots, and the branches of a text lie behind it.
    """
    return model.cfg.sliding_window is None


def branch_states(
    model: Decoder, params: dict, tokens: Array, mask: Array, branches: Array
) -> Array:
    """Return hidden states ``[B, T, A, D]`` of a token that ends each prefix.

    Entry ``[b, t, a]`` is that of ``branches[b, t, a]`` behind ``tokens[b, :t]``, as if
    that text had been read alone. The branches lie behind the text, those of the last
    place first, and a token of the text is seen by the branches of later places: the
    slots in which it is seen have one end (tree attention).

    Args:
      tokens: ``[B, T]``; mask: ``[B, T]`` bool, true on the left.
      branches: ``[B, T, A]`` int32.
    """
    chex.assert_rank([tokens, mask, branches], [2, 2, 3])
    rows, t, several = branches.shape
    place = jnp.arange(t, dtype=jnp.int32)
    backwards = jnp.flip(branches, axis=1).reshape(rows, -1)
    count = t * several
    text_end = jnp.where(mask, t + several * (t - 1 - place), 0)
    own_end = t + 1 + jnp.arange(count, dtype=jnp.int32)
    seen = jnp.concatenate([text_end, jnp.broadcast_to(own_end, (rows, count))], axis=1)
    positions = jnp.concatenate(
        [
            positions_of(mask),
            jnp.broadcast_to(jnp.repeat(place[::-1], several), (rows, count)),
        ],
        axis=1,
    )
    text = jnp.concatenate([tokens, backwards], axis=1)
    hidden, _ = model.apply({"params": params}, text, positions, seen)
    ours = hidden[:, t:].reshape(rows, t, several, -1)
    return jnp.flip(ours, axis=1)
