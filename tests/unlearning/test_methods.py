"""Every registered method, and one from outside, on the tiny corpus; the losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.config import build_config, with_overrides
from dareu_jax.data import take
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, generate, init_adapters, join, split
from dareu_jax.parallel import abstract_on, make_mesh
from dareu_jax.registry import METHODS
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.unlearning import method_config, needs_of, reads_of, setting
from dareu_jax.unlearning.grad_diff import grad_diff_loss
from dareu_jax.unlearning.npo import npo_loss
from dareu_jax.unlearning.phase_table import PHASES
from dareu_jax.unlearning.reward_stages import changes_of
from dareu_jax.unlearning.rows import first_tokens
from dareu_jax.unlearning.supervised import loss_step

NAMES = (*METHODS.names(), "rmu")
FAST = {
    "dareu.batch_size": 4,
    "dareu.retain_batch_size": 4,
    "reward.prior": "sequence",
    "grad_diff.batch_size": 4,
    "npo.batch_size": 4,
    "retrain_lora.batch_size": 4,
    "rmu.batch_size": 4,
}
STEPS = 2


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rmu")]


@pytest.fixture(scope="module")
def cfg(tiny_run, rmu):
    return with_overrides(tiny_run.cfg, FAST)


@pytest.fixture(scope="module")
def batches(tiny_run, cfg):
    """Batches of a step, as many and as large as a method needs."""
    splits = {"forget": tiny_run.split.forget, "retain": tiny_run.split.retain}
    tokens = {split: tiny_run.tokens(records) for split, records in splits.items()}

    def at(name, step, cfg=cfg):
        return {
            split: [
                jax.device_put(
                    take(
                        tokens[split],
                        (np.arange(need.batch_size) + 4 * (step + i))
                        % len(tokens[split].index),
                    )
                )
                for i in range(need.batches)
            ]
            for split, need in needs_of(name, method_config(cfg, name)).items()
        }

    return at


def copies(tree):
    """Host copies that no later donation can reach."""
    return jax.tree.map(lambda x: np.array(x), tree)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


def steps_of(name, method, inputs, batches, seed=0):
    """The state and every step's metrics after a few steps that copy nothing."""
    state, log = method.init(inputs.reference, key=jax.random.key(seed)), []
    for step in range(STEPS):
        key = jax.random.fold_in(jax.random.key(seed), step)
        batch = batches(name, step)
        with jax.transfer_guard("disallow"):
            state, metrics = method.step(state, batch, step, key=key)
        log.append(metrics)
    return state, log


@pytest.fixture(scope="module", params=NAMES)
def stepped(request, cfg, tiny_inputs, batches):
    """A method, what it may not touch before and after, its state and metrics."""
    name = request.param
    method = METHODS.get(name).make(method_config(cfg, name), tiny_inputs)
    stages = [tiny_inputs.stages[stage][1] for stage in ("reward", "prior")]
    frozen = (tiny_inputs.reference, *stages)
    before = copies(frozen)
    state, log = steps_of(name, method, tiny_inputs, batches)
    return method, before, frozen, state, log


def test_metrics_are_finite_float32_scalars_and_have_the_headline(stepped):
    method, _, _, _, log = stepped
    for metrics in log:
        assert method.headline in metrics
        for name, value in metrics.items():
            assert value.shape == () and value.dtype == jnp.float32, name
            assert np.isfinite(value), name


def test_nothing_frozen_changes(stepped):
    _, before, frozen, _, _ = stepped
    same(copies(frozen), before)


def test_the_policy_changes_and_keeps_its_shape(stepped):
    method, (reference, *_), _, state, _ = stepped
    params = method.params_of(state)
    assert differ(copies(params), reference)
    for new, old in zip(jax.tree.leaves(params), jax.tree.leaves(reference)):
        assert new.shape == old.shape and new.dtype == old.dtype
        assert np.isfinite(new).all()


def test_the_same_key_gives_the_same_bits(request, stepped, tiny_inputs, batches):
    method, _, _, state, log = stepped
    name = request.node.callspec.params["stepped"]
    again, metrics = steps_of(name, method, tiny_inputs, batches)
    same(copies(again), copies(state))
    same(copies(metrics), copies(log))


