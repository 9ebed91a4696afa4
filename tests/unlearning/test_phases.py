"""The phases of one DareU iteration against numbers worked out by hand."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import sizes_in

from dareu_jax.attribution import Kernel, sliced
from dareu_jax.config import ModelConfig, build_config
from dareu_jax.data import TokenBatch
from dareu_jax.models import (
    Decoder,
    Rollout,
    decoder_config,
    init_decoder,
    init_head,
    logits_of,
    response_hidden,
    scoring,
)
from dareu_jax.models.scoring import LOGITS_AT_ONCE
from dareu_jax.registry import METHODS
from dareu_jax.training.optimiser import make_optimiser
from dareu_jax.unlearning import MethodInputs, Prior, RewardIndex
from dareu_jax.unlearning.dareu_options import DareuConfig
from dareu_jax.unlearning.measures import repeats_itself
from dareu_jax.unlearning.objectives import ppo_loss
from dareu_jax.unlearning.phase_table import loss_options, phases_of
from dareu_jax.unlearning.rows import answered, cut, minibatches, repeat_rows
from dareu_jax.unlearning.setting import Experience, Judged, Setting, response_widths

pytestmark = pytest.mark.slow

VOCAB, B, P, T = 16, 2, 3, 4
# scores of every prefix of two responses of 4 and 2 tokens; junk after the end
SCORES = np.asarray([[0.1, 0.25, 0.5, 0.8], [0.7, 0.2, 0.9, 0.9]], np.float32)
MASK = np.asarray([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
# chi: .1 -> -.10034, .2 -> -.21252, .25 -> -.27398, .5 -> -.66014, .65007 up -> -1
CHI = np.asarray(
    [[-0.100343, -0.273983, -0.660140, -1.0], [-1.0, -0.212518, 0.0, 0.0]], np.float32
)
# prior log-probs; prefix means -1, -2, -3.5, -6.5 and 0, -.25; floor 4
PRIOR = np.asarray([[-1.0, -3.0, -6.5, -15.5], [0.0, -0.5, -9.0, -9.0]], np.float32)
BONUS = np.asarray([[0.75, 0.5, 0.125, 0.0], [1.0, 0.9375, 0.0, 0.0]], np.float32)
KL = np.asarray([[0.5, -0.25, 1.0, 0.125], [2.0, -1.0, 50.0, 50.0]], np.float32)
REWARD = {"slices": T, "prior": "none"}
DAREU = {
    "kl_coef": 0.0,
    "kl_in": "reward",
    "kl_anchor": "reference",
    "kl_estimator": "sampled",
    "temperature": 0.8,
    "whiten": True,
}
SPREAD = {
    "token": CHI,
    "paper": [[-0.100343, -0.187163, -0.344822, -0.508617], [-1.0, -0.606259, 0, 0]],
    "sequence": [[0, 0, 0, -1.0], [0, -0.212518, 0, 0]],
    "potential": [[-0.100343, -0.173640, -0.386157, -0.339860], [-1.0, 0.787482, 0, 0]],
}


def fake_kernel(owners=3):
    """A kernel whose index is its prefix scores ``[B, T, O]``."""
    return Kernel(
        name="fake",
        owners=owners,
        init=lambda params, *, key: None,
        update=lambda params, batch, acc: (acc, {}),
        finalize=lambda params, acc: acc,
        score=lambda params, index, queries: index[:, -1],
        prefix_score=lambda params, index, queries: index,
    )


def rewarded(index):
    """What the stage of the reward leaves, with an index that stays as it is."""
    return RewardIndex(fake_kernel(), index, rebuild=lambda params: index)


@pytest.fixture(scope="module")
def model():
    return Decoder(decoder_config(ModelConfig(preset="decoder-40k"), VOCAB))


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(lambda key: init_decoder(model, key=key))(jax.random.key(0))


@pytest.fixture(scope="module")
def world(model, params):
    return MethodInputs(
        model=model,
        reference=params,
        forget_columns=(0, 2),
        forget_owner=jnp.asarray([2, 0, 2, 0, 2, 0, 2, 0], jnp.int32),
        response_tokens=T,
        stop_ids=(2,),
        gold_length=4.0,
        stages={
            "reward": rewarded(None),
            "prior": Prior(model, params),
            "base": Prior(model, jax.tree.map(lambda x: 0.5 * x, params)),
        },
    )


def setting_of(cfg, world, rate=1e-3):
    """What the phases of a configuration have in common, with a made-up kernel."""
    return Setting(
        inputs=world,
        hp=cfg.dareu,
        reward=cfg.reward,
        kernel=fake_kernel(),
        prior=world.stages.get("prior"),
        base=world.stages.get("base"),
        optimiser=make_optimiser(rate, 10),
        is_reference_read=True,
    )


def loss_of(on, anchor):
    """PPO's loss by the trainable parameters and the experience."""
    options = loss_options(on)

    def loss(trainable, experience):
        given = {"trainable": trainable, "experience": experience}
        return ppo_loss(**options, frozen={}, anchor=anchor, **given)

    return loss


