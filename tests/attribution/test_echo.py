"""What a response adds to its prompt, and nothing else, is attributed."""

import jax
import numpy as np
import pytest

from dareu_jax.attribution.echo import Echo, Mark, beyond_prompt, echo_of
from dareu_jax.config import attribution_config
from dareu_jax.data import TokenBatch
from dareu_jax.data.batches import own_tokens

HIDDEN = 9
WORDS = np.array([0, 1, 2, 1, 4, 5, 6, 7, 8, 9], np.int32)  # 3 writes the word of 1
ECHO = Echo(WORDS.tobytes(), HIDDEN)


def batch() -> TokenBatch:
    """Two prompts, the second of which is a token shorter, and their responses."""
    return TokenBatch(
        prompt=np.array([[1, 2], [6, 4]], np.int32),
        prompt_mask=np.array([[True, True], [False, True]]),
        response=np.array([[3, 5, 2, 0], [6, 4, 4, 7]], np.int32),
        response_mask=np.array([[True, True, True, False], [True] * 4]),
        index=np.arange(2, dtype=np.int32),
    )


OWN = [[False, True, False, False], [True, False, False, True]]


@pytest.mark.parametrize("place", [lambda x: x, jax.device_put])
def test_words_of_the_prompt_are_not_its_own(place):
    marked = Mark(ECHO, is_replaced=True)(place(batch()))
    np.testing.assert_array_equal(marked.own, OWN)
    np.testing.assert_array_equal(own_tokens(marked), OWN)
    np.testing.assert_array_equal(
        marked.response, [[HIDDEN, 5, HIDDEN, 0], [6, HIDDEN, HIDDEN, 7]]
    )
    np.testing.assert_array_equal(marked.response_mask, batch().response_mask)


def test_a_kernel_that_runs_the_model_reads_every_token():
    marked = Mark(ECHO, is_replaced=False)(batch())
    np.testing.assert_array_equal(marked.own, OWN)
    np.testing.assert_array_equal(marked.response, batch().response)


def test_what_is_marked_is_not_marked_again():
    marked = Mark(ECHO, is_replaced=True)(batch())
    assert Mark(ECHO, is_replaced=True)(marked) is marked


def test_what_is_kept_is_seen(tiny_run):
    kept = attribution_config(echo="keep")
    assert echo_of(kept, tiny_run.tokenizer, 300) is None
    assert echo_of(attribution_config(), tiny_run.tokenizer, 300) is not None


def test_a_kernel_without_an_echo_is_itself(world):
    kernel = world.kernel("bm25")
    assert beyond_prompt(kernel, None) is kernel
