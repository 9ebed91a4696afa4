"""The stages of a seed: their order, what they read, what is still to do."""

import pytest

from dareu_jax.config import load_config
from dareu_jax.errors import UserError
from dareu_jax.registry import METHODS
from dareu_jax.runs import pipeline
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.plan import Planned, outstanding, plan
from dareu_jax.runs.reward_index import Fitted, fitted_of
from dareu_jax.runs.stages import Session
from dareu_jax.training.tracking import Tracker


def planned(tiny, *overrides):
    return plan(load_config(tiny, overrides))


@pytest.fixture(scope="module")
def tiny(request):
    return request.config.rootpath / "tests" / "tiny.yaml"


def names(stages):
    return [stage.name for stage in stages]


def test_the_stages_of_a_seed_stand_in_running_order(tiny):
    assert names(planned(tiny, "methods=[npo, dareu, dareu_shuffled]")) == [
        *("original", "reward", "judge", "retrained"),
        *("evaluate_original", "evaluate_retrained"),
        *("npo", "evaluate_npo"),
        *("prior", "dareu", "evaluate_dareu"),
        *("reward_shuffled", "dareu_shuffled", "evaluate_dareu_shuffled"),
    ]


def test_without_an_oracle_nothing_is_retrained(tiny):
    stages = planned(tiny, "methods=[npo]", "retrained.skip=true")
    assert "retrained" not in names(stages)
    assert all("retrained" not in stage.reads for stage in stages)


def test_a_stage_reads_only_what_stands_before_it(tiny):
    stages = planned(tiny, f"methods=[{','.join(METHODS.names())}]")
    assert len(set(names(stages))) == len(stages)
    for at, stage in enumerate(stages):
        assert set(stage.reads) <= set(names(stages[:at])), stage


def test_every_index_of_the_plan_says_what_it_trains(tiny):
    rows = {
        "dareu_shuffled": {"reward.keep_echo": True},
        "dareu_noise": {"reward.label_noise": 1e-5, "reward.keep_echo": True},
    }
    methods = f"methods=[{','.join(METHODS.names())}]"
    stages = planned(tiny, methods) + planned(tiny, methods, f"overrides={rows}")
    found = {s.name: fitted_of(s.name) for s in stages if s.kind == "index"}
    shuffled, plain = "classifier_shuffled", "classifier"
    assert found == {
        "reward": Fitted(plain, plain),
        "reward_echo": Fitted(plain, plain, keeps_echo=True),
        "reward_shuffled": Fitted(plain, shuffled, shuffles=True),
        "reward_shuffled_echo": Fitted(plain, shuffled, True, keeps_echo=True),
        "reward_noise_0.51": Fitted(plain, plain, noise=0.51),
        "reward_noise_1e-05_echo": Fitted(plain, plain, noise=1e-5, keeps_echo=True),
        "judge": Fitted("judge", "judge"),
    }
    for name in ("retrained", "rewarded", "reward_noise_x", "reward_echo_noise_0.5"):
        assert fitted_of(name) is None


def test_the_papers_reward_reads_what_others_are_not_shown(tiny):
    stages = {x.name: x for x in planned(tiny, "methods=[dareu, dareu_paper]")}
    assert "reward_echo" in stages["dareu_paper"].reads
    assert "reward" in stages["dareu"].reads
    kept = planned(tiny, "methods=[dareu_paper]", "attribution.echo=keep")
    assert "reward_echo" not in names(kept)


def test_the_pipeline_runs_down_the_plan(tiny, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(pipeline, "carry_out", lambda *a: ran.append(a[1].name))
    monkeypatch.setattr(pipeline, "suite_of", lambda *a: "suite")
    monkeypatch.setattr(pipeline, "evaluate", lambda *a: ran.append(f"evaluate_{a[2]}"))
    monkeypatch.setattr(pipeline, "check_validity", lambda *a: ran.append("checked"))
    cfg = load_config(tiny, ["methods=[dareu, npo]"])
    session = Session(Inputs(cfg, 0, tmp_path), Tracker(tmp_path))
    assert pipeline.run_seed(session)
    first = ran.index("checked")
    assert [*ran[:first], *ran[first + 1 :]] == names(plan(cfg))
    assert ran[first + 1] == "dareu"


def test_of_a_finished_run_nothing_is_asked_for(tiny):
    asked = []

    def is_done(stage):
        asked.append(stage.name)
        return True

    assert outstanding(planned(tiny), is_done) == {}
    assert all(name.startswith("evaluate_") for name in asked)


def test_one_missing_evaluation_loads_what_it_reads_and_runs_nothing_else(tiny):
    stages = planned(tiny, "methods=[dareu, npo]")
    todo = outstanding(stages, lambda stage: stage.name != "evaluate_npo")
    assert todo == {
        **dict.fromkeys(("original", "reward", "judge", "retrained", "npo"), False),
        "evaluate_npo": True,
    }


def test_a_missing_method_runs_with_what_it_reads(tiny):
    stages = planned(tiny, "methods=[dareu, npo]")
    gone = {"dareu", "evaluate_dareu", "prior"}
    todo = outstanding(stages, lambda stage: stage.name not in gone)
    assert {name for name, runs in todo.items() if runs} == gone
    assert "npo" not in todo


def test_a_method_with_the_name_of_a_stage_is_refused(tiny, monkeypatch):
    entry = METHODS.get("npo")
    monkeypatch.setitem(METHODS._entries, "judge", entry)
    with pytest.raises(UserError, match="'judge' is the name of a stage"):
        planned(tiny, "methods=[judge]")


def test_a_stage_is_called_by_its_result_or_its_label():
    assert Planned("original", "model").label == "finetune_original"
    assert Planned("reward", "index").label == "reward"
    assert Planned("evaluate_npo", "evaluation").row == "npo"
