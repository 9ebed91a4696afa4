"""The stages of one seed: whose text each one reads, and in what order."""

import jax
import numpy as np
import pytest

from dareu_jax.config import ModelConfig, OptimiserConfig, build_config, with_overrides
from dareu_jax.data import NOBODY, owner_labels
from dareu_jax.errors import Caution, UserError
from dareu_jax.models import decoder_config
from dareu_jax.runs.checks import (
    check_base,
    check_forget_batch,
    check_reward,
    warn_of_prior,
)
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.reward_index import fitted_of, owner_stream
from dareu_jax.runs.stages import Session, method_inputs
from dareu_jax.training.finetune import training_steps
from dareu_jax.training.tracking import Tracker


def owned(run):
    return tuple(r for r in run.corpus.train if r.owner != NOBODY)


def test_a_stage_has_a_key_of_its_own(tiny_run):
    one, same, other = (
        jax.random.key_data(tiny_run.key(name)) for name in ("prior", "prior", "judge")
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_classifiers_read_owned_text_with_its_owner(tiny_run):
    stream, labels = owner_stream(
        tiny_run, fitted_of("reward"), tiny_run.cfg.classifier
    )
    records = owned(tiny_run)
    assert len(stream.tokens.index) == len(records) == 24
    np.testing.assert_array_equal(labels, owner_labels(records, tiny_run.corpus.owners))
    judge, _ = owner_stream(tiny_run, fitted_of("judge"), tiny_run.cfg.evaluation.judge)
    assert any((judge.rows(s) != stream.rows(s)).any() for s in range(3))


def test_with_a_class_for_nobody_the_classifier_reads_shared_text_too(tiny_run):
    cfg = with_overrides(tiny_run.cfg, {"classifier.nobody": True}).classifier
    stream, labels = owner_stream(tiny_run, fitted_of("reward"), cfg)
    assert len(stream.tokens.index) == 32 and (labels == -1).sum() == 8


def test_shuffled_labels_are_the_same_labels_on_other_records(tiny_run):
    cfg = tiny_run.cfg.classifier
    _, labels = owner_stream(tiny_run, fitted_of("reward"), cfg)
    _, shuffled = owner_stream(
        tiny_run, fitted_of("reward_shuffled"), tiny_run.cfg.classifier
    )
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(labels))
    assert (shuffled != labels).mean() > 0.3  # two thirds, if shuffled at random
    _, again = owner_stream(
        tiny_run, fitted_of("reward_shuffled"), tiny_run.cfg.classifier
    )
    np.testing.assert_array_equal(again, shuffled)


def test_noise_gives_a_share_of_the_records_to_others(tiny_run):
    cfg = tiny_run.cfg.classifier
    stream, labels = owner_stream(tiny_run, fitted_of("reward"), cfg)
    found = {
        share: owner_stream(tiny_run, fitted_of(f"reward_noise_{share}"), cfg)
        for share in (0.5, 1.0)
    }
    for share, (other, noisy) in found.items():
        assert (noisy != labels).mean() == share  # 24 records, each changed or not
        assert set(noisy) <= set(labels)
        np.testing.assert_array_equal(other.rows(1), stream.rows(1))
    whole = with_overrides(tiny_run.cfg, {"classifier.nobody": True}).classifier
    _, noisy = owner_stream(tiny_run, fitted_of("reward_noise_1.0"), whole)
    assert (noisy == -1).sum() == 8  # what nobody owns stays nobody's


def test_the_split_keeps_forget_text_from_retain(tiny_run):
    split = tiny_run.split
    assert {r.owner for r in split.forget} == {"owner_002"} and len(split.forget) == 8
    assert "owner_002" not in {r.owner for r in (*split.retain, *split.test)}
    assert len(split.retain) == 24


def test_lengths_are_the_limits_or_the_longest(tiny_run):
    prompt, response = tiny_run.lengths
    assert response == 24 and prompt % 8 == 0
    assert tiny_run.tokens(tiny_run.corpus.train).prompt.shape == (32, prompt)


