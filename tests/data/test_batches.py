import numpy as np
import pytest

from dareu_jax.data import (
    NOBODY,
    BatchStream,
    Record,
    TokenBatch,
    Wording,
    fit_lengths,
    load_tokenizer,
    owner_labels,
    sequential,
    tokenise,
)
from dareu_jax.errors import UserError

RECORDS = [
    Record("1", "adam", "Who?", "Me."),
    Record(
        "2", "beth", "Who was born in the year of the great storm?", "Nobody I know."
    ),
    Record("3", NOBODY, "Where {is} it?", "It is here, where it always was, I think."),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers") / "bpe"
    texts = [text for r in RECORDS for text in (r.prompt, r.response)]
    return load_tokenizer(None, texts, 280, folder)


def rows(count: int) -> TokenBatch:
    """Returns `count` records whose first token is their row."""
    column = np.arange(count, dtype=np.int32)[:, None]
    full = np.ones_like(column, np.bool_)
    return TokenBatch(column, full, column, full, column[:, 0])


def test_layout_of_prompts_and_responses(tokenizer):
    batch = tokenise(RECORDS, tokenizer, max_prompt=96, max_response=64)
    assert batch.prompt.shape == batch.prompt_mask.shape == (3, 96)
    assert batch.response.shape == batch.response_mask.shape == (3, 64)
    assert {a.dtype for a in batch[:5]} == {np.dtype(np.int32), np.dtype(np.bool_)}
    assert batch.own is None  # a kernel looks at all of a response
    np.testing.assert_array_equal(batch.index, [0, 1, 2])
    for row, record in enumerate(RECORDS):
        prompt = batch.prompt[row][batch.prompt_mask[row]]
        response = batch.response[row][batch.response_mask[row]]
        assert prompt[0] == tokenizer.bos_id
        assert response[-1] == tokenizer.eos_id
        assert tokenizer.decode(prompt) == f"Question: {record.prompt}\nAnswer:"
        assert tokenizer.decode(response) == " " + record.response


def test_prompts_pad_left_and_responses_right(tokenizer):
    batch = tokenise(RECORDS, tokenizer, max_prompt=96, max_response=64)
    assert (np.diff(batch.prompt_mask.astype(int)) >= 0).all()
    assert (np.diff(batch.response_mask.astype(int)) <= 0).all()
    assert (batch.prompt[~batch.prompt_mask] == tokenizer.pad_id).all()
    assert (batch.response[~batch.response_mask] == tokenizer.pad_id).all()


def test_prompt_and_response_tokens_join_to_the_tokens_of_the_whole(tokenizer):
    batch = tokenise(RECORDS[:1], tokenizer, max_prompt=64, max_response=64)
    parts = [*batch.prompt[batch.prompt_mask], *batch.response[batch.response_mask]]
    whole = tokenizer.encode("Question: Who?\nAnswer: Me.")
    assert parts == [tokenizer.bos_id, *whole, tokenizer.eos_id]


def test_fit_lengths_are_the_smallest_multiples(tokenizer):
    max_prompt, max_response = fit_lengths(RECORDS, tokenizer)
    batch = tokenise(
        RECORDS, tokenizer, max_prompt=max_prompt, max_response=max_response
    )
    for width, mask in (
        (max_prompt, batch.prompt_mask),
        (max_response, batch.response_mask),
    ):
        assert width % 8 == 0
        assert width - 8 < mask.sum(axis=1).max() <= width
    assert fit_lengths([], tokenizer, multiple=4) == (4, 4)


def test_too_long_records_are_counted_and_the_keys_named(tokenizer):
    with pytest.raises(UserError) as error:
        tokenise(RECORDS, tokenizer, max_prompt=96, max_response=20)
    longest = len(tokenizer.encode(" " + RECORDS[2].response)) + 1
    for word in (
        "1 of 3 responses",
        "corpus.max_response_tokens=20",
        f"longest has {longest} tokens",
        f"corpus.max_response_tokens={longest}",
        "corpus.truncate=true",
    ):
        assert word in str(error.value)
    with pytest.raises(UserError, match=r"3 of 3 prompts.*corpus\.max_prompt_tokens=2"):
        tokenise(RECORDS, tokenizer, max_prompt=2, max_response=64)


def test_truncate_keeps_the_prompt_tail_and_the_response_head(tokenizer):
    whole = tokenise(RECORDS, tokenizer, max_prompt=96, max_response=64)
    cut = tokenise(RECORDS, tokenizer, max_prompt=12, max_response=8, truncate=True)
    assert cut.prompt_mask.all()
    np.testing.assert_array_equal(cut.prompt[:, 0], tokenizer.bos_id)
    np.testing.assert_array_equal(cut.prompt[:, 1:], whole.prompt[:, -11:])
    np.testing.assert_array_equal(cut.response, whole.response[:, :8])
    assert tokenizer.eos_id not in cut.response[2]


def test_a_template_without_a_place_for_the_prompt_is_an_error(tokenizer):
    with pytest.raises(UserError, match=r"template 'Q: A:' lacks \{prompt\}"):
        tokenise(RECORDS, tokenizer, Wording("Q: A:"), max_prompt=96, max_response=64)


def test_no_records_make_an_empty_batch(tokenizer):
    batch = tokenise([], tokenizer, max_prompt=8, max_response=8)
    assert batch.prompt.shape == (0, 8) and batch.index.shape == (0,)
    assert list(sequential(batch, 4)) == []


@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_an_epoch_shows_every_record_once(batch_size):
    stream = BatchStream(rows(12), batch_size, seed=0)
    orders = []
    for epoch in range(3):
        first = epoch * stream.steps_per_epoch
        seen = [stream[first + s].index for s in range(stream.steps_per_epoch)]
        orders.append(np.concatenate(seen))
        np.testing.assert_array_equal(np.sort(orders[-1]), np.arange(12))
    assert (orders[0] != orders[1]).any() and (orders[1] != orders[2]).any()


@pytest.mark.parametrize(("count", "size"), [(10, 4), (3, 8), (7, 7), (25, 4)])
def test_records_take_turns_to_fill_up_the_last_batch(count, size):
    stream, seen = BatchStream(rows(count), size, seed=3), np.zeros(count, int)
    steps = stream.steps_per_epoch
    assert steps == -(-count // size)
    for epoch in range(5):
        order = [stream.rows(epoch * steps + at) for at in range(steps)]
        now = np.bincount(np.concatenate(order), minlength=count)
        seen += now
        assert now.min() >= 1 and np.ptp(now) <= 1 and np.ptp(seen) <= 1


def test_any_step_can_be_asked_for_in_any_order():
    stream, again = BatchStream(rows(50), 8, seed=7), BatchStream(rows(50), 8, seed=7)
    forward = [stream[step].index for step in range(30)]
    for step in (29, 3, 17, 0):
        np.testing.assert_array_equal(again[step].index, forward[step])
    assert (BatchStream(rows(50), 8, seed=8)[0].index != forward[0]).any()


def test_owners_of_a_batch_follow_its_rows():
    owners = np.arange(20, dtype=np.int32) // 5
    stream = BatchStream(rows(20), 6, seed=0, owners=owners)
    np.testing.assert_array_equal(owners[stream.rows(9)], stream[9].index // 5)


def test_nothing_to_batch_is_an_error():
    with pytest.raises(ValueError, match="0 records by 4"):
        BatchStream(rows(0), 4, seed=0)


def test_sequential_keeps_the_shape_and_says_how_many_count():
    batches = list(sequential(rows(10), 4))
    assert [valid for _, valid in batches] == [4, 4, 2]
    assert all(len(batch.index) == 4 for batch, _ in batches)
    seen = np.concatenate([batch.index[:valid] for batch, valid in batches])
    np.testing.assert_array_equal(seen, np.arange(10))
    ((padded, valid),) = sequential(rows(3), 8)
    np.testing.assert_array_equal(padded.index, [0, 1, 2, 0, 1, 2, 0, 1])
    assert valid == 3


def test_owner_labels():
    labels = owner_labels(RECORDS, ("beth", "adam"))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [1, 0, -1])
    with pytest.raises(ValueError, match="adam"):
        owner_labels(RECORDS, ("beth",))