@pytest.fixture
def phases(world):
    def build(reward=None, dareu=None):
        reward, dareu = {**REWARD, **(reward or {})}, {**DAREU, **(dareu or {})}
        cfg = build_config({"reward": reward, "dareu": dareu})
        return phases_of(setting_of(cfg, world))

    return build


def copied(tree):
    """Arrays of its own for a step that writes over what it is given."""
    return jax.tree.map(jnp.copy, tree)


def judged(**changes):
    zero = jnp.zeros((B, T), jnp.float32)
    parts = {"prior_logps": jnp.asarray(PRIOR), "kl": jnp.asarray(KL), **changes}
    return Judged(zero, logps=zero, ref_logps=zero, **parts)


def rewards_of(phase, **changes):
    out = phase.reward(
        scores=jnp.asarray(SCORES), judged=judged(**changes), mask=jnp.asarray(MASK)
    )
    assert out.dtype == jnp.float32 and out.shape == (B, T)
    return np.asarray(out)


@pytest.mark.parametrize("shape", SPREAD)
def test_rewards_are_the_fractions_worked_out_by_hand(phases, shape):
    out = rewards_of(phases({"shape": shape}))
    np.testing.assert_allclose(out, SPREAD[shape], atol=2e-6)
    assert np.any(out != np.round(out))


@pytest.mark.parametrize("shape", ["sequence", "potential"])
@pytest.mark.parametrize("slices", [1, 2, 4])
def test_these_shapes_sum_to_chi_of_the_whole_response(phases, shape, slices):
    out = rewards_of(phases({"shape": shape, "slices": slices}))
    np.testing.assert_allclose(out.sum(axis=1), [-1.0, -0.212518], atol=2e-6)