def test_a_step_reads_no_number_back(request, stepped, batches):
    method, _, _, state, _ = stepped
    batch = batches(request.node.callspec.params["stepped"], STEPS)

    def step(state, batch, key):  # traced, so that no number is there to be read
        return method.step(state, batch, STEPS, key=key)

    shapes, _ = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for new, old in zip(jax.tree.leaves(shapes), jax.tree.leaves(state)):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_trains_adapters_as_it_trains_all(cfg, tiny_inputs, batches, name):
    base = tiny_inputs.reference
    adapters = init_adapters(base, rank=2, key=jax.random.key(3))
    model = Decoder(dataclasses.replace(tiny_inputs.model.cfg, lora_alpha=4.0))
    inputs = dataclasses.replace(
        tiny_inputs, model=model, reference=join(base, adapters), frozen=base
    )
    method = METHODS.get(name).make(method_config(cfg, name), inputs)
    before = copies(base)
    state = method.init(inputs.reference, key=jax.random.key(0))
    state, _ = method.step(state, batches(name, 0), 0, key=jax.random.key(0))
    trained, frozen = split(method.params_of(state))
    same(copies(frozen), before)
    assert differ(copies(trained), copies(adapters))
    held = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert held < sum(leaf.size for leaf in jax.tree.leaves(base))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_says_what_it_needs_and_reads(cfg, name):
    row = method_config(cfg, name)
    needs = needs_of(name, row)
    assert "retain" in needs and set(needs) <= {"forget", "retain"}
    models = {"prior", "base"}
    assert all(x in models or changes_of(x) is not None for x in reads_of(name, row))
    for need in needs.values():
        assert need.batch_size == 4 and need.batches >= 1


def test_a_reward_of_nothing_leaves_the_anchor_and_distillation(
    cfg, tiny_inputs, batches
):
    found = {}
    for name in ("dareu_constant", "anchor_only"):
        method = METHODS.get(name).make(method_config(cfg, name), tiny_inputs)
        found[name], log = steps_of(name, method, tiny_inputs, batches)
        assert log[-1]["kl_anchor"] > 0.0
        if name == "dareu_constant":
            assert all(metrics["reward"] == 0.0 for metrics in log)
    moments = [state.opt_state for state in found.values()]
    for a, b in zip(*map(jax.tree.leaves, moments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_dareu_keeps_the_behaviour_policy_while_it_updates(cfg, tiny_inputs, batches):
    anchored = with_overrides(cfg, {"dareu.kl_anchor": "behaviour"})
    method = METHODS.get("dareu").make(anchored, tiny_inputs)
    state = method.init(tiny_inputs.reference, key=jax.random.key(0))
    for step in range(2):
        policy = copies(state.trainable["decoder"])
        state, _ = method.step(
            state, batches("dareu", step), step, key=jax.random.key(step)
        )
        same(copies(state.behaviour), policy)  # pi_old is the policy it began with
        assert differ(copies(state.trainable["decoder"]), policy)


def test_no_copy_of_the_policy_is_kept_that_no_update_reads(cfg, tiny_inputs, batches):
    """By default pi_old is the policy that an iteration begins with."""
    method = METHODS.get("dareu").make(cfg, tiny_inputs)
    state = method.init(tiny_inputs.reference, key=jax.random.key(0))
    after, _ = method.step(state, batches("dareu", 0), 0, key=jax.random.key(0))
    assert state.behaviour == after.behaviour == {}
    for name, value in (("kl_anchor", "behaviour"), ("old_policy", "per_data_epoch")):
        row = with_overrides(cfg, {f"dareu.{name}": value})
        other = METHODS.get("dareu").make(row, tiny_inputs)
        kept = other.init(tiny_inputs.reference, key=jax.random.key(0)).behaviour
        same(kept, tiny_inputs.reference)


@pytest.mark.parametrize("how", ["alternate", "separate", "joint"])
def test_an_iteration_of_dareu_writes_over_the_state_before(
    cfg, tiny_inputs, batches, how
):
    row = with_overrides(cfg, {"dareu.retain_step": how})
    method = METHODS.get("dareu").make(row, tiny_inputs)
    before = method.init(tiny_inputs.reference, key=jax.random.key(0))
    state = before
    for step in range(2):
        last = state
        rows = batches("dareu", step)
        state, _ = method.step(last, rows, step, key=jax.random.key(step))
        used = jax.tree.leaves((last.trainable, last.opt_state, last.behaviour))
        assert all(leaf.is_deleted() for leaf in used if leaf.ndim)
    held = jax.tree.leaves(state._replace(attributed={}))
    places = {leaf.unsafe_buffer_pointer() for leaf in held}
    kept = jax.tree.leaves(tiny_inputs.reference)
    assert len(places) == len(held)
    assert not places & {leaf.unsafe_buffer_pointer() for leaf in kept}


def test_two_optimisers_resume_to_the_bit(cfg, tiny_inputs, batches, tmp_path):
    row = with_overrides(cfg, {"dareu.retain_step": "separate"})
    method = METHODS.get("dareu").make(row, tiny_inputs)
    state = method.init(tiny_inputs.reference, key=jax.random.key(0))
    state, _ = method.step(state, batches("dareu", 0), 0, key=jax.random.key(0))
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    target = abstract_on(jax.eval_shape(lambda: state), mesh)
    with Checkpoints(tmp_path / "saved") as saved:
        saved.save(1, state, {})
        _, again, *_ = saved.latest(target)
    ends = [
        method.step(x, batches("dareu", 1), 1, key=jax.random.key(1))[0]
        for x in (state, again)
    ]
    same(*map(copies, ends))


def test_the_optimiser_holds_moments_of_the_trainable_tree_alone(cfg, tiny_inputs):
    method = METHODS.get("dareu").make(cfg, tiny_inputs)
    state = method.init(tiny_inputs.reference, key=jax.random.key(0))
    assert set(state.trainable) == {"decoder", "value_head"}
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.trainable))
    row = with_overrides(cfg, {"dareu.retain_step": "separate"})
    apart = METHODS.get("dareu").make(row, tiny_inputs)
    own = apart.init(tiny_inputs.reference, key=jax.random.key(0)).opt_state
    assert len([x for x in jax.tree.leaves(own) if x.ndim]) == 2 * len(moments)


