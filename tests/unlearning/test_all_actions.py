"""Phases that learn from all likely tokens: what is rewarded, and where it leads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.attribution.kernel import from_prefixes
from dareu_jax.config import ModelConfig, build_config
from dareu_jax.data import TokenBatch
from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    decoder_config,
    init_decoder,
    logits_of,
    response_hidden,
)
from dareu_jax.runs.checks import check_actions
from dareu_jax.training.optimiser import make_optimiser
from dareu_jax.unlearning import MethodInputs
from dareu_jax.unlearning.phase_table import phases_of
from dareu_jax.unlearning.setting import Experience, Setting

VOCAB, B, P, T, END = 16, 2, 3, 4, 2


def by_token():
    """DA = token / 16 of the last token for owner 1, the rest for owner 0."""

    def prefix_score(params, index, queries):
        of_one = queries.response.astype(jnp.float32) / VOCAB
        return jnp.stack([1.0 - of_one, of_one], axis=-1)

    return from_prefixes(
        name="by_token",
        owners=2,
        init=lambda params, *, key: None,
        update=lambda params, batch, acc: (acc, {}),
        prefix_score=prefix_score,
    )


@pytest.fixture(scope="module")
def world():
    model = Decoder(decoder_config(ModelConfig(preset="decoder-40k"), VOCAB))
    make = jax.jit(lambda key: init_decoder(model, key=key))
    params = jax.tree.map(lambda x: 3.0 * x, make(jax.random.key(0)))
    return MethodInputs(
        model=model,
        reference=params,
        forget_columns=(1,),
        forget_owner=jnp.asarray([1, 1], jnp.int32),
        response_tokens=T,
        stop_ids=(END,),
        gold_length=4.0,
    )


ANSWERS = TokenBatch(
    prompt=jnp.asarray([[3, 4, 5], [6, 7, 8]], jnp.int32),
    prompt_mask=jnp.ones((B, P), bool),
    response=jnp.asarray([[9, 1, 12, 2], [5, 14, 3, 7]], jnp.int32),
    response_mask=jnp.ones((B, T), bool),
    index=jnp.asarray([0, 1], jnp.int32),
)


def set_up(world, **dareu):
    """The setting of a configuration and its phases."""
    given = {"actions": "top_k", "top_k": VOCAB, "kl_anchor": "reference", **dareu}
    cfg = build_config({"dareu": given})
    on = Setting(
        inputs=world,
        hp=cfg.dareu,
        reward=cfg.reward,
        kernel=by_token(),
        prior=None,
        optimiser=make_optimiser(5e-4, 400, decay=False),
    )
    return on, phases_of(on)


def judged_by(world, phase, policy):
    return phase.judge(
        frozen={},
        trainable={"decoder": policy},
        behaviour=policy,
        reference=world.reference,
        prior=None,
        base=None,
        answers=ANSWERS,
    )


def acted_on(world, phase):
    """What is known of the likely tokens, and of the frozen models."""
    judged = judged_by(world, phase, world.reference)
    given = {"params": None, "index": None, "answers": ANSWERS}
    scores = phase.attribute(**given)
    return phase.expect(**given, scores=scores, judged=judged), judged


@functools.partial(jax.jit, static_argnums=0)
def read(model, params):
    hidden = response_hidden(model, params, ANSWERS)
    return jax.nn.softmax(logits_of(model, params, hidden))


def probabilities(world, params):
    return np.asarray(read(world.model, params))


def chi(score):
    return np.clip(np.log(1.0 - score) / 1.05, -1.0, 0.0)


def test_every_token_is_rewarded_for_the_text_that_it_makes(world):
    _, phase = set_up(world)
    actions, _ = acted_on(world, phase)
    wanted = chi(np.asarray(actions.tokens) / VOCAB)
    is_end = np.asarray(actions.tokens) == END
    np.testing.assert_allclose(actions.gains[~is_end], wanted[~is_end], atol=1e-5)
    before = chi(np.asarray(ANSWERS.response[:, :-1]) / VOCAB)
    np.testing.assert_allclose(actions.rest[:, 1:], before, atol=1e-5)
    behind = is_end[:, 1:].any(axis=-1)
    assert behind.all()  # all tokens are actions here
    ends = np.asarray(actions.gains)[:, 1:][is_end[:, 1:]].reshape(before.shape)
    np.testing.assert_allclose(ends, before, atol=1e-5)
    share = np.where(is_end[:, 0], 0.0, np.exp(np.asarray(actions.logps[:, 0])))
    mean = (share * wanted[:, 0]).sum(-1) / share.sum(-1)
    np.testing.assert_allclose(actions.rest[:, 0], mean, atol=1e-5)


@pytest.mark.parametrize("form", ["teacher", "gradient"])
def test_the_policy_goes_to_the_tilted_anchor(world, form):
    weights = {"kl_coef": 1.0, "policy_weight": 2.0}
    on, phase = set_up(world, top_k_as=form, clip=0.9, **weights)
    policy = world.reference
    trainable, zeros = {"decoder": jax.tree.map(jnp.copy, policy)}, jnp.zeros((B, T))
    opt_state = on.optimiser.init(trainable)
    actions, judged = acted_on(world, phase)
    tilt = np.zeros((B, T, VOCAB))
    gains, tokens = (np.asarray(x) for x in (actions.gains, actions.tokens))
    np.put_along_axis(tilt, tokens, 2.0 * gains, axis=-1)
    before = probabilities(world, policy)
    wanted = before * np.exp(tilt)
    wanted /= wanted.sum(-1, keepdims=True)
    apart = np.abs(before - wanted).max()
    assert apart > 0.05
    for _ in range(80):
        # The policy of the last step is the old one of the next.
        logps = np.log(probabilities(world, trainable["decoder"]))
        own = np.take_along_axis(logps, tokens, axis=-1)
        experience = Experience(
            answers=ANSWERS,
            old_logps=zeros,
            old_values=zeros,
            advantages=zeros,
            returns=zeros,
            anchor=judged.anchor,
            actions=actions._replace(logps=jnp.asarray(own)),
        )
        trainable, opt_state, metrics = phase.update(
            frozen={},
            trainable=trainable,
            opt_state=opt_state,
            anchor=(world.reference,),
            experience=experience,
        )
    found = probabilities(world, trainable["decoder"])
    assert np.abs(found - wanted).max() < 0.1 * apart
    assert metrics["kl_anchor"] > 0


@pytest.mark.parametrize("given", [{"kl_in": "reward"}, {"kl_coef": 0.0}])
def test_there_is_an_anchor_in_the_loss(given):
    with pytest.raises(UserError, match=r"top_k learns beside .*; set"):
        build_config({"dareu": {"actions": "top_k", **given}})


def test_a_prior_pays_for_sampled_tokens_alone():
    cfg = build_config({"dareu": {"actions": "top_k"}, "reward": {"prior": "sequence"}})
    with pytest.raises(UserError, match=r"row dareu: .*set reward.prior=none"):
        check_actions("dareu", cfg)
    check_actions("npo", cfg)