def test_tokens_of_a_slice_share_the_score_at_its_end(phases):
    out = rewards_of(phases({"shape": "token", "slices": 2}))  # two tokens a slice
    low, high = -0.273983, -1.0
    expected = [[low, low, high, high], [-0.212518, -0.212518, 0, 0]]
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_attribution_weight_scales_and_zero_leaves_the_prior_alone(phases):
    half = rewards_of(phases({"shape": "token", "attribution_weight": 0.5}))
    np.testing.assert_allclose(half, 0.5 * CHI, atol=2e-6)
    none = rewards_of(
        phases({"shape": "token", "attribution_weight": 0.0, "prior": "sequence"})
    )
    np.testing.assert_allclose(none, [[0, 0, 0, 0.0], [0, 0.9375, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("prior", "bonus"),
    [
        ("sequence", [[0, 0, 0, 0.0], [0, 0.9375, 0, 0]]),
        ("potential", [[0.75, -0.25, -0.375, -0.125], [1.0, -0.0625, 0, 0]]),
    ],
)
@pytest.mark.parametrize("shape", ["paper", "token"])
def test_sum_adds_the_weighted_prior_bonus_in_its_own_shape(
    phases, shape, prior, bonus
):
    out = rewards_of(phases({"shape": shape, "prior": prior, "prior_weight": 2.0}))
    expected = np.asarray(SPREAD[shape]) + 2.0 * np.asarray(bonus)
    np.testing.assert_allclose(out, expected, atol=3e-6)


def test_product_pays_where_both_agree(phases):
    both = (1.0 + CHI) * BONUS  # [.674743, .363009, .042483, 0], [0, .738264]
    out = rewards_of(phases({"shape": "token", "combine": "product"}))
    np.testing.assert_allclose(out, np.where(MASK, both, 0.0), atol=2e-6)
    end = rewards_of(phases({"shape": "sequence", "combine": "product"}))
    np.testing.assert_allclose(end, [[0, 0, 0, 0.0], [0, 0.738264, 0, 0]], atol=2e-6)
    step = rewards_of(phases({"shape": "potential", "combine": "product"}))
    expected = [[0.674743, -0.311734, -0.320526, -0.042483], [0, 0.738264, 0, 0]]
    np.testing.assert_allclose(step, expected, atol=3e-6)


def test_the_kl_penalty_is_in_the_reward_or_not(phases):
    out = rewards_of(phases({"shape": "paper"}, {"kl_coef": 0.1}))
    expected = np.asarray(SPREAD["paper"]) - 0.1 * np.where(MASK, KL, 0.0)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    other = rewards_of(phases({"shape": "paper"}, {"kl_coef": 0.1}), kl=None)
    np.testing.assert_allclose(other, SPREAD["paper"], atol=2e-6)


def test_nothing_after_the_response_reaches_a_reward(phases):
    phase = phases({"shape": "paper", "prior": "potential"}, {"kl_coef": 0.1})
    spoiled = judged(
        prior_logps=jnp.where(MASK, PRIOR, jnp.nan), kl=jnp.where(MASK, KL, jnp.nan)
    )
    scores = jnp.where(MASK, SCORES, jnp.nan)
    out = phase.reward(scores=scores, judged=spoiled, mask=jnp.asarray(MASK))
    np.testing.assert_array_equal(out, rewards_of(phase))


def answers_of(index):
    rows = len(index)
    return TokenBatch(
        prompt=jnp.ones((rows, P), jnp.int32),
        prompt_mask=jnp.ones((rows, P), bool),
        response=jnp.ones((rows, T), jnp.int32),
        response_mask=jnp.ones((rows, T), bool),
        index=jnp.asarray(index, jnp.int32),
    )


def test_own_takes_the_column_of_the_record_and_any_sums_the_forget_owners(phases):
    scores = jnp.asarray(np.random.default_rng(0).uniform(size=(3, T, 3)), jnp.float32)
    answers = answers_of([0, 1, 4])  # owners 2, 0, 2
    given = {"params": None, "index": scores, "answers": answers}
    own = phases({"owner_score": "own"}).attribute(**given)
    expected = np.stack([scores[0, :, 2], scores[1, :, 0], scores[2, :, 2]])
    np.testing.assert_array_equal(own, expected)
    total = phases({"owner_score": "any_forget_owner"}).attribute(**given)
    np.testing.assert_allclose(total, scores[..., 0] + scores[..., 2], rtol=1e-6)


def test_repeat_rows_keeps_the_samples_of_a_prompt_together():
    out = repeat_rows(answers_of([3, 7])._replace(prompt=jnp.asarray([[1], [2]])), 3)
    np.testing.assert_array_equal(out.index, [3, 3, 3, 7, 7, 7])
    np.testing.assert_array_equal(out.prompt[:, 0], [1, 1, 1, 2, 2, 2])


@pytest.mark.parametrize(
    ("tokens", "length", "expected"),
    [
        ([5] * 10, 10, True),
        ([1, 2] * 5, 10, True),
        (list(range(10)), 10, False),
        ([5] * 10, 8, True),
        ([5] * 10, 7, False),  # too short to tell
        ([1, 2, 3, 4, 5, 5, 5, 5, 5, 5], 5, False),  # the loop is padding
        # 9 pairs: 12 23 34 41 12 23 34 41 12: five of them came before
        ([1, 2, 3, 4, 1, 2, 3, 4, 1, 2], 10, True),
        # 9 pairs: 12 23 34 45 51 12 23 34 45: only four did
        ([1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 10, False),
        ([1, 2, 1, 3, 1, 4, 1, 5, 1, 6], 10, False),  # tokens, but no pair, repeat
    ],
)
def test_repeats_itself(tokens, length, expected):
    mask = jnp.arange(10)[None] < length
    out = repeats_itself(jnp.asarray([tokens], jnp.int32), mask)
    assert out.dtype == bool and bool(out[0]) is expected


def test_pairs_of_a_large_vocabulary_are_told_apart():
    # no pair occurs twice, but many are alike modulo 2**16, as in vocabularies of 150 k
    tokens = [1 + (k << 16) for k in (1, 2, 2, 0, 0, 1, 0, 2, 1, 1)]
    pairs = [*itertools.pairwise(tokens)]
    assert len(set(pairs)) == len(pairs) == 9
    out = repeats_itself(jnp.asarray([tokens], jnp.int32), jnp.ones((1, 10), bool))
    assert not bool(out[0])


@pytest.fixture(scope="module")
def trainable(model, params):
    head = init_head(1, model.cfg.embed, key=jax.random.key(0))
    head = jax.tree.map(lambda x: x + 0.01, head)
    return {"decoder": jax.tree.map(lambda x: 1.05 * x, params), "value_head": head}


@pytest.fixture(scope="module")
def iteration(world, trainable):
    """Everything of one iteration up to the experience, under a configuration."""

    @functools.cache
    def made(dareu):
        cfg = build_config({"dareu": {**DAREU, **dict(dareu)}, "reward": REWARD})
        on = setting_of(cfg, world)
        return on, phases_of(on)

    def go(dareu, behaviour, trainable=trainable):
        on, phase = made(tuple(dareu.items()))
        prompts = answers_of([0, 1])._replace(
            prompt=jnp.asarray([[3, 4, 5], [6, 7, 8]], jnp.int32)
        )
        rollout = phase.rollout(
            frozen={}, policy=behaviour, prompts=prompts, key=jax.random.key(3)
        )
        answers = answered(prompts, rollout)
        said = phase.judge(
            frozen={},
            trainable=trainable,
            behaviour=behaviour,
            reference=world.reference,
            prior=world.stages["prior"].params,
            base=world.stages["base"].params,
            answers=answers,
        )
        scores = jnp.full((2, T), 0.3, jnp.float32)
        rewards = phase.reward(scores=scores, judged=said, mask=answers.response_mask)
        experience = phase.advantage(
            rewards=rewards, rollout=rollout, judged=said, answers=answers
        )
        return on, rollout, answers, said, experience

    return go


def test_a_rollout_is_the_behaviour_policys_and_its_log_probs_are_kept(
    iteration, trainable
):
    policy = trainable["decoder"]
    _, rollout, answers, said, experience = iteration({}, policy)
    assert isinstance(rollout, Rollout)
    np.testing.assert_array_equal(answers.response, rollout.tokens)
    np.testing.assert_array_equal(answers.response_mask, rollout.mask)
    real = np.asarray(rollout.mask)
    # behaviour = policy here, so its log-probs at the sampling temperature agree
    np.testing.assert_allclose(
        np.asarray(said.logps)[real], np.asarray(rollout.logps)[real], atol=1e-5
    )
    np.testing.assert_array_equal(experience.old_logps, rollout.logps)


def test_kl_to_the_behaviour_policy_is_zero_where_it_is_the_policy(
    iteration, trainable, params
):
    policy = trainable["decoder"]
    for estimator in ("sampled", "full"):
        own = {"kl_anchor": "behaviour", "kl_estimator": estimator}
        _, _, _, said, _ = iteration(own, policy)
        assert np.abs(said.kl).max() < 1e-6
        _, _, _, said, _ = iteration(own, params)
        assert np.abs(said.kl).max() > 1e-4
        _, _, _, said, _ = iteration({**own, "kl_anchor": "reference"}, policy)
        assert np.abs(said.kl).max() > 1e-4


def test_full_kl_is_the_expectation_of_the_sampled_one(iteration, trainable):
    policy = trainable["decoder"]
    _, _, _, said, _ = iteration({"kl_estimator": "full"}, policy)
    assert (np.asarray(said.kl) >= 0.0).all()
    _, _, _, sampled, _ = iteration({"kl_estimator": "sampled"}, policy)
    expected = np.asarray(sampled.logps) - np.asarray(sampled.ref_logps)
    np.testing.assert_allclose(sampled.kl, expected, atol=1e-6)


def test_the_judge_runs_no_model_whose_numbers_nobody_reads(world, trainable):
    """A model that is not there cannot be run."""
    given = {"frozen": {}, "trainable": trainable, "answers": answers_of([0, 1])}
    absent = {"behaviour": {}, "reference": None, "prior": None, "base": None}
    prior = world.stages["prior"].params

    def judges(read, cfg, **there):
        on = setting_of(build_config(cfg), world)
        on = dataclasses.replace(on, is_reference_read=read)
        return phases_of(on).judge(**given, **{**absent, **there})

    said = judges(False, {"dareu": {"kl_anchor": "prior"}}, prior=prior)
    assert said.anchor is not None  # the loss reads it
    assert said._replace(values=None, anchor=None) == Judged(values=None)
    asked = {"dareu": {"kl_anchor": "prior", "kl_in": "reward"}}
    said = judges(True, asked, prior=prior, reference=world.reference)
    assert said.kl is not None and said.ref_logps is not None
    assert said.prior_logps is None and said.anchor is None


def test_answers_are_cut_to_the_narrowest_width_that_holds_them():
    assert response_widths(32) == (16, 32)
    assert response_widths(24) == (16, 24)
    assert response_widths(100) == (32, 64, 96, 100)
    assert response_widths(512) == (128, 256, 384, 512)
    assert response_widths(4) == (4,)
    mask = jnp.arange(40)[None] < jnp.asarray([[3], [17]])
    tokens = jnp.arange(80, dtype=jnp.int32).reshape(2, 40)
    said = Rollout(tokens, mask, jnp.where(mask, -1.0, 0.0))
    with jax.transfer_guard("disallow"):
        short = cut(said, response_widths(40))
    assert {x.shape for x in short} == {(2, 32)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:, :32]), short, said)
    assert cut(said, (16, 40)) is said


def test_slices_of_a_cut_answer_have_the_scores_of_the_whole(world):
    def score(params, index, queries):  # the sum of the tokens that are seen
        seen = jnp.where(queries.response_mask, queries.response, 0)
        return jnp.sum(seen, axis=1, keepdims=True).astype(jnp.float32)

    kernel = dataclasses.replace(fake_kernel(), score=score, prefix_score=None)
    kernel = sliced(kernel, 3)
    answers = answers_of([0, 1])._replace(
        response=jnp.arange(14, dtype=jnp.int32).reshape(2, 7),
        response_mask=jnp.arange(7)[None] < jnp.asarray([[5], [2]]),
    )
    short = answers._replace(
        response=answers.response[:, :5], response_mask=answers.response_mask[:, :5]
    )
    whole, cut = (kernel.prefix_score(None, None, x) for x in (answers, short))
    np.testing.assert_array_equal(cut, whole[:, :5])


def test_advantages_are_white_and_returns_plain_at_lambda_one(iteration, trainable):
    _, _, answers, _, experience = iteration({"gae_lambda": 1.0}, trainable["decoder"])
    real = np.asarray(answers.response_mask)
    advantages = np.asarray(experience.advantages)
    assert advantages[real].mean() == pytest.approx(0.0, abs=1e-5)
    assert advantages[real].std() == pytest.approx(1.0, abs=1e-3)
    # potential shaping of a constant score: chi(.3) at the first token, then nothing
    returns = np.where(np.arange(T) == 0, np.log(0.7) / 1.05, 0.0)
    np.testing.assert_allclose(
        np.asarray(experience.returns)[real],
        np.broadcast_to(returns, real.shape)[real],
        atol=1e-5,
    )


def test_the_group_is_the_baseline_where_there_is_no_value_head(iteration, trainable):
    policy = {"decoder": trainable["decoder"]}
    own = {"advantage": "group", "samples_per_prompt": 2, "whiten": False}
    on, rollout, answers, said, _ = iteration(own, policy["decoder"], policy)
    assert not np.asarray(said.values).any()
    rewards = jnp.asarray([[0.5, -1.0, 0.0, 0.0], [-2.0, 0.5, 0.0, 0.0]], jnp.float32)
    experience = phases_of(on).advantage(
        rewards=rewards, rollout=rollout, judged=said, answers=answers
    )
    # sums -.5 and -1.5, mean -1, sd .70711: (.5, -.5) / (.70711 + .0001)
    wanted = np.where(answers.response_mask, [[0.707007], [-0.707007]], 0.0)
    np.testing.assert_allclose(experience.advantages, wanted, atol=1e-5)
    loss, metrics = loss_of(on, (on.inputs.reference,))(policy, experience)
    assert set(metrics) == {"policy_loss", "clip_fraction"}
    assert float(loss) == pytest.approx(float(metrics["policy_loss"]))


def test_ppo_differentiates_policy_and_value_head_and_touches_nothing_else(
    iteration, trainable, world
):
    on, _, _, _, experience = iteration({}, trainable["decoder"])
    held = jax.tree.map(
        np.array, (world.reference, world.stages["prior"].params, experience)
    )
    anchor = on.anchor(trainable["decoder"])
    loss = jax.jit(jax.grad(loss_of(on, anchor), has_aux=True))
    grads, metrics = loss(trainable, experience)
    assert jax.tree.structure(grads) == jax.tree.structure(trainable)
    for part in ("decoder", "value_head"):
        assert any(np.asarray(x).any() for x in jax.tree.leaves(grads[part]))
    assert float(metrics["clip_fraction"]) == 0.0  # the policy is its own behaviour
    new, _, _ = phases_of(on).update(
        frozen={},
        trainable=copied(trainable),
        opt_state=on.optimiser.init(trainable),
        anchor=anchor,
        experience=experience,
    )
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(trainable))
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        held,
        (world.reference, world.stages["prior"].params, experience),
    )