def test_dareu_takes_as_many_steps_as_its_data_epochs_need(cfg, tiny_inputs):
    steps = METHODS.get("dareu").make(cfg, tiny_inputs).steps
    assert steps == 2 * 2  # 2 epochs of 8 forget records in batches of 4
    odd = with_overrides(cfg, {"dareu.batch_size": 3})
    assert METHODS.get("dareu").make(odd, tiny_inputs).steps == 2 * 3


def test_samples_per_prompt_answers_each_prompt_as_often(cfg, tiny_inputs, batches):
    twice = with_overrides(
        cfg,
        {"dareu.samples_per_prompt": 2, "dareu.batch_size": 2, "reward.prior": "none"},
    )
    method = METHODS.get("dareu").make(twice, tiny_inputs)
    assert needs_of("dareu", twice)["forget"].batch_size == 2
    _, log = steps_of("dareu", method, tiny_inputs, lambda *at: batches(*at, twice))
    assert np.isfinite(log[-1]["reward"])


def programs():
    """How many programs each phase of DareU has been compiled to."""
    phases = {name: phase.run for name, phase in PHASES.items() if name != "rollout"}
    phases |= {"cut": first_tokens, "generate": generate}
    return {name: phase._cache_size() for name, phase in phases.items()}


def test_rows_that_differ_in_numbers_share_every_program(cfg, tiny_inputs, batches):
    first = METHODS.get("dareu").make(cfg, tiny_inputs)
    steps_of("dareu", first, tiny_inputs, batches)
    before = programs()
    changes = {
        "dareu": {"clip": 0.1, "kl_coef": 0.7, "gamma": 0.9, "gae_lambda": 0.5},
        "reward": {"c_seg": 2.0, "prior_weight": 0.5, "prior_floor": 3.0, "eps": 1e-4},
    }
    other = method_config(with_overrides(cfg, changes), "prior_only")
    method = METHODS.get("prior_only").make(other, tiny_inputs)
    steps_of("prior_only", method, tiny_inputs, batches)
    assert programs() == before
    assert METHODS.get("dareu").make(cfg, tiny_inputs).init == first.init


