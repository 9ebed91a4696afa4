"""Prompts that end in the first gold tokens, and what is known of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from dareu_jax.audits.stress import prefill
from dareu_jax.audits.stress.prefill import memorised, prefilled
from dareu_jax.data import TokenBatch

EOS = 2
TOKENS = TokenBatch(
    prompt=np.asarray([[0, 11, 12], [21, 22, 23]], np.int32),
    prompt_mask=np.asarray([[0, 1, 1], [1, 1, 1]], bool),
    response=np.asarray([[5, 6, 7, 8, EOS], [9, EOS, 0, 0, 0]], np.int32),
    response_mask=np.asarray([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], bool),
    index=np.arange(2, dtype=np.int32),
)


@pytest.mark.parametrize(
    ("share", "first", "rest"),
    [
        (0.0, [11, 12], [5, 6, 7, 8]),
        (0.25, [11, 12, 5], [6, 7, 8]),
        (0.49, [11, 12, 5], [6, 7, 8]),
        (0.5, [11, 12, 5, 6], [7, 8]),
    ],
)
def test_the_first_gold_tokens_move_into_the_prompt(share, first, rest):
    found, left = prefilled(TOKENS, share, (EOS,))
    assert found.prompt.shape == (2, 3 + 3)  # 5 / 2 rounded up, for every share
    row = found.prompt[0][found.prompt_mask[0]].tolist()
    assert row == first and left[0] == rest
    assert not found.prompt_mask[0][: 6 - len(first)].any()  # padded on the left
    assert found.prompt[1][found.prompt_mask[1]].tolist() == [21, 22, 23]
    assert left[1] == [9]  # half of one token is none


def test_extraction_strength_and_exact_memorisation_leave_the_end_of_text_out(
    monkeypatch,
):
    hits = np.asarray([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]], np.float32)
    stats = SimpleNamespace(hits=hits)
    monkeypatch.setattr(prefill, "in_batches", lambda *_: stats)
    suite = SimpleNamespace(model=None, tokenizer=SimpleNamespace(stop_ids=(EOS,)))
    context = SimpleNamespace(suite=suite, forget=TOKENS)
    # 5 6 7 8: from 5 6 on the rest is said, 3 of 4 are; 9 is not
    assert memorised(context, None) == ([0.5, 0.0], [0.75, 0.0])