def test_the_kl_in_the_loss_is_added_once(iteration, trainable):
    policy = trainable["decoder"]
    losses = []
    for coef in (0.0, 2.0):
        dareu = {"kl_in": "loss", "kl_coef": coef}
        on, _, _, said, experience = iteration(dareu, policy)
        assert said.kl is None
        loss, metrics = jax.jit(loss_of(on, on.anchor(policy)))(trainable, experience)
        losses.append(float(loss))
    _, _, answers, said, _ = iteration({"kl_estimator": "full"}, policy)
    kl = np.asarray(said.kl)[np.asarray(answers.response_mask)].mean()
    assert losses[1] - losses[0] == pytest.approx(2.0 * kl, rel=1e-3)
    assert float(metrics["kl_anchor"]) == pytest.approx(kl, rel=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_ppo_and_its_value_loss_have_a_weight(iteration, trainable, weight):
    policy, losses = trainable["decoder"], []
    for factor in (1.0, weight):
        dareu = {"kl_in": "loss", "policy_weight": factor}
        on, _, _, _, experience = iteration(dareu, policy)
        loss, metrics = jax.jit(loss_of(on, on.anchor(policy)))(trainable, experience)
        losses.append(float(loss))
    anchor = float(on.numbers.kl_coef * metrics["kl_anchor"])
    assert losses[0] != pytest.approx(anchor, rel=1e-2)
    expected = anchor + weight * (losses[0] - anchor)
    assert losses[1] == pytest.approx(expected, rel=1e-5)


def chances(model, params, answers):
    """p(token) ``[B, T, V]`` at every place of the answers, float64."""
    hidden = response_hidden(model, params, answers)
    logits = np.asarray(logits_of(model, params, hidden), np.float64)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("anchor", ["base", "mixture"])
def test_the_anchor_may_be_the_base_or_its_mixture_with_the_reference(
    iteration, trainable, world, model, anchor, direction
):
    policy = trainable["decoder"]
    asked = {"kl_in": "loss", "kl_anchor": anchor, "kl_share": 0.25}
    asked |= {"kl_direction": direction, "temperature": 1.0}
    on, _, answers, said, experience = iteration(asked, policy)
    assert len(said.anchor) == (2 if anchor == "mixture" else 1)
    _, metrics = jax.jit(loss_of(on, on.anchor(policy)))(trainable, experience)
    models = {"policy": policy, "reference": world.reference}
    models["base"] = world.stages["base"].params
    p, ref, base = (chances(model, x, answers) for x in models.values())
    q = base if anchor == "base" else 0.75 * ref + 0.25 * base
    if direction == "forward":
        p, q = q, p
    kl = (p * (np.log(p) - np.log(q))).sum(axis=-1)
    wanted = kl[np.asarray(answers.response_mask)].mean()
    assert float(metrics["kl_anchor"]) == pytest.approx(wanted, rel=1e-4)


def test_distillation_holds_the_policy_to_the_reference(world, trainable):
    on = setting_of(build_config({}), world, rate=1e-4)
    distil = functools.partial(
        phases_of(on).distil,
        frozen={},
        reference=world.reference,
        retain=answers_of([0, 1]),
    )
    opt_state = on.optimiser.init(trainable)
    tree, losses = copied(trainable), []
    for _ in range(3):
        tree, opt_state, metrics = distil(trainable=tree, opt_state=opt_state)
        losses.append(float(metrics["distillation_loss"]))
    assert losses[0] > losses[1] > losses[2] > 0.0
    np.testing.assert_array_equal(
        tree["value_head"]["kernel"], trainable["value_head"]["kernel"]
    )
    still = copied({**trainable, "decoder": world.reference})
    _, _, metrics = distil(trainable=still, opt_state=on.optimiser.init(still))
    assert float(metrics["distillation_loss"]) == pytest.approx(0.0, abs=1e-6)


def test_steps_that_read_a_row_at_a_time_are_those_of_the_batch(
    iteration, trainable, world
):
    """Answers of 4 and of fewer tokens weigh by their tokens."""
    found = []
    for size in (None, 1):
        own = {"kl_in": "loss", "kl_coef": 0.5, "microbatch_size": size}
        on, _, answers, _, experience = iteration(own, trainable["decoder"])
        phase = phases_of(on)
        _, ppo, first = phase.update(
            frozen={},
            trainable=copied(trainable),
            opt_state=on.optimiser.init(trainable),
            anchor=on.anchor(trainable["decoder"]),
            experience=experience,
        )
        _, distilled, second = phase.distil(
            frozen={},
            trainable=copied(trainable),
            opt_state=on.optimiser.init(trainable),
            reference=world.reference,
            retain=answers._replace(response_mask=jnp.asarray(MASK)),
        )
        found.append((ppo.mu, distilled.mu, first, second))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-7)


