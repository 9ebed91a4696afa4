"""What is logged of a DareU iteration."""

import functools

import jax
import jax.numpy as jnp

from dareu_jax import rl
from dareu_jax.attribution import last_valid
from dareu_jax.data.batches import TokenBatch
from dareu_jax.unlearning.setting import Judged, Numbers

Array = jax.Array
SHORT = 3  # tokens, end of text included: fewer is no sentence


def repeats_itself(tokens: Array, mask: Array) -> Array:
    """Return ``[B]`` bool: over half of a response's token pairs occurred before.

    Responses of fewer than 8 tokens never count.
    """
    valid = mask[:, 1:]
    alike = tokens[:, :, None] == tokens[:, None, :]
    same = alike[:, :-1, :-1] & alike[:, 1:, 1:] & valid[:, None, :]
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), k=-1)[None]
    seen = jnp.any(same & earlier, axis=-1) & valid
    count = jnp.sum(valid.astype(jnp.float32), axis=1)
    share = jnp.sum(seen.astype(jnp.float32), axis=1) / jnp.maximum(count, 1.0)
    return (share > 0.5) & (count >= 7)


@functools.partial(jax.jit, static_argnames="longest")
@jax.named_scope("measure")
def measure(
    *,
    longest: int,
    numbers: Numbers,
    scores: Array,
    rewards: Array,
    judged: Judged,
    answers: TokenBatch,
) -> dict[str, Array]:
    """Return what to watch, float32 scalars over the sampled batch.

    ``longest``: the tokens that an answer may have.
    """
    mask = answers.response_mask
    length = jnp.sum(mask.astype(jnp.float32), axis=1)
    short = length < min(SHORT, longest)
    loops = repeats_itself(answers.response, mask)
    share = functools.partial(jnp.mean, dtype=jnp.float32)
    found = {
        "reward": jnp.mean(jnp.sum(rewards, axis=1)),
        "attribution": jnp.mean(last_valid(scores, mask)),
        "response_length": jnp.mean(length),
        "length_ratio": jnp.mean(length) / numbers.gold_length,
        "collapse_share": share((short | loops).astype(jnp.float32)),
    }
    if judged.logps is not None and judged.ref_logps is not None:
        drift = rl.sampled_kl(judged.logps, judged.ref_logps)
        found["kl_reference"] = rl.masked_mean(drift, mask)
    if judged.kl is not None:
        found["kl_anchor"] = rl.masked_mean(judged.kl, mask)
    if judged.prior_logps is not None:
        found["prior_likelihood"] = rl.masked_mean(judged.prior_logps, mask)
    return found
