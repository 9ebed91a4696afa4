"""Given answers that share a row with others, and greedy answers begun by them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data import Wording
from dareu_jax.evaluation.suites.measure import (
    Guess,
    Reading,
    answer_losses,
    encoded,
    guesses,
    own_answers,
)
from dareu_jax.evaluation.suites.packed import (
    packed,
    rows_of,
    said,
    said_tokens,
    tree_of,
)
from dareu_jax.models import Decoder, hidden_states, logits_of

pytestmark = pytest.mark.slow

READING = Reading(Wording(), 4, 8)
ASKED = ["Where was author number 1 born?", "Who wrote it?", "Is it?"]


@pytest.fixture(scope="module")
def greedy(model):
    """Five tokens that each question is answered with, without a cache or padding."""
    out = []
    for prompt in encoded(model, READING, [(text, "") for text in ASKED])[0]:
        text = list(prompt)
        for _ in range(5):
            whole = jnp.asarray([text + [0] * (64 - len(text))], jnp.int32)
            is_text = jnp.arange(64)[None] < len(text)
            hidden = hidden_states(model.decoder, model.params, whole, is_text)
            logits = logits_of(model.decoder, model.params, hidden[0, len(text) - 1])
            text.append(int(jnp.argmax(logits)))
        out.append(text[len(prompt) :])
    return out


TEXTS = [[1, 2, 5, 6], [3, 4], [1, 2, 5, 7, 8], [1, 2, 9], [3, 4]]


def test_texts_that_begin_alike_fill_rows():
    assert list(rows_of(TEXTS, 100)) == [[0, 2, 3, 1, 4]]
    assert list(rows_of(TEXTS, 7)) == [[0, 2, 3], [1, 4]]
    assert list(rows_of(TEXTS, 4)) == [[0], [2], [3], [1, 4]]


def test_a_tree_says_of_every_token_which_it_follows():
    tree = tree_of(TEXTS, [0, 2, 3])
    assert tree.paths == [[0, 1, 2, 3], [0, 1, 2, 4, 5], [0, 1, 6]]
    batch = packed([tree, tree_of(TEXTS, [1, 4])], 8)
    assert batch.tokens.tolist() == [[1, 2, 5, 6, 7, 8, 9, 0], [3, 4, 0, 0, 0, 0, 0, 0]]
    assert batch.position.tolist()[0] == [0, 1, 2, 3, 3, 4, 2, 0]
    assert batch.before.tolist()[0] == [0, 0, 1, 2, 2, 4, 1, 0]
    assert batch.end.tolist() == [[7, 7, 6, 4, 6, 6, 7, 0], [2, 2, 0, 0, 0, 0, 0, 0]]


def test_a_token_of_a_tree_sees_its_own_text():
    tree = tree_of(TEXTS, [0, 2, 3])
    (end,), size = packed([tree], 8).end, 8
    for path in tree.paths:
        for depth, q in enumerate(path):
            seen = [k for k in range(size) if k <= q < end[k]]
            assert seen == path[: depth + 1]


def test_a_tie_is_no_hit():
    rows = [[0, 2, 2], [3, 1, 0], [0, 1, 5], [2, 1.99999, 0], [2, 1.999, 0]]
    logits, tokens = np.array([rows], np.float32), np.array([[1, 0, 0, 0, 0]], np.int32)
    found = said(logits, tokens)
    assert found.hits.tolist() == [[False, True, False, False, True]]
    e = np.exp(np.array(rows, np.float64))
    wanted = np.log(e[np.arange(5), tokens[0]] / e.sum(-1))
    np.testing.assert_allclose(found.logps[0], wanted, rtol=1e-5)


@pytest.mark.parametrize(("window", "is_on_all"), [(None, True), (6, True), (6, False)])
def test_what_stands_beside_an_answer_changes_nothing(model, window, is_on_all):
    if window is not None:
        cfg = dataclasses.replace(model.decoder.cfg, sliding_window=window)
        first = None if is_on_all else (True, *[False] * (cfg.layers - 1))
        cfg = dataclasses.replace(cfg, windowed=first)
        model = model._replace(decoder=Decoder(cfg))
    pairs = [
        (q, f"{x} wrote {n} of them.") for q in ASKED[:2] for n, x in enumerate("abc")
    ]
    prompts, texts = encoded(model, READING, pairs)
    together = said_tokens(model, prompts, texts, batch_size=6)
    for n, whole in enumerate(together):
        alone = said_tokens(model, prompts[n : n + 1], texts[n : n + 1], 1)[0]
        np.testing.assert_allclose(whole.logps, alone.logps, rtol=1e-5, atol=1e-5)
        assert whole.hits.tolist() == alone.hits.tolist()


def test_a_hit_is_what_greedy_decoding_says(model, greedy):
    prompts, _ = encoded(model, READING, [(text, "") for text in ASKED])
    other = [[*own[:3], (own[3] + 1) % 300, own[4]] for own in greedy]
    found = said_tokens(model, prompts * 2, greedy + other, batch_size=4)
    assert all(own.hits.all() for own in found[:3])
    assert [own.hits.tolist()[:4] for own in found[3:]] == [[True] * 3 + [False]] * 3


def test_the_lead_of_an_answer_ends_at_the_first_miss(model):
    pairs = [(q, "Merawick by the sea, says Ada Lind.") for q in ASKED]
    found = said_tokens(model, *encoded(model, READING, pairs), batch_size=4)
    misses = [int(np.flatnonzero(~own.hits)[0]) for own in found]
    assert answer_losses(model, READING, pairs).lead.tolist() == misses


def test_what_is_known_of_an_answer_is_not_decoded_again(model, greedy, monkeypatch):
    plain = own_answers(model, READING, ASKED)
    for size in (0, 1, 5):
        guessed = [Guess(own, size) for own in greedy]
        assert own_answers(model, READING, ASKED, guessed) == plain
    monkeypatch.setattr("dareu_jax.evaluation.suites.measure.by_length", None)
    whole = guesses(model, READING, [(q, "Yes.") for q in ASKED], [100] * 3)
    assert whole[0].tokens[-1] == model.tokenizer.eos_id
    assert own_answers(model, READING, ASKED, whole) == (["Yes."] * 3, [True] * 3)


def test_rounds_change_no_answer(model, monkeypatch):
    long = dataclasses.replace(READING, max_new_tokens=13)
    whole = own_answers(model, long, ASKED)
    monkeypatch.setattr("dareu_jax.evaluation.suites.measure.ROUND", 5)
    assert own_answers(model, long, ASKED) == whole


def test_answers_end_where_they_may_be_no_longer(model):
    known = [model.tokenizer.encode(" Ada Lind was born in Merawick.") for _ in ASKED]
    short = dataclasses.replace(READING, max_new_tokens=2)
    guessed = [Guess(own, len(own)) for own in known]
    said, ended = own_answers(model, short, ASKED, guessed)
    assert said == [model.tokenizer.decode(own[:2]).strip() for own in known]
    assert ended == [False] * 3
