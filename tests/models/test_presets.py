"""Named shapes: their sizes, and how the configuration changes them."""

import math

import jax
import pytest

from dareu_jax.config import ModelConfig
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, decoder_config, init_decoder
from dareu_jax.registry import MODELS

VOCAB = 1024
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9}


def size(cfg):
    shapes = jax.eval_shape(lambda: init_decoder(Decoder(cfg), key=jax.random.key(0)))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", MODELS.names())
def test_a_preset_has_about_as_many_parameters_as_its_name_says(name):
    number = name.rpartition("-")[-1]
    promised = float(number[:-1]) * UNITS[number[-1]]
    vocab = MODELS.get(name).get("vocab", VOCAB)
    counted = size(decoder_config(ModelConfig(preset=name), vocab))
    assert promised / 1.5 < counted < promised * 1.5


def test_parameters_are_counted_as_the_shape_says():
    cfg = decoder_config(ModelConfig(preset="decoder-40k"), 64)
    attention = 32 * 32 + 2 * 32 * 16 + 32 * 32  # q; k and v with one head; o
    expected = 64 * 32 + attention + 3 * 32 * 64 + 3 * 32  # three norms
    assert size(cfg) == expected


def test_the_vocabulary_is_an_argument():
    cfg = decoder_config(ModelConfig(preset="decoder-40k"), 64)
    assert (cfg.vocab, cfg.layers, cfg.embed) == (64, 1, 32)


def test_fields_that_are_given_win_over_the_preset():
    given = ModelConfig(
        preset="decoder-40k",
        layers=3,
        kv_heads=2,
        tied=False,
        qk_norm=True,
        rope_theta=500.0,
        compute_dtype="bfloat16",
    )
    cfg = decoder_config(given, 64)
    assert (cfg.layers, cfg.kv_heads, cfg.rope_theta) == (3, 2, 500.0)
    assert not cfg.tied and cfg.qk_norm and cfg.compute_dtype == "bfloat16"
    assert (cfg.embed, cfg.heads, cfg.param_dtype) == (32, 2, "float32")


def test_changing_a_preset_leaves_the_registered_one_alone():
    decoder_config(ModelConfig(preset="decoder-40k", layers=3), 64)
    assert decoder_config(ModelConfig(preset="decoder-40k"), 64).layers == 1


def test_rope_scaling_of_the_configuration_makes_a_hashable_shape():
    given = ModelConfig(
        preset="decoder-40k", rope_scaling={"type": "linear", "factor": 4}
    )
    cfg = decoder_config(given, 64)
    assert cfg.rope_scaling is not None
    assert dict(cfg.rope_scaling) == {"type": "linear", "factor": 4.0}
    assert hash(Decoder(cfg)) == hash(Decoder(decoder_config(given, 64)))


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(UserError, match=r"decoder-40kk.*known: .*decoder-40k"):
        decoder_config(ModelConfig(preset="decoder-40kk"), 64)


def test_heads_that_cannot_be_grouped_are_refused():
    with pytest.raises(UserError, match="heads = 3"):
        decoder_config(ModelConfig(preset="decoder-40k", heads=3, kv_heads=2), 64)