def test_a_pass_reads_every_answer_once_and_in_an_order_of_its_own():
    hp = DareuConfig(batch_size=4, samples_per_prompt=2, minibatch_size=2)
    rows = jnp.arange(8, dtype=jnp.int32)
    whole = Experience(rows, rows, rows, rows, rows, rows[:, None])
    seen = []
    for number in (0, 0, 1):
        parts = minibatches(hp, whole, number, key=jax.random.key(0))
        assert len(parts) == hp.minibatches == 4
        for part in parts:
            np.testing.assert_array_equal(part.answers, part.anchor[:, 0])
        seen.append(np.concatenate([part.answers for part in parts]).tolist())
    assert seen[0] == seen[1] != seen[2]
    assert sorted(seen[0]) == sorted(seen[2]) == list(range(8))
    assert minibatches(DareuConfig(), whole, 0, key=jax.random.key(0)) == (whole,)


def test_measure_says_how_long_how_broken_and_how_attributable(phases):
    phase = phases()
    answers = answers_of([0, 1])._replace(response_mask=jnp.asarray(MASK))
    rewards = jnp.asarray(SPREAD["token"], jnp.float32)
    out = phase.measure(
        scores=jnp.asarray(SCORES), rewards=rewards, judged=judged(), answers=answers
    )
    numbers = {name: float(value) for name, value in out.items()}
    expected = {
        "reward": float(CHI.sum() / 2),
        "attribution": (0.8 + 0.2) / 2,  # of whole responses
        "kl_reference": 0.0,
        "kl_anchor": float(KL[MASK].mean()),
        "prior_likelihood": float(PRIOR[MASK].mean()),
        "response_length": 3.0,
        "length_ratio": 0.75,
        "collapse_share": 0.5,  # the second is shorter than three tokens
    }
    assert numbers == pytest.approx(expected, abs=1e-5)