def test_answers_that_are_cut_change_nothing_but_the_time(
    monkeypatch, cfg, tiny_inputs, batches
):
    row = with_overrides(cfg, {"dareu.updates_per_batch": 1, "dareu.retain_updates": 0})
    most = tuple(range(tiny_inputs.model.cfg.vocab // 3))  # so that answers are short
    inputs = dataclasses.replace(tiny_inputs, response_tokens=40, stop_ids=most)
    before, found = programs()["cut"], []
    for widths in ((16, 32, 40), (40,)):
        monkeypatch.setattr(setting, "response_widths", lambda tokens, at=widths: at)
        method = METHODS.get("dareu").make(row, inputs)
        state = method.init(inputs.reference, key=jax.random.key(0))
        state, metrics = method.step(
            state, batches("dareu", 0, row), 0, key=jax.random.key(5)
        )
        # moments hold the gradient; parameters hold its sign, which noise can turn
        found.append((metrics, state.opt_state))
    for short, whole in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(short, whole, rtol=1e-5, atol=1e-6)
    assert programs()["cut"] == before + 1


# log-probabilities of two answers of 3 and 2 tokens; junk after the end
LOGPS = np.asarray([[-1.0, -2.0, -0.5], [-0.25, -3.0, 7.0]], np.float32)
REF = np.asarray([[-0.5, -2.5, -1.5], [-1.25, -1.0, -9.0]], np.float32)
MASK = np.asarray([[1, 1, 1], [1, 1, 0]], bool)


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.5])
def test_npo_loss_against_numpy(beta):
    ratio = np.where(MASK, LOGPS - REF, 0.0).sum(axis=1)  # 1, -1
    np.testing.assert_allclose(ratio, [1.0, -1.0])
    expected = (2 / beta) * np.mean(np.log1p(np.exp(beta * ratio)))
    out = npo_loss(jnp.asarray(LOGPS), jnp.asarray(REF), jnp.asarray(MASK), beta)
    assert out.dtype == jnp.float32
    assert float(out) == pytest.approx(expected, rel=1e-6)


def test_losses_share_one_step_whatever_their_numbers(cfg, tiny_inputs, batches):
    before, first = loss_step._cache_size(), []
    for name, changes in (
        ("npo", {}),
        ("npo", {"npo.beta": 0.5, "npo.learning_rate": 1e-3, "npo.steps": 7}),
        ("grad_diff", {"grad_diff.retain_weight": 0.25, "grad_diff.clip_norm": 0.1}),
    ):
        row = with_overrides(cfg, changes)
        method = METHODS.get(name).make(row, tiny_inputs)
        _, log = steps_of(name, method, tiny_inputs, batches)
        first.append({key: float(value) for key, value in log[0].items()})
    assert loss_step._cache_size() - before <= 1
    assert first[1]["forget_loss"] == pytest.approx(2 / 0.5 * np.log(2), rel=1e-5)
    assert first[2]["forget_loss"] < 0.0  # log p, of an equation of its own
    total = first[2]["forget_loss"] + 0.25 * first[2]["retain_loss"]
    assert first[2]["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["npo", "grad_diff"])
def test_a_loss_by_parts_of_the_rows_is_that_of_all(cfg, tiny_inputs, batches, name):
    found = []
    for size in (None, 1):
        row = with_overrides(cfg, {f"{name}.microbatch_size": size})
        method = METHODS.get(name).make(row, tiny_inputs)
        state, log = steps_of(name, method, tiny_inputs, batches)
        found.append((state.training.opt_state.mu, log))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)


def test_every_minibatch_is_an_update_of_dareu(cfg, tiny_inputs, batches):
    halves = with_overrides(cfg, {"dareu.minibatch_size": 2})
    method = METHODS.get("dareu").make(halves, tiny_inputs)
    state, log = steps_of("dareu", method, tiny_inputs, batches)
    passes = STEPS * cfg.dareu.updates_per_batch
    assert int(state.opt_state.done) == passes * (2 + cfg.dareu.retain_updates)
    again, _ = steps_of("dareu", method, tiny_inputs, batches)
    same(copies(again), copies(state))
    assert np.isfinite(log[-1]["policy_loss"])


def test_npo_falls_to_zero_as_the_answers_become_unlikely():
    far = jnp.asarray(LOGPS - 1000.0)
    out = npo_loss(far, jnp.asarray(REF), jnp.asarray(MASK), 0.1)
    assert float(out) == pytest.approx(0.0, abs=1e-6)


