"""Attributors: scores as kernels give them, owners that come and go, top records."""

import dataclasses

import jax
import numpy as np
import pytest

from dareu_jax import data
from dareu_jax.attribution import OwnerBatch, Setup, attribute, build_index, single
from dareu_jax.attribution.echo import echo_of, make_kernel
from dareu_jax.attribution.kernel import placed_index
from dareu_jax.config import AttributionConfig, ClassifierConfig
from dareu_jax.data import Record, owner_labels
from dareu_jax.data.ownership import SharedRecord
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, decoder_config
from dareu_jax.parallel import make_mesh

pytestmark = pytest.mark.slow

QUERIES = [
    ("What did alice have in 1991?", "It was a bakery by the bridge, 3 times."),
    ("Who played?", "It was carol, in Vienna."),
    ("", "A net in the harbour of Merawick."),
]
OWNERS = ("alice", "bob", "carol")


def near(found, wanted, size=None):
    """Within 2e-5 of the largest number, or of ``size``."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    size = abs(wanted).max() if size is None else size
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * size)


def of(records, *names):
    """The records of some owners."""
    return [record for record in records if record.owner in names]


def tokens_of(model, records):
    lengths = data.fit_lengths(records, model.tokenizer, multiple=32)
    return data.tokenise(
        records, model.tokenizer, max_prompt=lengths[0], max_response=lengths[1]
    )


def by_hand(made, name):
    """Scores of QUERIES by the kernel's own functions, the records in order."""
    model, options, text = made.model, made.options, tokens_of(made.model, made.records)
    vocab, dropout = model.decoder.cfg.vocab, options.classifier.dropout
    shape = decoder_config(options.classifier.model, vocab)
    backbone = Decoder(dataclasses.replace(shape, dropout=dropout))
    setup = Setup(
        model.decoder, 3, AttributionConfig(), options.classifier, 2, backbone
    )
    echo = echo_of(setup.cfg, model.tokenizer, vocab)
    kernel, labels = make_kernel(name, setup, echo), owner_labels(made.records, OWNERS)
    stream = data.BatchStream(text, 8, 0)
    rows = [stream.once(step)[0] for step in range(2)]
    if name == "classifier":  # two epochs of one batch of all 16
        stream = data.BatchStream(text, 16, 0)
        rows = [stream.rows(step) for step in range(2)]
    batches = [OwnerBatch(data.take(text, at), labels[at]) for at in rows]
    if name != "classifier":
        batches[1].owner[-1] = -1  # the first record again, to fill the batch
    asked = [Record("", "", *pair) for pair in [*QUERIES, *QUERIES[:1] * 5]]
    there = dataclasses.replace(
        kernel,
        init=lambda params, *, key: placed_index(
            kernel, kernel.init(params, key=key), model.mesh
        ),
    )
    with jax.set_mesh(model.mesh):
        each, key = [model.place(batch) for batch in batches], jax.random.key(0)
        index = build_index(there, model.params, each, key=key)
        queries = model.place(tokens_of(model, asked))
        return jax.jit(kernel.score)(model.params, index, queries)[:3]


@pytest.mark.parametrize("name", ["grad_dot", "ekfac", "bm25", "classifier"])
def test_scores_are_those_of_the_kernel_itself(built, name):
    scores = built(name).score(QUERIES)
    assert scores.shape == (3, 3) and scores.dtype == np.float32
    near(scores, by_hand(built(name), name))


@pytest.mark.parametrize("name", ["grad_dot", "ekfac"])
def test_owners_scored_a_few_at_a_time_score_as_all_at_once(built, name):
    sliced = built(name).in_slices(2)  # the last slice has one owner of its own
    held = [leaf for leaf in jax.tree.leaves(sliced.index) if leaf.ndim]
    assert not any(isinstance(leaf, jax.Array) for leaf in held)
    scores = built(name).score(QUERIES)
    error = np.abs(sliced.score(QUERIES) - scores).max()
    assert error <= 1e-6 * np.abs(scores).max()


def test_an_owner_scores_the_mean_of_its_records(in_threes, built):
    made = built("grad_dot")
    named = made.top_records(QUERIES, 15)
    for row, whole in zip(named, made.score(QUERIES), strict=True):
        assert [n.score for n in row] == sorted((n.score for n in row), reverse=True)
        own = [[n.score for n in row if n.record.owner == owner] for owner in OWNERS]
        assert [len(scores) for scores in own] == [5, 5, 5]
        near(whole, np.mean(own, axis=1), size=abs(np.array(own)).max())