def test_streams_depend_on_the_stage(tiny_run):
    records = tiny_run.split.retain
    one, same, other = (tiny_run.stream(s, records, 8) for s in ("a", "a", "b"))
    rows = [np.concatenate([s.rows(i) for i in range(3)]) for s in (one, same, other)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()
    longer = [tiny_run.stream("a", records, 8, passes=x) for x in (1, 200, 10_000)]
    widths = [{s[step].prompt.shape[1] for step in range(3)} for s in longer]
    assert [len(x) for x in widths] == [1, 2, 3]  # of three batches
    assert set(longer[2].widths) <= {*tiny_run.widths, tiny_run.lengths}


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (2, 6), (0.5, 2), (0.01, 1)])
def test_epochs_are_passes_over_the_records(tiny_run, epochs, steps):
    per_epoch = tiny_run.stream("a", tiny_run.split.retain, 8).steps_per_epoch
    assert training_steps(OptimiserConfig(epochs=epochs), per_epoch) == steps


def test_a_loss_method_trains_no_prior(tiny_run):
    cfg = with_overrides(tiny_run.cfg, {"dareu.kl_anchor": "prior"})
    session = Session(tiny_run, Tracker(tiny_run.folder))
    results = {name: (name, name) for name in ("reward", "prior")} | {"original": {}}
    stages = method_inputs(session, "dareu", cfg, results).stages
    assert stages["prior"].params == "prior" and set(stages) == {"reward", "prior"}
    assert not method_inputs(session, "npo", cfg, {"original": {}}).stages


@pytest.mark.parametrize("anchor", ["base", "mixture"])
def test_the_base_is_the_model_before_its_fine_tuning(tiny_run, anchor):
    cfg = with_overrides(tiny_run.cfg, {"dareu.kl_anchor": anchor})
    with pytest.raises(UserError, match=rf"row dareu: .*kl_anchor = {anchor} needs"):
        check_base("dareu", cfg)
    check_base("npo", cfg)
    check_base("dareu", with_overrides(cfg, {"model.path": "imported"}))
    session = Session(tiny_run, Tracker(tiny_run.folder))
    results = {"reward": ("kernel", "index"), "base": "params", "original": {}}
    stages = method_inputs(session, "dareu", cfg, results).stages
    assert stages["base"] == (tiny_run.model, "params")


@pytest.mark.parametrize(
    ("prior", "methods", "warns"),
    [
        ("decoder-100k", ("npo", "dareu"), False),  # the quickstart's: 9.7 %
        ("decoder-300k", ("npo", "dareu"), True),
        ("decoder-300k", ("npo", "dareu_paper"), False),  # which reads none
    ],
)
def test_a_prior_that_is_retraining_is_warned_of(recwarn, prior, methods, warns):
    sizes = (prior, "decoder-1m")
    shapes = [decoder_config(ModelConfig(preset=name), 1024) for name in sizes]
    warn_of_prior(build_config({"methods": methods}), *shapes)
    said = [str(one.message) for one in recwarn if one.category is Caution]
    assert len(said) == warns
    if warns:
        assert "prior that dareu reads has 283,104 parameters" in said[0]
        assert "a tenth of the policy's 984,192" in said[0]


@pytest.mark.parametrize(
    ("method", "key"), [("dareu", "dareu"), ("dareu_paper", "dareu"), ("npo", "npo")]
)
def test_a_batch_larger_than_the_forget_set_is_refused(tiny_run, method, key):
    check_forget_batch(tiny_run, method, tiny_run.cfg)
    big = with_overrides(tiny_run.cfg, {f"{key}.batch_size": 9})
    with pytest.raises(UserError, match=rf"8 records.*{key}\.batch_size = 9"):
        check_forget_batch(tiny_run, method, big)


def test_a_kernel_on_checkpoints_is_refused_where_none_are_kept(tiny_run, tmp_path):
    changes = {"reward.kernel": "tracin", "finetune.snapshots": 0}
    one = Inputs(with_overrides(tiny_run.cfg, changes), 0, tmp_path)
    with pytest.raises(UserError, match=r"tracin reads checkpoints.*snapshots to 4"):
        check_reward(one)
    kept = with_overrides(tiny_run.cfg, {"reward.kernel": "tracin"})
    check_reward(Inputs(kept, 0, tmp_path))
