"""Hugging Face folders: the same logits as transformers, and back bit for bit."""

import dataclasses
import functools
import importlib.util
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    generate,
    hidden_states,
    init_adapters,
    init_decoder,
    join,
    logits_of,
)
from dareu_jax.models.hf.families import config_json, read_config
from dareu_jax.models.hf.families.family import ACTIVATIONS
from dareu_jax.models.hf.families.table import Part
from dareu_jax.models.hf.folder import INDEX, HfFolder, plan_shards, write_tensors
from dareu_jax.models.hf.weights import (
    hf_arrays,
    load_params,
    peft_arrays,
    stored_dtype,
    tensor_sizes,
)
from dareu_jax.parallel import make_mesh
from dareu_jax.registry import FAMILIES

pytestmark = pytest.mark.slow

NAMES = (
    *("llama2", "llama3", "llama_linear", "mistral", "mistral_full"),
    *("qwen2", "qwen2_window", "qwen2_late_window", "qwen3", "olmo2", "olmo2_bias"),
    *("smollm3", "smollm3_window", "phi3", "phi4_mini", "gemma2", "gemma3"),
    *("pythia", "gpt_neox"),
)


@pytest.fixture(scope="module")
def load(hf, tmp_path_factory):
    """``load(name)``: folder, model and parameters of a tiny model, read once."""

    @functools.cache
    def read(name, shards=1):
        folder = tmp_path_factory.mktemp(name) / "hf"
        source = HfFolder(hf.make_folder(folder, hf.config_of(name), shards))
        cfg = read_config(source.config, "config.json")
        mesh = make_mesh(1, 1, 1, jax.devices()[:1])
        return SimpleNamespace(
            folder=folder,
            source=source,
            cfg=cfg,
            model=Decoder(cfg),
            params=load_params(source, cfg, mesh),
        )

    return read


@functools.partial(jax.jit, static_argnums=0)
def all_logits(model, params, tokens, mask):
    return logits_of(model, params, hidden_states(model, params, tokens, mask))


def test_every_family_is_tried(hf):
    assert set(NAMES) == set(hf.CONFIGS)
    tried = {config["model_type"] for config in hf.CONFIGS.values()}
    assert tried == set(FAMILIES.names())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(hf, load, name):
    tiny, (tokens, mask) = load(name), hf.inputs()
    wanted = np.load(hf.GOLDEN / f"{name}.npz")["logits"]
    found = np.asarray(all_logits(tiny.model, tiny.params, tokens, mask))
    assert np.abs(found - wanted)[mask].max() < 2e-4
    assert (found.argmax(-1) == wanted.argmax(-1))[mask].all()


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_are_those_of_transformers(hf, load, name):
    tiny, (tokens, mask) = load(name), hf.inputs()
    rollout = generate(
        tiny.model,
        tiny.params,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        max_new_tokens=hf.NEW_TOKENS,
        temperature=0.0,
        stop_ids=(-1,),
        key=jax.random.key(0),
    )
    wanted = np.load(hf.GOLDEN / f"{name}.npz")["new"]
    np.testing.assert_array_equal(rollout.tokens, wanted)


