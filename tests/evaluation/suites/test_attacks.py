"""Attacks that need more than one forward pass of one model."""

import jax
import numpy as np
import pytest

from dareu_jax.data import Wording, load_tokenizer
from dareu_jax.errors import UserError
from dareu_jax.evaluation.metrics.membership import ATTACKS, gradnorm
from dareu_jax.evaluation.suites.attacks import attacks_named
from dareu_jax.evaluation.suites.judge import Judge
from dareu_jax.evaluation.suites.kept import Kept
from dareu_jax.evaluation.suites.measure import Reading, answer_losses, as_tokens
from dareu_jax.runs.benchmark import Asked, alike

pytestmark = pytest.mark.slow

READING = Reading(Wording(), 1, 4)
PAIRS = [
    ("Where was Ada born?", "Ada Lind was born in Merawick by the sea."),
    ("Where was Cy born?", "Cy Dole was never born, says Bo."),
]


def halved(model, name):
    """Another model of the same shape."""
    params = jax.tree.map(lambda x: x / 2, model.params)
    return model._replace(params=params, fingerprint=name)


@pytest.fixture
def judge(model, tmp_path):
    return Judge(
        model, READING, Kept(tmp_path, "x"), tuple(ATTACKS), halved(model, "one")
    )


def test_reference_and_gradnorm_are_those_of_every_text_alone(judge):
    found, model = judge.memory("forget", PAIRS), judge.model
    own, others = (
        np.concatenate([answer_losses(one, READING, [pair]).loss for pair in PAIRS])
        for one in (model, judge.reference)
    )
    np.testing.assert_allclose(found["loss"], own, rtol=1e-5)
    np.testing.assert_allclose(found["reference"], own - others, rtol=1e-4, atol=1e-6)
    for pair, norm in zip(PAIRS, found["gradnorm"], strict=True):
        batch = as_tokens(model, READING, [pair])
        mask = batch.response_mask.copy()
        mask[0, mask[0].sum() - 1] = False  # the end of text
        alone = batch._replace(response_mask=mask)
        wanted = gradnorm(model.decoder, model.params, model.place(alone))
        assert norm == pytest.approx(float(wanted[0]), rel=1e-5)
    assert set(found) == {*ATTACKS, "exact_memorization", "extraction_strength"}


def test_parts_depend_on_the_weights_of_the_reference(judge, monkeypatch):
    first = judge.memory("forget", PAIRS)

    def never(*_, **__):
        raise AssertionError("measured again")

    for name in ("memory_scores", "gradient_norms", "mean_losses"):
        monkeypatch.setattr(f"dareu_jax.evaluation.suites.judge.{name}", never)
    again = judge.memory("forget", PAIRS)
    assert all((again[name] == scores).all() for name, scores in first.items())
    judge.reference = halved(judge.model, "another")
    with pytest.raises(AssertionError, match="measured again"):
        judge.memory("forget", PAIRS)


def test_attacks_by_default_need_what_is_there():
    forward = ("loss", "zlib", "min_k", "min_k_plus_plus")
    assert attacks_named(None, has_reference=False) == forward
    assert attacks_named(None, has_reference=True) == (*forward, "reference")
    assert attacks_named(["gradnorm", "loss", "loss"], False) == ("gradnorm", "loss")


def test_a_reference_that_reads_other_tokens_is_refused(model, tmp_path):
    other = load_tokenizer(None, ["other words altogether"] * 9, 300, tmp_path / "t")
    asked = Asked(tmp_path, "tofu", tmp_path, reference_model=tmp_path / "other")
    assert alike(asked, model, model) is model
    with pytest.raises(UserError, match="other has another tokenizer than"):
        alike(asked, model, model._replace(tokenizer=other))