def method_of(world, **dareu):
    cfg = build_config(
        {
            "reward": REWARD,
            "guards": {"kl_budget": 1e3},
            "dareu": {
                **DAREU,
                "batch_size": 4,
                "retain_batch_size": 4,
                "updates_per_batch": 1,
                "data_epochs": 2,
                "learning_rate": 0.01,
                "kl_anchor": "behaviour",
                **dareu,
            },
        }
    )
    return METHODS.get("dareu").make(cfg, world)


def walk(method, params, steps):
    """Policies before each step, behaviour policies of it, metrics."""
    state, out = method.init(params, key=jax.random.key(0)), []
    batch = {"forget": [answers_of([0, 1, 2, 3])], "retain": [answers_of([0, 1, 2, 3])]}
    for step in range(steps):
        policy = jax.tree.map(np.array, state.trainable["decoder"])
        state, metrics = method.step(state, batch, step, key=jax.random.key(step))
        behaviour = jax.tree.map(np.array, state.behaviour)
        out.append((policy, behaviour, {k: float(v) for k, v in metrics.items()}))
    return out


def equal(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope="module")
def scored(world):
    """The world with a fixed score for every prefix of a batch of four."""
    scores = np.random.default_rng(0).uniform(0.1, 0.6, (4, T, 3))
    return dataclasses.replace(
        world, stages={"reward": rewarded(jnp.asarray(scores, jnp.float32))}
    )


