"""Answers of a loaded model: sampled, in whatever batch, or refused."""

import jax
import numpy as np
import pytest

from dareu_jax.config import ModelConfig
from dareu_jax.data import load_tokenizer
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, decoder_config, init_decoder
from dareu_jax.models.loaded import LoadedModel
from dareu_jax.parallel import make_mesh

PROMPTS = [f"What did the {n} do?" for n in ("baker", "miller", "king", "old smith")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "hf"
    tokenizer = load_tokenizer(None, PROMPTS, 300, folder)
    decoder = Decoder(decoder_config(ModelConfig(preset="decoder-40k", layers=1), 300))
    params = jax.jit(lambda key: init_decoder(decoder, key=key))(jax.random.key(0))
    mesh = make_mesh(devices=jax.devices()[:1])
    return LoadedModel(decoder, params, tokenizer, mesh, "")


@pytest.fixture(scope="module")
def sampled(model):
    return model.generate(PROMPTS, 12, 4, temperature=1.0, seed=1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_no_sampled_answer(model, sampled, batch_size):
    assert model.generate(PROMPTS, 12, batch_size, temperature=1.0, seed=1) == sampled


def test_a_seed_draws_answers_of_its_own(model, sampled):
    assert len(set(sampled)) == 4
    assert model.generate(PROMPTS, 12, 4, temperature=1.0, seed=2) != sampled


@pytest.mark.parametrize("few", [{"top_k": 1}, {"top_p": 1e-6}])
def test_of_one_token_to_draw_from_the_likeliest_is_drawn(model, few):
    greedy = model.generate(PROMPTS, 12, 4)
    assert model.generate(PROMPTS, 12, 4, temperature=1.0, **few) == greedy


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -0.1}, "temperature = -0.1 must be 0 or more"),
        ({"top_k": -1}, "top_k = -1 must be 0"),
        ({"top_p": 0.0}, "top_p = 0.0 must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p = 1.5 must be"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(model, given, message):
    with pytest.raises(UserError, match=message):
        model.generate(PROMPTS, 12, **given)


def test_padded_rows_of_the_last_batch_change_nothing(model, sampled):
    rows = model.generate(PROMPTS[:3], 12, 2, temperature=1.0, seed=1)
    np.testing.assert_array_equal(rows, sampled[:3])