def test_npo_gradient_is_that_of_ascent_times_its_weight():
    def loss(logps):
        return npo_loss(logps, jnp.asarray(REF), jnp.asarray(MASK), 0.5)

    ratio = np.asarray([1.0, -1.0])
    weight = 1 / (1 + np.exp(-0.5 * ratio))  # sigmoid(beta ratio)
    expected = np.where(MASK, 2 * weight[:, None] / 2, 0.0)
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(LOGPS)), expected, rtol=1e-5)


def test_grad_diff_loss_against_numpy():
    out = grad_diff_loss(jnp.asarray(LOGPS), jnp.asarray(REF), jnp.asarray(MASK))
    assert float(out) == pytest.approx(LOGPS[MASK].mean(), rel=1e-6)


def test_npo_from_the_reference_begins_at_two_over_beta_log_two(
    cfg, tiny_inputs, batches
):
    method = METHODS.get("npo").make(cfg, tiny_inputs)
    _, log = steps_of("npo", method, tiny_inputs, batches)
    first = {name: float(value) for name, value in log[0].items()}
    assert first["forget_loss"] == pytest.approx(2 / cfg.npo.beta * np.log(2), rel=1e-5)
    total = first["forget_loss"] + cfg.npo.retain_weight * first["retain_loss"]
    assert first["loss"] == pytest.approx(total, rel=1e-6)


def test_dareu_paper_is_what_the_paper_says():
    paper = method_config(build_config({}), "dareu_paper")
    assert paper.reward.shape == "paper" and paper.reward.prior == "none"
    assert paper.reward.combine == "sum" and paper.reward.owner_score == "own"
    assert paper.reward.attribution_weight == 1.0 and not paper.reward.shuffle_owners
    assert paper.dareu.kl_in == "reward" and paper.dareu.kl_anchor == "behaviour"
    assert paper.dareu.kl_estimator == "sampled" and paper.dareu.kl_coef == 0.1
    assert paper.dareu.temperature == 0.8 and paper.dareu.samples_per_prompt == 1
    assert paper.dareu.gae_lambda == 1.0 and paper.dareu.whiten  # plain returns
    assert paper.dareu.old_policy == "per_data_epoch"
    assert (paper.dareu.clip, paper.dareu.value_coef) == (0.2, 0.2)
    assert paper.dareu.lambda_dis == 2.0 and paper.reward.slices == 15
    assert paper.dareu.reuse_retain and paper.dareu.retain_step == "joint"
    assert paper.reward.slices_of == "answer"  # k slices of every answer
    assert (paper.dareu.updates_per_pass, paper.dareu.rows_per_update) == (2, 16)
    retain = needs_of("dareu_paper", paper)["retain"]
    assert (retain.batch_size, retain.batches) == (32, 1)


def test_the_paper_is_the_paper_whatever_the_configuration_says_of_dareu():
    tuned = {
        "reward": {"shape": "token", "prior": "sequence", "combine": "product"},
        "dareu": {
            "actions": "top_k",
            "advantage": "group",
            "kl_anchor": "mixture",
            "kl_direction": "forward",
            "kl_estimator": "full",
            "policy_weight": 0.5,
            "prefix_share": 0.5,
            "samples_per_prompt": 4,
        },
    }
    paper = method_config(build_config(tuned), "dareu_paper")
    for key, value in METHODS.get("dareu_paper").preset.items():
        section, name = key.split(".")
        assert getattr(getattr(paper, section), name) == value


def test_controls_differ_from_dareu_in_one_thing_each():
    cfg = build_config({"reward": {"prior": "sequence"}})
    dareu = method_config(cfg, "dareu").model_dump()
    for name, key, value in (
        ("prior_only", "attribution_weight", 0.0),
        ("dareu_shuffled", "shuffle_owners", True),
        ("dareu_noise", "label_noise", 0.51),
    ):
        changed = method_config(cfg, name).model_dump()
        assert changed["reward"].pop(key) == value != dareu["reward"][key]
        rest = {**dareu, "reward": {**dareu["reward"]}}
        rest["reward"].pop(key)
        assert changed == rest


def test_overrides_of_a_method_win_over_its_preset_and_stay_with_it():
    cfg = build_config(
        {"overrides": {"dareu_paper": {"dareu.kl_coef": 0.5, "dareu.clip": 0.1}}}
    )
    paper = method_config(cfg, "dareu_paper")
    assert (paper.dareu.kl_coef, paper.dareu.clip) == (0.5, 0.1)
    assert paper.reward.shape == "paper"
    assert method_config(cfg, "dareu").dareu == cfg.dareu