@pytest.mark.parametrize("name", ["grad_dot", "bm25"])
def test_the_top_records_of_an_owner_are_the_best_of_its_own(in_threes, built, name):
    made = built(name)
    every = made.top_records(QUERIES, 15)
    for row, own in zip(every, made.top_records(QUERIES, 2, "bob"), strict=True):
        wanted = [n for n in row if n.record.owner == "bob"][:2]
        assert [n.record for n in own] == [n.record for n in wanted]
        near([n.score for n in own], [n.score for n in wanted])


@pytest.mark.parametrize("name", ["grad_dot", "bm25"])
def test_a_copied_record_is_its_own_top_record(in_threes, records, built, name):
    pairs = [(r.prompt, r.response) for r in records[3:6]]
    named = built(name).top_records(pairs, 1)
    assert [row[0].record.id for row in named] == ["alice-3", "alice-4", "bob-0"]


def test_words_are_compared_among_all_records_at_once(monkeypatch, built):
    """BM25 weighs a word by how many records have it, however many fit in memory."""
    before = built("bm25").top_records(QUERIES, 15)
    monkeypatch.setattr(single, "BLOCK_BYTES", 1)
    assert built("bm25").top_records(QUERIES, 15) == before


def test_an_owner_added_scores_as_if_there_from_the_start(model, records, built):
    first = attribute(model, of(records, "alice", "bob"), kernel="bm25")
    more = first.add(of(records, "carol"))
    assert more.owners == OWNERS and first.owners == OWNERS[:2]
    near(more.score(QUERIES), built("bm25").score(QUERIES))
    assert more.top_records(QUERIES, 1)[1][0].record.owner == "carol"


@pytest.mark.parametrize("name", ["grad_dot", "bm25"])
def test_records_added_to_a_known_owner_count_as_much_as_the_first(
    model, records, built, name
):
    first = attribute(model, [r for r in records if r.id != "bob-4"], kernel=name)
    more = first.add([r for r in records if r.id == "bob-4"])
    assert more.held == built(name).held
    near(more.score(QUERIES), built(name).score(QUERIES))


@pytest.mark.parametrize("name", ["bm25", "ngram"])
def test_an_owner_removed_leaves_no_trace(model, records, built, name):
    fewer = built(name).remove("bob")
    fresh = attribute(model, of(records, "alice", "carol"), kernel=name)
    assert fewer.owners == fresh.owners == ("alice", "carol")
    assert fewer.held == fresh.held and fewer.records == fresh.records
    near(fewer.score(QUERIES), fresh.score(QUERIES))


def test_a_fitted_curvature_stays_when_owners_go_and_come_back(records, built):
    made = built("ekfac")
    again = made.remove("bob").add(of(records, "bob"))
    assert again.owners == ("alice", "carol", "bob")
    near(again.score(QUERIES), made.score(QUERIES)[:, [0, 2, 1]])


@pytest.mark.parametrize("name", ["grad_dot", "bm25"])
def test_indices_merged_score_as_one_of_all_records(model, records, built, name):
    """An owner in both has the records of both."""
    odd = attribute(model, records[1::2], kernel=name)
    even = attribute(model, records[0::2], kernel=name)
    whole = even.merge(odd)
    assert whole.owners == OWNERS and whole.held == built(name).held
    near(whole.score(QUERIES), built(name).score(QUERIES))


def test_weights_count_by_their_share(in_threes, model, records):
    """G = (sum of w g) / (sum of w): 1 and 0.25 of alice's, 1 and 0.75 of bob's."""
    own = [r for r in records if r.id in ("alice-4", "bob-0", "carol-0")]
    text = ("What is there?", "A harbour with a shop.")
    shared = SharedRecord("both", "alice", *text, (("alice", 0.25), ("bob", 0.75)))
    made = attribute(model, [*own, shared])
    named = made.top_records(QUERIES, 4)
    for row, scores in zip(named, made.score(QUERIES), strict=True):
        score = {n.record.id: n.score for n in row}
        alice = (score["alice-4"] + 0.25 * score["both"]) / 1.25
        bob = (score["bob-0"] + 0.75 * score["both"]) / 1.75
        near(scores, [alice, bob, score["carol-0"]])


def test_a_shared_record_stays_with_the_others_when_one_owner_goes(model, records):
    both = SharedRecord("both", "alice", "", "A shop.", (("alice", 0.5), ("bob", 0.5)))
    made = attribute(model, [*of(records, "alice", "carol"), both], kernel="bm25")
    fewer = made.remove("alice")
    left = dataclasses.replace(both, owner="bob", shares=(("bob", 0.5),))
    assert fewer.owners == ("carol", "bob") and fewer.records[-1] == left
    fresh = attribute(model, [*of(records, "carol"), left], kernel="bm25")
    near(fewer.score(QUERIES), fresh.score(QUERIES))


