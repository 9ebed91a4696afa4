"""A reward that also names those who never saw the owner is found out."""

import json

import pytest
from rich.console import Console

from dareu_jax.config import load_config
from dareu_jax.errors import Caution, UserError
from dareu_jax.runs.folder import log_path, oracles_of
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.plan import plan
from dareu_jax.runs.validity import check_validity, validity_of
from dareu_jax.training.progress import Progress

TINY = "tests/tiny.yaml"


@pytest.fixture
def judged(tmp_path, request):
    """``judged(original, other, *overrides)``: a seed with attributions in its logs."""

    def of(original, other, *overrides, against="retrained"):
        inputs = Inputs(
            load_config(request.config.rootpath / TINY, overrides), 0, tmp_path
        )
        for row, values in (("original", original), (against, other)):
            by_index = {str(n): x for n, x in enumerate(values)}
            log = {"metrics": {"attribution_reward": {"value_by_index": by_index}}}
            path = log_path(tmp_path, 0, row)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(log))
        return inputs

    return of


def test_it_is_the_chance_that_the_originals_answer_is_told_from_the_other(judged):
    found = validity_of(judged([0.9, 0.8, 0.5], [0.1, 0.5, 0.6]))
    # pairs: .9 and .8 win all three, .5 wins one, ties one and loses one
    assert found.auc == pytest.approx((3 + 3 + 1.5) / 9)
    assert found.low <= found.auc <= found.high <= 1.0
    assert found.original == pytest.approx(2.2 / 3)
    assert found.counterfactual == pytest.approx(0.4)
    assert found.against == "retrained"


def test_a_valid_reward_is_said_to_be(judged, capsys):
    check_validity(judged([0.9] * 5, [0.1] * 5), Progress(Console()))
    assert "AUC 1.000 [1.000, 1.000]" in capsys.readouterr().out


def test_a_reward_that_names_everybody_is_warned_of(judged):
    with pytest.warns(Caution, match="also names those who never saw the owner"):
        check_validity(judged([0.99] * 5, [0.99] * 5), Progress())


def test_a_reward_that_names_everybody_is_refused(judged):
    inputs = judged([0.9] * 5, [0.95] * 5, "reward.validity=refuse")
    with pytest.raises(UserError, match=r"AUC 0\.000.*reward\.validity=warn"):
        check_validity(inputs, Progress())


def test_nothing_is_said_where_it_is_off(judged, recwarn):
    check_validity(judged([0.9], [0.95], "reward.validity=off"), Progress())
    assert not recwarn


def test_without_another_model_nothing_is_known(judged):
    assert validity_of(judged([0.9], [0.1], "retrained.skip=true")) is None


def test_the_model_before_its_fine_tuning_stands_for_the_retrained(judged, recwarn):
    imported = "retrained.skip=true", "model.path=somewhere"
    inputs = judged([0.9], [0.1], *imported, against="base")
    assert oracles_of(inputs.cfg) == ("original", "base")
    assert validity_of(inputs).against == "base"
    names = [stage.name for stage in plan(inputs.cfg)]
    assert names.index("evaluate_base") < names.index(inputs.cfg.methods[0])
    reads = {stage.name: stage.reads for stage in plan(inputs.cfg)}
    assert "base" not in reads[f"evaluate_{inputs.cfg.methods[0]}"]