def test_per_batch_samples_from_the_newest_policy(scored, params):
    steps = walk(method_of(scored, old_policy="per_batch"), params, 3)
    for policy, behaviour, metrics in steps:
        assert equal(behaviour, policy)
        assert metrics["kl_anchor"] == 0.0  # identically, so it cannot anchor
    assert steps[0][2]["kl_reference"] == 0.0
    assert all(metrics["kl_reference"] != 0.0 for _, _, metrics in steps[1:])


def test_per_data_epoch_samples_an_epoch_from_the_policy_at_its_start(scored, params):
    method = method_of(scored, old_policy="per_data_epoch")
    assert method.steps == 4  # two epochs of two batches
    steps = walk(method, params, 4)
    policies = [policy for policy, _, _ in steps]
    behaviours = [behaviour for _, behaviour, _ in steps]
    assert equal(behaviours[0], policies[0]) and equal(behaviours[1], policies[0])
    assert equal(behaviours[2], policies[2]) and equal(behaviours[3], policies[2])
    assert not equal(policies[0], policies[2])
    kl = [metrics["kl_anchor"] for _, _, metrics in steps]
    assert kl[0] == 0.0 and kl[1] != 0.0 and kl[2] == 0.0 and kl[3] != 0.0


def traced(on, trainable, reference, answers):
    """The programs of judging, a PPO step and a distillation step, with arguments."""
    first, second = (on.optimiser.init(trainable) for _ in range(2))
    phase, both = phases_of(on), {"frozen": {}, "trainable": trainable}
    judging = both | {
        "behaviour": trainable["decoder"],
        "reference": reference,
        "prior": reference,
        "base": reference,
        "answers": answers,
    }
    said = phase.judge(**judging)
    experience = Experience(answers, *[said.logps] * 4, said.anchor)
    learning = both | {
        "trainable": copied(trainable),
        "opt_state": first,
        "anchor": (reference,),
        "experience": experience,
    }
    keeping = both | {
        "trainable": copied(trainable),
        "opt_state": second,
        "reference": reference,
        "retain": answers,
    }
    return [(phase.judge, judging), (phase.update, learning), (phase.distil, keeping)]


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_no_phase_holds_the_logits_of_a_whole_batch(world, iteration, kl_in):
    """Traced, not run: 8 answers of 256 tokens over Qwen3's vocabulary."""
    rows, prompt, response, vocab = 8, 16, 256, 151_936
    cfg = build_config({"dareu": {**DAREU, "kl_in": kl_in, "kl_estimator": "full"}})
    model = Decoder(decoder_config(ModelConfig(preset="decoder-40k"), vocab))
    wide = dataclasses.replace(world, model=model, stages={"prior": Prior(model, None)})
    on = setting_of(cfg, wide)

    def whole_iteration(params, answers):
        head = init_head(1, model.cfg.embed, key=jax.random.key(0))
        trainable = {"decoder": params, "value_head": head}
        programs = traced(on, trainable, params, answers)
        return [program(**given) for program, given in programs]

    params = jax.eval_shape(lambda k: init_decoder(model, key=k), jax.random.key(0))
    shape = jax.ShapeDtypeStruct
    answers = TokenBatch(
        *(shape((rows, prompt), dtype) for dtype in (jnp.int32, bool)),
        *(shape((rows, response), dtype) for dtype in (jnp.int32, bool)),
        shape((rows,), jnp.int32),
    )
    program = jax.make_jaxpr(whole_iteration)(params, answers)
    assert 2**24 < max(sizes_in(program.jaxpr)) <= LOGITS_AT_ONCE


def test_logits_in_parts_change_no_phase(monkeypatch, iteration, trainable, world):
    dareu = {"kl_in": "loss", "kl_estimator": "full", "kl_coef": 0.5}
    on, _, answers, _, _ = iteration(dareu, trainable["decoder"])
    outcomes = []
    for at_once in (LOGITS_AT_ONCE, 1):
        monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
        programs = traced(on, trainable, world.reference, answers)
        outcomes.append([program(**named) for program, named in programs])
    for whole, part in zip(*map(jax.tree.leaves, outcomes), strict=True):
        np.testing.assert_allclose(part, whole, rtol=1e-4, atol=1e-5)