def test_a_row_sets_its_own_section_and_what_its_method_declares():
    cfg = build_config(
        {
            "rmu": {"alpha": 2.0},
            "overrides": {
                "rmu": {"rmu.steering": 9.0, "guards.utility_floor": None},
                "npo": {"npo.beta": 0.5},
                "prior_only": {"dareu.clip": 0.1, "reward.slices": 3},
            },
        }
    )
    rmu = method_config(cfg, "rmu")
    assert (rmu.rmu.steering, rmu.rmu.alpha) == (9.0, 2.0)
    assert rmu.guards.utility_floor is None and cfg.guards.utility_floor is not None
    assert method_config(cfg, "npo").npo.beta == 0.5
    assert method_config(cfg, "npo").rmu == cfg.rmu
    prior_only = method_config(cfg, "prior_only")
    assert (prior_only.dareu.clip, prior_only.reward.slices) == (0.1, 3)


@pytest.mark.parametrize(
    ("row", "key", "value", "said"),
    [
        ("rmu", "npo.beta", 0.5, r"rmu does not read npo.*can set keys of rmu, guards"),
        ("npo", "reward.slices", 3, r"npo does not read reward.* of npo, guards"),
        ("dareu", "model.layers", 3, r"model\.layers is the same .*of dareu, reward"),
        ("dareu", "reward.kernel", "ekfac", r"how the reward index is built"),
        ("dareu", "reward", {"kernel": "ekfac"}, r"reward\.kernel .* index is built"),
        ("dareu", "reward.margin", True, r"how the reward index is built"),
        ("dareu", "dareu.base_path", "a", r"base_path names the base.*whole run"),
        ("rmu", "rmu.steps", 0, r"rmu\.steps = 0.*greater than or equal to 1"),
        ("rmu", "rmu.stepz", 1, r"unknown key 'rmu\.stepz'.*'rmu\.steps'"),
    ],
)
def test_what_a_row_may_not_set_is_refused_with_the_reason(rmu, row, key, value, said):
    with pytest.raises(UserError, match=rf"overrides\.{row}: .*{said}"):
        method_config(build_config({"overrides": {row: {key: value}}}), row)


def test_grpo_compares_the_answers_to_a_prompt_and_trains_no_value_head(
    cfg, tiny_inputs, batches
):
    row = method_config(cfg, "dareu_grpo")
    assert (row.dareu.advantage, row.dareu.samples_per_prompt) == ("group", 4)
    method = METHODS.get("dareu_grpo").make(row, tiny_inputs)
    state, log = steps_of("dareu_grpo", method, tiny_inputs, batches)
    assert set(state.trainable) == {"decoder"}
    assert "value_loss" not in log[0] and "clip_fraction" in log[0]


def test_a_group_of_one_answer_is_refused():
    with pytest.raises(
        UserError, match=r"samples_per_prompt = 1; set it to at least 2"
    ):
        build_config({"dareu": {"advantage": "group"}})


def test_an_unknown_method_is_an_error():
    with pytest.raises(UserError, match=r"unknown method 'daru'.*'dareu'"):
        method_config(build_config({}), "daru")


@pytest.mark.parametrize(
    ("reward", "anchor", "expected"),
    [
        ({}, "reference", False),
        ({}, "behaviour", False),
        ({}, "prior", True),
        ({"prior": "sequence"}, "reference", True),
        ({"prior": "potential"}, "reference", True),
        ({"combine": "product"}, "reference", True),
    ],
)
def test_the_prior_is_trained_only_where_it_is_read(reward, anchor, expected):
    reward = {"prior": "none", "combine": "sum", **reward}
    cfg = build_config({"reward": reward, "dareu": {"kl_anchor": anchor}})
    assert ("prior" in reads_of("dareu", cfg)) is expected
    assert not reads_of("npo", cfg)


def test_the_control_reads_the_shuffled_reward_alone():
    cfg = build_config(
        {"reward": {"prior": "none"}, "dareu": {"kl_anchor": "reference"}}
    )
    assert reads_of("dareu", method_config(cfg, "dareu")) == {"reward"}
    shuffled = method_config(cfg, "dareu_shuffled")
    assert reads_of("dareu_shuffled", shuffled) == {"reward_shuffled"}
