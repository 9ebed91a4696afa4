"""What a run needs per device, and the configurations that no test can run."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from dareu_jax.config import build_config, load_config, with_overrides
from dareu_jax.errors import Caution, UserError
from dareu_jax.models import abstract_params, decoder_config, split
from dareu_jax.models.scoring import LOGITS_AT_ONCE
from dareu_jax.parallel import named_leaves
from dareu_jax.registry import KERNELS, METHODS, MODELS
from dareu_jax.runs.estimate import GIB, estimate, read_chips
from dareu_jax.runs.plan import plan
from dareu_jax.unlearning import Method, Need, method_config, reads_of

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
STUDIES = sorted((REPO / "experiments").glob("*/config.yaml"))
LARGE = ("tofu_llama2_7b", "tofu_qwen3_8b", "arxiv_llama2_7b", "tofu_llama32_1b")
PARAMETERS = {  # as their authors count them
    "llama2-7b": 6_738_415_616,
    "tinyllama-1.1b": 1_100_048_384,
    "llama32-1b": 1_235_814_400,
    "qwen3-8b": 8_190_735_360,
    "qwen3-0.6b": 596_049_920,
}
SEVEN = {"preset": "llama2-7b", "path": "not/there", "remat": True}


CHIP = read_chips("v5e-4")
SIZES = {"max_prompt_tokens": 64, "max_response_tokens": 64}
MERGED = {"corpus": {**SIZES, "forget": ["author_199"], "merge_others": True}}
"""Two owners, known without the corpus."""


def large(**changes):
    """A run of Llama-2-7b with adapters, imported later."""
    tree = {
        "methods": ["dareu_paper"],
        "model": SEVEN,
        "lora": {},
        "corpus": SIZES,
        "mesh": {"data": 1, "fsdp": -1},
        **changes,
    }
    return build_config(tree)


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.parent.name)
def test_every_configuration_parses(study):
    cfg = load_config(study)
    assert cfg.scale.endswith(".") and cfg.corpus.forget
    assert all(method_config(cfg, name).seeds == cfg.seeds for name in cfg.methods)


@pytest.mark.parametrize("chips", ["v5e-16", "v5p-8", "v6e-8"])
@pytest.mark.parametrize("study", LARGE)
def test_the_large_configurations_fit_their_chips(study, chips):
    cfg = load_config(REPO / "experiments" / study / "config.yaml")
    found = estimate(cfg, read_chips(chips))
    assert found.fits and found.held["weights"] > 0.1 * GIB
    names = {row.name for row in found.rows}
    assert {"classifier", "rollout", "PPO update", "distillation"} <= names


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_of_large_models_have_their_parameters(name):
    assert MODELS.get(name)["vocab"] > 30_000
    one = large(model={**SEVEN, "preset": name}, lora=None, methods=["npo"])
    held = estimate(one, read_chips("v5p-2")).held
    assert held["weights"] == 2 * PARAMETERS[name]  # bfloat16
    # a float32 master and two float32 moments of each
    assert held["optimiser"] == pytest.approx(6 * held["weights"], abs=64)


def test_sharing_a_base_saves_it():
    apart = large(classifier={"model": {**SEVEN, "path": "another"}, "lora": {}})
    same = large(classifier={"model": SEVEN, "lora": {}})
    held = [estimate(cfg, read_chips("v5e-16")).held for cfg in (apart, same)]
    base = held[0]["weights"]
    assert base == pytest.approx(2 * PARAMETERS["llama2-7b"] / 16, rel=0.01)
    assert held[0]["classifier"] - held[1]["classifier"] == base
    assert held[1]["classifier"] < 0.2 * base and held[1]["reference"] < 0.1 * base


def test_more_chips_need_less_of_each_and_what_is_too_large_says_so():
    many, few = (estimate(large(), read_chips(c)) for c in ("v5e-16", "v5e-4"))
    assert many.fits and many.peak.total < few.peak.total
    whole = large(lora=None, model={**SEVEN, "preset": "qwen3-8b"})
    assert not estimate(whole, read_chips("v5e-4")).fits


def test_rows_read_in_parts_need_less_and_divide_over_the_devices():
    sections = ("finetune", "classifier", "prior", "dareu", "npo")
    sizes = {"methods": ["dareu", "npo"], "mesh": {"data": -1, "fsdp": 1}}
    whole = large(**sizes, finetune={"batch_size": 64})
    changes = {f"{section}.microbatch_size": 16 for section in sections}
    parts = with_overrides(whole, {**changes, "npo.batch_size": 64})
    own = [
        {row.name: row.own.total for row in estimate(cfg, read_chips("v5e-16")).rows}
        for cfg in (with_overrides(whole, {"npo.batch_size": 64}), parts)
    ]
    for name in ("fine-tuning", "PPO update", "distillation", "loss update"):
        assert own[1][name] < 0.95 * own[0][name], name
    odd = large(finetune={"batch_size": 64, "microbatch_size": 8})
    with pytest.raises(UserError, match="batch 8 must divide by 16"):
        estimate(odd, read_chips("v5e-16"))


def test_a_pass_in_minibatches_needs_less_and_they_divide_over_the_devices():
    """32 answers in one update, in four, and in four that read retain text too."""
    ways = ({"minibatches": 1}, {"minibatches": 4})
    ways = (*ways, {"minibatches": 4, "retain_step": "joint"})
    plain, parts, joint = (
        {row.name: row.own for row in estimate(cfg, read_chips("v5e-4")).rows}
        for cfg in (large(methods=["dareu"], dareu=hp) for hp in ways)
    )
    for name in ("PPO update", "distillation"):
        assert joint[name].kept < 0.3 * plain[name].kept
        assert joint[name].results == 2 * plain[name].results  # both gradients
    assert parts["PPO update"].kept == joint["PPO update"].kept
    assert parts["distillation"] == plain["distillation"]
    # 16 devices cannot share 8 answers: each has them all, as many as 4 of 32
    many = estimate(large(methods=["dareu"], dareu=ways[1]), read_chips("v5e-16"))
    (own,) = (row.own for row in many.rows if row.name == "PPO update")
    assert own.kept == plain["PPO update"].kept


def test_moments_of_distillation_are_counted():
    held = [
        estimate(large(dareu={"retain_step": step}, methods=["dareu"]), CHIP).held
        for step in ("alternate", "separate")
    ]
    moments = held[1]["optimiser"] - held[0]["optimiser"]
    assert moments == pytest.approx(held[0]["optimiser"], rel=0.01)


def test_a_cpu_reads_a_batch_of_a_large_model_in_parts():
    """16 rows of 128 tokens, four at a time; on an accelerator all, unless told."""
    model = {**SEVEN, "preset": "qwen3-0.6b"}
    one = large(model=model, methods=["npo", "dareu"], dareu={"batch_size": 20})
    chip, cpu, told = (
        {row.name: row.own.kept for row in estimate(cfg, read_chips(chips)).rows}
        for cfg, chips in (
            (one, "v5e-1"),
            (one, "cpu"),
            (with_overrides(one, {"finetune.microbatch_size": 16}), "cpu"),
        )
    )
    assert cpu["fine-tuning"] == pytest.approx(chip["fine-tuning"] / 4, rel=0.01)
    assert cpu["PPO update"] == pytest.approx(chip["PPO update"] / 5, rel=0.01)
    assert cpu["loss update"] == pytest.approx(chip["loss update"] / 8, rel=0.01)
    assert told["fine-tuning"] == chip["fine-tuning"]


def test_chunks_bound_the_logits_of_a_large_vocabulary():
    model = {**SEVEN, "preset": "qwen3-8b"}
    sizes = {"max_prompt_tokens": 64, "max_response_tokens": 4096}
    found = estimate(large(model=model, corpus=sizes), read_chips("v5p-2"))
    rows = {row.name: row.own for row in found.rows}
    at_once = 2 * FLOAT32 * LOGITS_AT_ONCE  # 74 GiB without parts
    assert 0.9 * at_once < rows["fine-tuning"].logits <= at_once


def test_a_small_run_reads_its_own_corpus():
    cfg = load_config(REPO / "tests" / "tiny.yaml")
    found = estimate(cfg, read_chips("cpu"))
    assert found.fits and {"loss update", "PPO update"} <= {r.name for r in found.rows}
    assert found.held["prior"] > 0 and found.held["adapters"] == 0


@pytest.mark.parametrize(
    ("changes", "chips", "message"),
    [
        ({}, "v4-8", "--chips v4-8: no such slice"),
        ({}, "v5p-3", "no such slice"),
        ({"mesh": {"data": 3, "fsdp": 1}}, "v5e-16", "needs 3 devices, 16 are there"),
        ({"dareu": {"batch_size": 20}}, "v5e-16", "batch 20 must divide by 16"),
        ({"model": {"path": "not/there"}}, "v5e-16", "set model.preset to its shape"),
        ({"corpus": {}}, "v5e-16", "corpus.max_prompt_tokens and"),
        (
            {"classifier": {"model": {"path": "x"}, "lora": {}}},
            "v5e-16",
            "classifier.model.path: nothing is imported in x yet",
        ),
        ({"classifier": {"lora": {}}}, "v5e-16", "classifier.lora adapts an imported"),
        ({"finetune": {"epochs": 0}}, "v5e-16", "needs model.path, the original, and"),
        ({"model": {**SEVEN, "layers": 2}}, "v5e-16", "model.layers = 2: the shape"),
        ({"reward": {"kernel": "x"}}, "v5e-16", "unknown kernel 'x'"),
        (
            {"reward": {"kernel": "tracin"}, "finetune": {"snapshots": 0}, **MERGED},
            "v5e-16",
            "none were kept; set finetune.snapshots",
        ),
        (
            {"prior": {"model": {**SEVEN, "preset": "qwen3-0.6b"}}},
            "v5e-16",
            "prior must share the model's vocabulary",
        ),
    ],
)
def test_bad_input_is_named(changes, chips, message):
    with pytest.raises(UserError, match=message):
        estimate(large(**changes), read_chips(chips))


def test_a_row_counts_the_larger_of_layer_and_logits():
    row = estimate(large(), read_chips("v5e-16")).peak
    own = dataclasses.replace(row.own, layer=5, logits=7, cache=0, kept=0, gathered=0)
    own = dataclasses.replace(own, gradients=2, results=1)
    assert row._replace(held=100, own=own).total == 110


def test_only_the_same_folder_in_the_same_dtype_is_shared():
    same = large(classifier={"model": {**SEVEN, "path": "./not/there"}, "lora": {}})
    wide = large(classifier={"model": {**SEVEN, "param_dtype": "float32"}, "lora": {}})
    held = [estimate(cfg, read_chips("v5p-8")).held for cfg in (same, wide)]
    assert held[1]["classifier"] - held[0]["classifier"] == 2 * held[0]["weights"]


def test_what_only_some_methods_need_is_counted_with_them():
    cases = {"grad_diff": (0, 0), "dareu": (0, 1), "dareu_shuffled": (1, 1)}
    for name, (shuffled, prior) in cases.items():
        found = estimate(large(methods=[name]), read_chips("v5e-16"))
        steps = {row.name for row in found.rows}
        for part, there in [("shuffled classifier", shuffled), ("prior", prior)]:
            assert (found.held[part] > 0) == (part in steps) == bool(there)


def test_a_reference_teacher_answers_first():
    cfg = large(dareu={"distil_on": "reference"})
    names = [row.name for row in estimate(cfg, read_chips("v5e-16")).rows]
    assert "retain rollout" in names


TINY = REPO / "tests" / "tiny.yaml"
PHASES = ["rollout", "attribution", "judge answers", "PPO update", "distillation"]
JUDGED = ["answers to judge", "log-probs to judge"]
FLOAT32 = 4


def tiny(*overrides):
    return estimate(load_config(TINY, overrides), read_chips("cpu"))


def steps_of(found, stage):
    return [row.name for row in found.rows if stage in row.stages]


@pytest.fixture
def plugged(monkeypatch):
    """What a test registers is gone after it."""
    for registry in (METHODS, KERNELS):
        registry.names()
        for table in ("_entries", "_about", "_options"):
            monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_is_sized_by_what_it_does(name):
    cfg = load_config(TINY, [f"methods=[{name}]"])
    found = estimate(cfg, read_chips("cpu"))
    reads = reads_of(name, method_config(cfg, name))
    steps = PHASES if "reward" in str(reads) else ["loss update"]
    assert steps_of(found, name) == [*steps, *JUDGED]
    is_whole = name != "retrain_lora"  # which trains adapters alone
    assert (found.held["weights"] == found.held["reference"] > 0) is is_whole
    assert found.held["optimiser"] >= 2 * found.held["weights"]
    hp = method_config(cfg, name).options("dareu")
    is_kept = hp.kl_anchor == "behaviour" or hp.old_policy == "per_data_epoch"
    is_kept &= "reward" in str(reads)  # by a method like DareU, through its updates
    assert (found.held["behaviour policy"] > 0) == is_kept
    assert all(row.held > 0 and row.own.total > 0 for row in found.rows[1:])


@pytest.mark.parametrize("name", KERNELS.names())
def test_every_kernel_is_sized(name):
    found = tiny(f"reward.kernel={name}", "methods=[dareu, dareu_shuffled]")
    assert steps_of(found, "reward") == [name]
    assert steps_of(found, "reward_shuffled") == [f"shuffled {name}"]
    assert steps_of(found, "dareu") == [*PHASES, *JUDGED]
    assert found.held[name] == found.held[f"shuffled {name}"] > 0


def test_an_index_has_the_bytes_of_its_arrays():
    """3 owners; decoder-40k by hand: matrices of its layers, float32."""
    matrices = sum(
        leaf.size
        for path, leaf in named_leaves(abstract_params(tiny_model())["layers"])
        if path.endswith("kernel")
    )
    grad_dot = FLOAT32 * (3 * matrices + 3 + 1)
    held = {
        name: tiny(f"reward.kernel={name}", "methods=[npo]").held
        for name in ("grad_dot", "tracin", "bm25")
    }
    assert held["grad_dot"]["grad_dot"] == grad_dot
    assert held["bm25"]["bm25"] == FLOAT32 * 3 * tiny_model().vocab
    checkpoints = 2 * held["tracin"]["weights"]  # finetune.snapshots
    assert held["tracin"]["tracin"] == 2 * grad_dot + checkpoints


def tiny_model():
    cfg = load_config(TINY)
    return decoder_config(cfg.model, cfg.corpus.vocab_size)


def test_gradients_of_a_large_model_are_split_as_their_axes_say():
    whole = {"attribution": {"whole_gradients": True}}
    changes = {"reward": {"kernel": "grad_dot"}, "lora": None, **whole, **MERGED}
    held, whole = (
        estimate(large(**changes, mesh={"data": 1, "fsdp": 1, "tensor": n}), on).held
        for n, on in ((16, read_chips("v5e-16")), (1, read_chips("v5e-1")))
    )
    assert whole["grad_dot"] > 1.9 * 2 * whole["weights"]  # two owners, float32
    assert held["grad_dot"] == pytest.approx(whole["grad_dot"] / 16, rel=0.01)


def test_a_prior_as_large_as_the_policy_is_warned_of():
    with pytest.warns(Caution, match="prior that prior_only reads has .* to retrain"):
        tiny("methods=[npo, prior_only]")


def test_steps_stand_in_the_order_of_the_plan():
    names = ["npo", "dareu", "prior_only", "dareu_shuffled"]
    cfg = load_config(TINY, [f"methods=[{','.join(names)}]"])
    first = list(dict.fromkeys(row.stages[0] for row in tiny_rows(cfg)))
    order = [stage.row for stage in plan(cfg)]
    assert [order.index(stage) for stage in first] == sorted(map(order.index, first))
    assert {stage for row in tiny_rows(cfg) for stage in row.stages} == set(order)


def tiny_rows(cfg):
    return estimate(cfg, read_chips("cpu")).rows


def test_what_no_later_stage_reads_is_not_held():
    alone = tiny("methods=[npo]").rows
    for methods in ("[dareu, npo]", "[npo, dareu]"):
        found = tiny(f"methods={methods}").rows
        assert next(row for row in found if row.name == "loss update") == alone[-3]
        judged = next(row for row in found if set(row.stages) == {"dareu", "npo"})
        assert judged.held == alone[-1].held


def test_refreshed_rewards_hold_a_second_index_and_build_it():
    kept = tiny("methods=[dareu]", "reward.kernel=grad_dot")
    again = tiny("methods=[dareu]", "reward.kernel=grad_dot", "reward.refresh_every=1")
    assert again.held["index built again"] == kept.held["grad_dot"] > 0
    assert again.held["attributed policy"] == again.held["weights"]
    assert steps_of(again, "dareu")[-3] == "index built again"


def test_four_answers_to_a_prompt_need_four_caches():
    rows = {r.name: r.own for r in tiny("methods=[dareu]").rows}
    four = {r.name: r.own for r in tiny("methods=[dareu_grpo]").rows}
    assert four["rollout"].cache == 4 * rows["rollout"].cache


def test_a_method_from_a_file_is_sized_by_its_state(plugged, tmp_path):
    shutil.copy(REPO / "tests" / "unlearning" / "rmu.py", tmp_path)
    found = tiny(f"plugins=[{tmp_path}/rmu.py]", "methods=[rmu]", "rmu.batch_size=8")
    assert steps_of(found, "rmu") == ["loss update", *JUDGED]
    steps = FLOAT32  # of its training
    direction = FLOAT32 * tiny_model().embed
    assert found.held["rest of the state"] == direction + steps
    assert found.held["behaviour policy"] == 0


def test_a_method_without_a_section_or_an_optimiser_is_sized(plugged):
    """It may read three batches side by side; a loss method reads two in turn."""
    needs = {"forget": Need(8, 2, "none"), "retain": Need(8, 1, "none")}

    @METHODS.register("plain", "a test's", needs=lambda cfg: needs)
    def make_plain(cfg, inputs):
        return Method(
            steps=1,
            init=lambda params, *, key: split(params)[0],
            step=lambda state, batch, step, *, key: (state, {}),
            params_of=lambda state: state,
            headline="loss",
        )

    plain, npo = tiny("methods=[plain]"), tiny("methods=[npo]")
    for part in ("optimiser", "rest of the state"):
        assert npo.held.pop(part) > 0 and not plain.held.pop(part, 0)
    assert plain.held == npo.held
    own, two = plain.rows[-3].own, npo.rows[-3].own
    assert (own.kept, own.gradients) == (3 * two.kept, two.gradients)


def test_kernels_from_a_file_are_sized(plugged, tmp_path):
    page = (REPO / "dareu_jax" / "attribution" / "README.md").read_text()
    for name, text in zip(
        ("unigram", "grad_bias"), re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ):
        (tmp_path / f"{name}.py").write_text(text)
        plugin = f"plugins=[{tmp_path}/{name}.py]"
        found = tiny(plugin, f"reward.kernel={name}", "methods=[dareu]")
        assert steps_of(found, "reward") == [name] and found.held[name] > 0
        assert (found.rows[1].own.gradients > 0) == (name == "grad_bias")
