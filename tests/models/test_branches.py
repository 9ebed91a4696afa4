"""One pass over texts that branch gives what each text gives when it is read alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import ModelConfig
from dareu_jax.models import (
    Decoder,
    branch_states,
    can_branch,
    decoder_config,
    hidden_states,
    init_decoder,
)

VOCAB, ROWS, SEVERAL = 50, 2, 3


def model_of(**changes):
    shape = decoder_config(ModelConfig(preset="decoder-40k"), VOCAB)
    return Decoder(dataclasses.replace(shape, **changes))


@pytest.mark.parametrize("t", [7, 90], ids=["whole", "in blocks"])
def test_a_branch_is_the_last_token_of_its_text(t):
    model, rng = model_of(), np.random.default_rng(0)
    params = init_decoder(model, key=jax.random.key(0))
    tokens = rng.integers(1, VOCAB, (ROWS, t)).astype(np.int32)
    mask = np.arange(t) < np.array([[t], [t - 2]])
    branches = rng.integers(1, VOCAB, (ROWS, t, SEVERAL)).astype(np.int32)
    found = jax.jit(branch_states, static_argnums=0)(
        model, params, tokens, mask, branches
    )
    assert found.shape == (ROWS, t, SEVERAL, model.cfg.embed)
    read = jax.jit(hidden_states, static_argnums=0)
    for place in (0, 1, t // 2, t - 3, t - 1):
        for way in range(SEVERAL):
            said = tokens.copy()
            said[:, place] = branches[:, place, way]
            seen = jnp.broadcast_to(np.arange(t) <= place, said.shape)
            alone = read(model, params, said, seen)[:, place]
            rows = mask[:, place]
            np.testing.assert_allclose(
                found[:, place, way][rows], alone[rows], atol=1e-5
            )


def test_a_window_counts_slots():
    assert can_branch(model_of())
    assert not can_branch(model_of(sliding_window=4))