@pytest.mark.torch
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed"
)
@pytest.mark.parametrize("name", NAMES)
def test_transformers_still_says_what_the_golden_arrays_say(hf, load, name):
    logits, new = hf.run_transformers(load(name).folder)
    golden = np.load(hf.GOLDEN / f"{name}.npz")
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5)
    np.testing.assert_array_equal(new, golden["new"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("limit", [10**9, 4_000])
def test_export_gives_back_every_tensor_bit_for_bit(hf, load, tmp_path, name, limit):
    tiny = load(name)
    sizes = tensor_sizes(tiny.cfg)
    write_tensors(tmp_path, sizes, hf_arrays(tiny.cfg, tiny.params), limit)
    fields = config_json(tiny.cfg, max_positions=64)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    back = HfFolder(tmp_path)
    shapes = hf.shapes_of(hf.config_of(name))
    assert back.shapes == shapes
    for tensor, shape in shapes.items():
        np.testing.assert_array_equal(back.read(tensor), hf.tensor(tensor, shape))
    assert read_config(back.config, "config.json") == tiny.cfg
    assert (tmp_path / INDEX).exists() == (limit == 4_000)
    for file in tmp_path.glob("*.safetensors"):
        held = HfFolder(tmp_path)._file  # each file within its limit, or one tensor
        names = [n for n, path in held.items() if path == file]
        assert len(names) == 1 or sum(sizes[n] for n in names) <= limit


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 4, 2), (1, 1, 8), (2, 2, 2)])
def test_shards_on_a_mesh_are_the_same_arrays(load, mesh):
    tiny = load("qwen3", shards=3)
    spread = load_params(tiny.source, tiny.cfg, make_mesh(*mesh))
    jax.tree.map(np.testing.assert_array_equal, spread, tiny.params)
    if mesh == (1, 4, 2):
        kernel = spread["layers"]["mlp"]["gate"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 8


@pytest.mark.parametrize("name", ["phi3", "pythia"])
@pytest.mark.parametrize("mesh", [(1, 4, 2), (1, 1, 8)])
def test_fused_tensors_are_cut_where_a_device_needs_them(load, name, mesh):
    tiny = load(name)
    spread = load_params(tiny.source, tiny.cfg, make_mesh(*mesh))
    jax.tree.map(np.testing.assert_array_equal, spread, tiny.params)


def test_rows_of_a_fused_tensor_are_found_across_its_blocks():
    part = Part(start=2, size=2, step=6)  # rows 2 3, 8 9, 14 15
    whole = np.arange(18)
    for first in range(6):
        for last in range(first + 1, 7):
            found = [whole[rows] for rows in part.slices(slice(first, last))]
            wanted = np.array([2, 3, 8, 9, 14, 15])[first:last]
            np.testing.assert_array_equal(np.concatenate(found), wanted)


def test_adapters_of_a_fused_tensor_cannot_be_exported_alone(load):
    tiny = load("phi3")
    params = join(tiny.params, init_adapters(tiny.params, 2, key=jax.random.key(0)))
    with pytest.raises(UserError, match=r"adapters of phi3.*qkv_proj; leave --ad"):
        list(peft_arrays(tiny.cfg, params))
    cfg = dataclasses.replace(tiny.cfg, family="llama")
    assert len(list(peft_arrays(cfg, params))) == 2 * 7 * cfg.layers


def test_a_model_is_written_as_the_family_that_it_was_read_from(load):
    tiny = load("mistral_full")
    assert tiny.cfg == dataclasses.replace(tiny.cfg, family="llama")
    assert config_json(tiny.cfg, 64)["model_type"] == "mistral"
    nameless = dataclasses.replace(tiny.cfg, family=None)
    assert config_json(nameless, 64)["model_type"] == "llama"
    windowed = dataclasses.replace(tiny.cfg, family="llama", sliding_window=3)
    assert config_json(windowed, 64)["model_type"] == "mistral"


def test_a_process_reads_no_more_than_its_devices_hold(load, monkeypatch):
    tiny = load("llama2", shards=2)
    read = []
    whole = HfFolder.read

    def counted(self, name, rows=()):
        value = whole(self, name, rows)
        read.append(value.size)
        return value

    monkeypatch.setattr(HfFolder, "read", counted)
    load_params(tiny.source, tiny.cfg, make_mesh(8, 1, 1))
    total = sum(int(np.prod(shape)) for shape in tiny.source.shapes.values())
    assert sum(read) == total  # copies on 8 devices, read once
    read.clear()
    load_params(tiny.source, tiny.cfg, make_mesh(1, 8, 1))
    assert sum(read) == total and max(read) <= 61 * 24 // 8 + 24 * 24


def test_bfloat16_weights_stay_bfloat16(hf, tmp_path):
    config = hf.config_of("llama3")
    source = HfFolder(hf.make_folder(tmp_path, config, dtype=ml_dtypes.bfloat16))
    assert stored_dtype(source) == "bfloat16"
    cfg = read_config(source.config, "config.json")
    cfg = dataclasses.replace(cfg, param_dtype="bfloat16")
    params = load_params(source, cfg, make_mesh(-1))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    for name, array in hf_arrays(cfg, params):
        wanted = hf.tensor(name, array.shape, ml_dtypes.bfloat16)
        assert array.dtype == wanted.dtype and (array == wanted).all()


def test_a_model_trained_here_can_be_written_for_transformers(tmp_path):
    for cfg in (
        {"qk_norm": True},
        {"qkv_bias": True},
        {"sliding_window": 7},
        {},
        {"rope_scaling": (("factor", 2.0), ("type", "linear"))},
    ):
        shape = {"vocab": 50, "layers": 2, "embed": 16, "heads": 2, "kv_heads": 1}
        fields = config_json(decoder_shape(**shape, **cfg), max_positions=32)
        again = read_config(json.loads(json.dumps(fields)), "config.json")
        assert again == decoder_shape(**shape, **cfg)
    with pytest.raises(UserError, match="no Hugging Face family"):
        config_json(decoder_shape(**shape, qk_norm=True, qkv_bias=True), 32)


def decoder_shape(**fields):
    from dareu_jax.models import DecoderConfig

    return DecoderConfig(head_dim=8, ffn=24, **fields)


BAD_FIELDS = [
    (
        {"model_type": "gpt2"},
        r"model_type = 'gpt2' is not supported; known: gemma2, .*llama, mis",
    ),
    ({"model_type": None}, r"model_type = None"),
    ({"hidden_act": "gelu"}, r"hidden_act = 'gelu'.*supported: 'silu'"),
    ({"attention_bias": True}, r"attention_bias = True is not supported for llama"),
    ({"mlp_bias": True}, r"mlp_bias = True"),
    ({"quantization_config": {"bits": 4}}, r"quantization_config"),
    ({"hidden_size": None}, r"lacks hidden_size"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"'yarn'.*known: default"),
    ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor = None must be"),
]


@pytest.mark.parametrize(("change", "message"), BAD_FIELDS)
def test_a_config_with_other_maths_is_refused(hf, change, message):
    fields = {**hf.config_of("llama2"), **change}
    with pytest.raises(UserError, match=message):
        read_config(fields, "x/config.json")


BAD_FIELDS_OF_A_FAMILY = [
    ("phi3", {"rope_scaling": {"type": "longrope"}}, "'longrope' is not supp"),
    ("phi3", {"partial_rotary_factor": 0.1}, "x: .*rotary_share = 0.1 of 6"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "x: query_pre_attn_scalar = 0 must be"),
    ("gemma2", {"hidden_activation": "tanh"}, "hidden_activation = 'tanh'.*'silu'"),
    ("gemma2", {"sliding_window": None}, "sliding_window = None must be a whole"),
    ("gemma2", {"layer_types": ["chunked"] * 3}, "layer_types has 'chunked'.*known"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types.*each of 3 layers"),
    ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping = 5.0 is not"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters.*must name"),
    ("gemma3", {"rope_scaling": {"type": "linear"}}, "rope_scaling has no rope_type"),
    ("smollm3", {"no_rope_layers": [1]}, r"no_rope_layers = \[1\] must have"),
    ("pythia", {"head_dim": 4}, "head_dim = 4 is not supported: 8"),
    ("pythia", {"layer_norm_eps": 0}, "layer_norm_eps = 0 must be a number over 0"),
    ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD_FIELDS_OF_A_FAMILY)
def test_what_a_family_cannot_be_is_refused(hf, name, change, message):
    with pytest.raises(UserError, match=message):
        read_config({**hf.config_of(name), **change}, "x")


OPTIONAL = (
    *("num_key_value_heads", "head_dim", "sliding_window", "tie_word_embeddings"),
    *("rope_parameters", "rope_theta", "rope_scaling", "hidden_act", "rms_norm_eps"),
)


@pytest.mark.parametrize("heads", [32, 64])
@pytest.mark.parametrize("family", FAMILIES.names())
def test_an_absent_field_means_what_transformers_takes_it_for(hf, family, heads):
    from transformers import AutoConfig

    fields = {**hf.config_of("llama2"), "model_type": family, "hidden_size": 1024}
    fields |= {"num_attention_heads": heads, "num_hidden_layers": 4}
    fields = {name: x for name, x in fields.items() if name not in OPTIONAL}
    theirs = AutoConfig.for_model(**fields).to_dict()
    ours = read_config(fields, "config.json")
    assert ours.kv_heads == theirs.get("num_key_value_heads", heads)
    assert ours.head_dim == (theirs.get("head_dim") or 1024 // heads)
    assert ours.sliding_window == theirs.get("sliding_window")
    assert ours.tied == theirs["tie_word_embeddings"]
    rope = theirs["rope_parameters"]
    whole = rope.get("full_attention", rope)
    assert ours.rope_theta == whole["rope_theta"]
    assert ours.rotary_share == whole.get("partial_rotary_factor", 1.0)
    if "sliding_attention" in rope:
        assert ours.window_rope_theta == rope["sliding_attention"]["rope_theta"]
    activation = theirs.get("hidden_activation") or theirs["hidden_act"]
    assert ours.activation == ACTIVATIONS[activation]
    assert ours.score_softcap == theirs.get("attn_logit_softcapping")
    assert ours.logit_softcap == theirs.get("final_logit_softcapping")
    assert ours.score_dim == theirs.get("query_pre_attn_scalar")
    assert ours.norm_eps == theirs.get("layer_norm_eps", theirs.get("rms_norm_eps"))
    assert (ours.rotated or (True,) * 4) == tuple(
        bool(x) for x in theirs.get("no_rope_layers", [1] * 4)
    )
    kinds = theirs.get("layer_types") or ["full_attention"] * 4
    windowed = [kind == "sliding_attention" for kind in kinds]
    if family != "mistral":
        everywhere = (ours.sliding_window is not None,) * 4
        assert list(ours.windowed or everywhere) == windowed


def test_harmless_fields_are_let_through(hf):
    fields = hf.config_of("llama2")
    same = read_config(fields, "config.json")
    extra = {"torch_dtype": "float16", "use_cache": True, "something_off": None}
    said = []
    assert read_config({**fields, **extra}, "config.json", said.append) == same
    assert not said


@pytest.fixture
def sharded(hf, tmp_path):
    return hf.make_folder(tmp_path / "hf", hf.config_of("llama2"), shards=3)


def open_and_load(folder):
    source = HfFolder(folder)
    return load_params(source, read_config(source.config, "config.json"), make_mesh(-1))


def truncate(folder):
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def promise_too_much(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00003.safetensors"
    (folder / INDEX).write_text(json.dumps(index))


def only_pickles(folder):
    for path in folder.glob("*safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")


def change_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def put_nan(folder):
    from safetensors.numpy import load_file, save_file

    path = folder / "model-00001-of-00003.safetensors"
    held = load_file(str(path))
    name = next(n for n in held if n.endswith("proj.weight"))
    held[name][0, 0] = np.nan
    save_file(held, str(path))


DAMAGE = {
    "missing shard": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        r"model-00002-of-00003\.safetensors is missing",
    ),
    "truncated shard": (truncate, r"00002.*is no whole safetensors file"),
    "index names too much": (promise_too_much, r"says that model\.extra\.weight is in"),
    "only pickles": (only_pickles, r"pytorch_model\.bin, a pickle"),
    "no weights": (
        lambda f: [p.unlink() for p in f.glob("*safetensors*")],
        r"holds neither model\.safetensors nor",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), r"not valid JSON"),
    "wrong shape": (
        lambda f: change_config(f, intermediate_size=41),
        r"has shape \[40, 24\], config\.json says \[41, 24\]",
    ),
    "missing tensor": (
        lambda f: change_config(f, num_hidden_layers=3),
        r"has no tensor model\.layers\.2\.",
    ),
    "more tensors than layers": (
        lambda f: change_config(f, num_hidden_layers=1),
        r"has a tensor model\.layers\.1\..* that config\.json does not name",
    ),
    "NaN": (put_nan, r"proj\.weight has values that are NaN"),
    "no folder": (lambda f: shutil.rmtree(f), r"no folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_named(sharded, damage):
    spoil, message = DAMAGE[damage]
    spoil(sharded)
    with pytest.raises(UserError, match=message):
        open_and_load(sharded)


@pytest.mark.parametrize(
    ("sizes", "limit", "groups"),
    [
        ([3, 3, 3], 10, [3]),
        ([3, 3, 3], 6, [2, 1]),
        ([9, 1, 1], 5, [1, 2]),
        ([5], 1, [1]),
    ],
)
def test_files_are_filled_in_order(sizes, limit, groups):
    plan = plan_shards({str(i): size for i, size in enumerate(sizes)}, limit)
    assert [len(names) for names in plan.values()] == groups
    if len(groups) == 2:
        assert list(plan) == [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
        ]


def test_the_paths_are_those_of_a_fresh_decoder(load):
    tiny = load("qwen2")
    fresh = jax.eval_shape(lambda k: init_decoder(tiny.model, key=k), jax.random.key(0))
    assert jax.tree.structure(fresh) == jax.tree.structure(tiny.params)