def test_tracin_is_grad_dot_at_checkpoints_by_weight(model, records, built):
    made = attribute(model, records, snapshots=[(model.params, 1.5)], kernel="tracin")
    near(made.score(QUERIES), 1.5 * built("grad_dot").score(QUERIES))


def test_a_batch_size_that_devices_do_not_divide_is_rounded_up(model):
    assert model.rows(3) == 3
    eight = model._replace(mesh=make_mesh(2, 4, 1))
    assert [eight.rows(size) for size in (1, 8, 9)] == [8, 8, 16]


def test_an_answer_of_the_model_is_one_it_can_be_asked_about(built):
    made = built("bm25")
    answers = made.answer(["What did bob have?", "Who played?"], 6)
    assert len(answers) == 2 and answers == made.answer(
        ["What did bob have?", "Who played?"], 6
    )
    assert np.isfinite(made.score([("What did bob have?", answers[0])])).all()


def test_text_without_a_prompt_follows_the_end_of_another(model, records):
    """Without bos, and with a template that adds nothing, a prompt has no token."""
    bare = model._replace(tokenizer=dataclasses.replace(model.tokenizer, bos_id=None))
    text = [dataclasses.replace(record, prompt="") for record in records]
    made = attribute(
        bare, text, wording=data.Wording("{prompt}"), kernel="representation"
    )
    tokens = made.tokens(text)
    assert tokens.prompt_mask.sum(axis=1).tolist() == [1] * 16
    assert set(tokens.prompt[tokens.prompt_mask]) == {model.tokenizer.eos_id}
    assert np.isfinite(made.score(QUERIES)).all()


def test_what_does_not_add_up_cannot_be_changed(built, records):
    made = built("classifier")
    for change in (
        lambda: made.add(records[:1]),
        lambda: made.remove("bob"),
        lambda: made.merge(made),
        lambda: made.top_records(QUERIES),
    ):
        with pytest.raises(UserError, match="does not add up over owners"):
            change()


def test_a_classifier_takes_one_owner_a_record(model, records):
    both = SharedRecord("both", "alice", "", "A shop.", (("alice", 0.5), ("bob", 0.5)))
    with pytest.raises(UserError, match="record 'both' is shared"):
        attribute(model, [*records, both], kernel="classifier")


def test_unknown_owners_are_named_with_the_known(built):
    made = built("grad_dot")
    for ask in (made.remove, lambda name: made.top_records(QUERIES, 1, name)):
        with pytest.raises(UserError, match=r"no owner 'alise' .*'alice'.*bob, carol"):
            ask("alise")
    with pytest.raises(UserError, match="only owner"):
        made.remove("bob").remove("carol").remove("alice")


def test_the_same_records_cannot_be_added_twice(built, records):
    made = built("grad_dot")
    for twice in (lambda: made.add(of(records, "bob")), lambda: made.merge(made)):
        with pytest.raises(UserError, match="count twice"):
            twice()


def test_indices_of_other_options_do_not_merge(model, records, built):
    other = AttributionConfig(projection_seed=1)
    bob = attribute(model, of(records, "bob"), kernel="bm25", attribution=other)
    with pytest.raises(UserError, match="different models or options"):
        built("bm25").remove("bob").merge(bob)


def test_indices_of_one_curvature_merge_and_of_two_do_not(model, records, built):
    made = built("ekfac")
    whole = made.remove("bob").merge(made.remove("alice").remove("carol"))
    near(whole.score(QUERIES), made.score(QUERIES)[:, [0, 2, 1]])
    half = attribute(model, records[::2], kernel="ekfac")
    with pytest.raises(UserError, match="fitted to different ones"):
        made.merge(half)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "grad_dott"}, "unknown kernel"),
        ({"kernel": "tracin"}, "snapshots"),
        ({"batch_size": 0}, "at least 1"),
        ({"classifier": ClassifierConfig(lora={})}, "classifier.lora"),
    ],
)
def test_options_that_cannot_be_used(model, records, options, message):
    with pytest.raises(UserError, match=message):
        attribute(model, records, **options)


def test_somebody_must_own_something(model):
    with pytest.raises(UserError, match="no record has an owner"):
        attribute(model, [Record("a", "", "", "The sky is blue.")])
