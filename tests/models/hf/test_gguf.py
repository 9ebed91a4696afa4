"""GGUF files: what transformers computes on them, and one line for a bad one."""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import make_gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from dareu_jax.data import Wording, read_tokenizer
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, hidden_states, logits_of
from dareu_jax.models.hf.families import read_config
from dareu_jax.models.hf.folder import HfFolder
from dareu_jax.models.hf.gguf import GgufFile
from dareu_jax.models.hf.gguf_config import config_fields, llama3_factors
from dareu_jax.models.hf.gguf_tokenizer import write_tokenizer
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.hf.weights import load_params, stored_dtype
from dareu_jax.models.layers import rope_frequencies
from dareu_jax.models.loaded import load_model
from dareu_jax.parallel import make_mesh

pytestmark = pytest.mark.slow

WIDE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
MIXTURE = (Kind.Q4_1, Kind.Q8_0, Kind.Q4_0, Kind.F16)
TEXTS = [
    "",
    " ",
    "the model says what the reader knows",
    "  two spaces, 1999 and 12345",
    "\n 2\n\n  34\t5",
    "It's <|im_start|>user\nHi<|im_end|> and <pad>",
    "ünï 日本語 🙂 é",
]


def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


def opened(path):
    """A file's configuration and parameters."""
    source = GgufFile(path)
    cfg = read_config(source.config, str(path))
    return cfg, load_params(source, cfg, one_device())


@pytest.mark.parametrize("name", ["llama2", "qwen2", "qwen3"])
def test_logits_are_those_of_transformers(hf, tmp_path, name):
    """Of the same weights in a folder: the golden arrays are transformers' own."""
    path, (tokens, mask) = tmp_path / "model.gguf", hf.inputs()
    make_gguf.make_gguf(path, hf.config_of(name))
    cfg, params = opened(path)
    model = Decoder(cfg)
    found = logits_of(model, params, hidden_states(model, params, tokens, mask))
    wanted = np.load(hf.GOLDEN / f"{name}.npz")["logits"]
    assert np.abs(np.asarray(found) - wanted)[mask].max() < 2e-4


def folder_of(hf, folder, config, tensors):
    """A Hugging Face folder of given tensors."""
    from safetensors.numpy import save_file

    hf.make_folder(folder, config)
    save_file(tensors, str(folder / "model.safetensors"))
    return folder


@pytest.mark.parametrize(
    "kinds", [(Kind.F32,), (Kind.Q8_0,), (Kind.Q4_1,), (Kind.Q4_0,), MIXTURE]
)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_parameters_are_those_of_a_folder_of_the_dequantised_tensors(
    hf, tmp_path, kind, kinds
):
    config = {**WIDE, "model_type": kind, "rope_theta": 500.0, "head_dim": 8}
    worth = make_gguf.make_gguf(tmp_path / "model.gguf", config, kinds)
    source = HfFolder(folder_of(hf, tmp_path / "hf", config, worth))
    cfg, params = opened(tmp_path / "model.gguf")
    wanted = read_config(source.config, "config.json")
    assert cfg.norm_eps == pytest.approx(wanted.norm_eps)
    assert cfg.rope_theta == wanted.rope_theta and cfg.head_dim == wanted.head_dim
    same = load_params(source, wanted, one_device())
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_an_imported_file_has_the_logits_of_the_imported_folder(hf, tmp_path):
    config = {**WIDE, "model_type": "llama", "rope_theta": 500.0}
    worth = make_gguf.make_gguf(tmp_path / "a.gguf", config, MIXTURE)
    said = []
    made = import_folder(tmp_path / "a.gguf", tmp_path / "a", say=said.append)
    folder = folder_of(hf, tmp_path / "hf", config, worth)
    for path in made.files.glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    other = import_folder(folder, tmp_path / "b")
    assert made.cfg.param_dtype == other.cfg.param_dtype == "float32"
    a, b = load_model(made.folder), load_model(other.folder)
    assert a.fingerprint == b.fingerprint and a.context == 64
    for x, y in zip(a.logps(["Who"], ["the reader"]), b.logps(["Who"], ["the reader"])):
        np.testing.assert_allclose(x, y, atol=1e-6)
    (sentence,) = said
    assert "its weights are dequantised; they are stored" in sentence
    assert "4 as Q4_1" in sentence and "5 as F32" in sentence


def test_rows_and_columns_are_read_as_they_are_asked_for(tmp_path):
    config = {**WIDE, "model_type": "llama"}
    worth = make_gguf.make_gguf(tmp_path / "model.gguf", config, (Kind.Q4_1,))
    source = GgufFile(tmp_path / "model.gguf")
    for name, wanted in worth.items():
        np.testing.assert_array_equal(source.read(name), wanted)
        part = (slice(3, 9), slice(5, 40))[: wanted.ndim]
        np.testing.assert_array_equal(source.read(name, part), wanted[part])


def test_shards_on_a_mesh_are_the_same_arrays(tmp_path):
    config = {**WIDE, "model_type": "llama"}
    make_gguf.make_gguf(tmp_path / "model.gguf", config, MIXTURE)
    cfg, params = opened(tmp_path / "model.gguf")
    spread = load_params(GgufFile(tmp_path / "model.gguf"), cfg, make_mesh(1, 4, 2))
    jax.tree.map(np.testing.assert_array_equal, spread, params)


def test_no_output_tensor_means_tied_embeddings(tmp_path):
    config = {**WIDE, "model_type": "llama", "tie_word_embeddings": True}
    make_gguf.make_gguf(tmp_path / "model.gguf", config)
    assert GgufFile(tmp_path / "model.gguf").config["tie_word_embeddings"] is True
    assert opened(tmp_path / "model.gguf")[0].tied


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(Kind.BF16, "bfloat16"), (Kind.F16, "float32"), (Kind.Q8_0, "float32")],
)
def test_bfloat16_stays_where_nothing_is_lost_and_all_else_is_float32(
    tmp_path, monkeypatch, kind, dtype
):
    def rounded(name, shape, dtype=np.float32):
        return plain(name, shape).astype(jnp.bfloat16).astype(np.float32)

    plain, config = make_gguf.tensor, {**WIDE, "model_type": "llama"}
    make_gguf.make_gguf(tmp_path / "finer.gguf", config, (kind,))
    assert stored_dtype(GgufFile(tmp_path / "finer.gguf")) == "float32"
    monkeypatch.setattr(make_gguf, "tensor", rounded)
    make_gguf.make_gguf(tmp_path / "model.gguf", config, (kind,))
    assert stored_dtype(GgufFile(tmp_path / "model.gguf")) == dtype


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_a_tensor_of_rope_factors_is_the_rule_of_llama_3(tmp_path, factor):
    config = {**WIDE, "model_type": "llama", "rope_theta": 5e5, "head_dim": 64}
    factors = llama3_factors(64, 5e5, factor).astype(np.float32)
    path = tmp_path / "model.gguf"
    make_gguf.make_gguf(path, config, extra={"rope_freqs.weight": factors})
    cfg, _ = opened(path)
    scaled = rope_frequencies(64, 5e5, cfg.rope_scaling)
    np.testing.assert_allclose(
        scaled, rope_frequencies(64, 5e5, None) / factors, rtol=1e-5
    )
    assert dict(cfg.rope_scaling)["factor"] == factor
    path.unlink()
    make_gguf.make_gguf(path, config, extra={"rope_freqs.weight": factors[::-1]})
    with pytest.raises(UserError, match=r"rope_freqs\.weight has other factors"):
        GgufFile(path)


def test_linear_scaling_is_read_and_yarn_is_refused_by_name(tmp_path):
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    config, path = {**WIDE, "model_type": "llama"}, tmp_path / "model.gguf"
    make_gguf.make_gguf(path, config, **keys)
    assert dict(opened(path)[0].rope_scaling) == {"type": "linear", "factor": 4.0}
    make_gguf.make_gguf(path, config, **{**keys, "llama.rope.scaling.type": "yarn"})
    with pytest.raises(UserError, match=r"model\.gguf: rope scaling 'yarn'"):
        opened(path)


GEMMA3 = {
    "general.architecture": "gemma3",
    "gemma3.context_length": 32768,
    "gemma3.block_count": 26,
    "gemma3.embedding_length": 1152,
    "gemma3.feed_forward_length": 6912,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.head_count_kv": 1,
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
    "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
    "gemma3.attention.sliding_window": 512,
    "gemma3.rope.freq_base": 1e6,
    "tokenizer.ggml.tokens": ["x"] * 262144,
    "tokenizer.ggml.eos_token_id": 106,
}


def test_the_fields_of_gemma_3_are_those_of_its_folder():
    """Of the published config.json of gemma-3-1b-it."""
    fields = config_fields(GEMMA3, tied=True, rope_factors=None, where="x")
    wanted = {
        **{"model_type": "gemma3_text", "hidden_size": 1152, "head_dim": 256},
        **{"intermediate_size": 6912, "max_position_embeddings": 32768},
        **{"num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1},
        **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e6},
        **{"rope_local_base_freq": 1e4, "sliding_window": 512, "vocab_size": 262144},
        **{"sliding_window_pattern": 6, "hidden_activation": "gelu_pytorch_tanh"},
        **{"tie_word_embeddings": True, "eos_token_id": 106},
    }
    assert {name: fields[name] for name in wanted} == wanted


def test_the_scale_of_gemma_3_27b_is_its_own():
    wide = {"gemma3.block_count": 62, "gemma3.embedding_length": 5376}
    wide |= {"gemma3.attention.head_count": 32}
    fields = config_fields({**GEMMA3, **wide}, tied=True, rope_factors=None, where="x")
    assert fields["query_pre_attn_scalar"] == 168


def reference_ids(metadata, architecture, texts):
    """The ids of transformers' own converter, without BOS."""
    from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING as NAMES
    from transformers.integrations.gguf import convert_gguf_tokenizer

    held = {
        name: metadata[f"tokenizer.{key}"]
        for key, name in NAMES["tokenizer"].items()
        if f"tokenizer.{key}" in metadata
    }
    backend, _ = convert_gguf_tokenizer(architecture, held)
    return [backend.encode(text, add_special_tokens=False).ids for text in texts]


def byte_level_metadata(pre, architecture):
    tokens, merges = make_gguf.byte_level()
    tokens += ["<|endoftext|>", "<think>"]
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.token_type": [3] * 4 + [1] * (len(tokens) - 6) + [3, 4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def sentencepiece_metadata(architecture):
    words = ["▁", "t", "h", "e", "▁t", "he", "▁the", "r", "d", "a", "er", "▁re", "ad"]
    words += ["▁▁", "▁▁▁", "n", "o", "w", "s", "in", "i", "m", "l", "de", "el"]
    gemma = architecture == "gemma3"
    words = [w.replace("▁", " ") if gemma and set(w) == {"▁"} and len(w) > 1 else w
             for w in words]  # fmt: skip
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    first = first if gemma else ["<unk>", "<s>", "</s>"]
    tokens = [*first, *bytes_, *words, "<turn>", "<tool>"]
    ends = {"bos": 2, "eos": 1} if gemma else {"bos": 1, "eos": 2}
    types = [3] * len(first) + [6] * 256 + [1] * len(words) + [3, 4]
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(n) for n in range(len(tokens))],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": ends["bos"],
        "tokenizer.ggml.eos_token_id": ends["eos"],
    }


VOCABULARIES = {
    "gpt2": byte_level_metadata("gpt-2", "llama"),
    "smollm": byte_level_metadata("smollm", "llama"),
    "llama3": byte_level_metadata("llama-bpe", "llama"),
    "qwen2": byte_level_metadata("qwen2", "qwen2"),
    "tekken": byte_level_metadata("tekken", "llama"),
    "llama": sentencepiece_metadata("llama"),
    "gemma": sentencepiece_metadata("gemma3"),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_those_of_transformers(tmp_path, name):
    metadata = VOCABULARIES[name]
    model_type = {"gemma3": "gemma3_text"}.get(
        metadata["general.architecture"], metadata["general.architecture"]
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    write_tokenizer(metadata, tmp_path, "x.gguf", lambda said: None)
    texts = [*TEXTS, "the reader <turn>in</s> <tool> rededel", "   three <think>"]
    wanted = reference_ids(metadata, metadata["general.architecture"], texts)
    tokenizer = read_tokenizer(tmp_path)
    found = [tokenizer.hf(t, add_special_tokens=False)["input_ids"] for t in texts]
    assert found == wanted
    assert tokenizer.vocab_size == len(metadata["tokenizer.ggml.tokens"])
    assert tokenizer.bos_id == metadata["tokenizer.ggml.bos_token_id"]
    begins = tokenizer.hf("the")["input_ids"][0] == tokenizer.bos_id
    assert begins == (metadata["tokenizer.ggml.model"] == "llama")


def test_a_special_token_in_other_letters_keeps_its_id(tmp_path):
    """As in DeepSeek's distilled Qwen: its BOS is not spelled in byte letters."""
    metadata = byte_level_metadata("deepseek-r1-qwen", "qwen2")
    metadata["tokenizer.ggml.tokens"][1] = "<｜begin▁of▁sentence｜>"
    write_tokenizer(metadata, tmp_path, "x.gguf", lambda said: None)
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("<｜begin▁of▁sentence｜>the", markup=True)[0] == 1
    assert tokenizer.vocab_size == len(metadata["tokenizer.ggml.tokens"])


def test_no_space_is_put_before_a_text_where_the_file_says_so(tmp_path):
    metadata = sentencepiece_metadata("llama")
    metadata["tokenizer.ggml.add_space_prefix"] = False
    write_tokenizer(metadata, tmp_path, "x.gguf", lambda said: None)
    tokenizer = read_tokenizer(tmp_path)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[n] for n in tokenizer.encode("the")] == ["t", "he"]
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_the_template_and_every_token_that_ends_an_answer_come_with_it(tmp_path):
    config, path = {**WIDE, "model_type": "llama"}, tmp_path / "model.gguf"
    make_gguf.make_gguf(path, config, **{"tokenizer.ggml.eot_token_id": 3})
    files = import_folder(path, tmp_path / "model", say=lambda said: None).files
    tokenizer = read_tokenizer(files)
    text = tokenizer.hf.decode(tokenizer.prompt("Who?", Wording("chat")))
    assert text == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.stop_ids == (2, 3) and tokenizer.pad_id == 0


def test_what_a_file_leaves_open_is_said(tmp_path):
    said = []
    write_tokenizer(VOCABULARIES["smollm"], tmp_path, "x.gguf", said.append)
    assert (
        len(said) == 1 and "tokenizer.ggml.pre = 'smollm' is read as GPT-2's" in said[0]
    )
    write_tokenizer(VOCABULARIES["llama3"], tmp_path, "x.gguf", said.append)
    assert len(said) == 2 and "begins with the BOS token" in said[1]
    write_tokenizer(VOCABULARIES["qwen2"], tmp_path, "x.gguf", said.append)
    write_tokenizer(VOCABULARIES["gemma"], tmp_path, "x.gguf", said.append)
    assert len(said) == 2


def test_the_models_own_tokenizer_folder_can_be_given(tmp_path, dareu):
    config, path = {**WIDE, "model_type": "llama"}, tmp_path / "model.gguf"
    none = {"tokenizer.ggml.model": None, "tokenizer.ggml.merges": None}
    make_gguf.make_gguf(path, config, **none)
    status, _, error = dareu("import", path, "--out", tmp_path / "out")
    assert status == 2 and "--tokenizer" in error and not (tmp_path / "out").exists()
    (tmp_path / "own").mkdir()
    metadata = byte_level_metadata("gpt-2", "llama")
    for key in ("tokens", "token_type"):
        metadata[f"tokenizer.ggml.{key}"] = metadata[f"tokenizer.ggml.{key}"][:-2]
    write_tokenizer(metadata, tmp_path / "own", "x", lambda said: None)
    given = ("--tokenizer", tmp_path / "own")
    status, out, _ = dareu("import", path, "--out", tmp_path / "out", *given)
    assert status == 0 and out == f"model.path={tmp_path / 'out'}\n"
    other = {"tokenizer.ggml.tokens": [f"t{n}" for n in range(320)], **none}
    make_gguf.make_gguf(path, config, **other)
    status, _, error = dareu("import", path, "--out", tmp_path / "two", *given)
    assert status == 2 and "the tokenizer is another model's" in error


NAN = np.full((32, 32), np.nan, np.float32)
BAD_METADATA = {
    "architecture": (
        {"general.architecture": "falcon"},
        r"general\.architecture = 'falcon' is not supported.*known: llama, qwen2",
    ),
    "other maths": ({"llama.logit_scale": 2.0}, r"llama\.logit_scale = 2\.0"),
    "heads by layer": (
        {"llama.attention.head_count_kv": [2, 1]},
        r"head_count_kv differs from layer to layer",
    ),
    "rotary part": (
        {"llama.rope.dimension_count": 4},
        r"rope\.dimension_count = 4; supported: all the same",
    ),
    "one of several": ({"split.count": 3}, r"is one of 3 parts"),
    "shape": ({"llama.feed_forward_length": 96}, r"has shape \[64, 32\].*\[96, 32\]"),
    "lacks": ({"llama.embedding_length": None}, r"lacks hidden_size"),
    "bos": ({"tokenizer.ggml.bos_token_id": 999}, r"bos_token_id = 999"),
    "no heads": ({"llama.attention.head_count": 0}, r"head_count = 0; it must be"),
    "a word": ({"llama.block_count": "two"}, r"block_count = 'two'; it must be"),
    "token types": ({"tokenizer.ggml.token_type": [3] * 999}, "tokenizer is broken"),
    "merges": ({"tokenizer.ggml.merges": ["q q"]}, r"its tokenizer is broken"),
    "model": ({"tokenizer.ggml.model": "t5"}, r"tokenizer\.ggml\.model = 't5'"),
}


def refused(dareu, path, message):
    """The command ends with one line and status 2, and writes nothing."""
    status, _, error = dareu("import", path, "--out", path.parent / "out")
    lines = [line for line in error.splitlines() if "dequantised" not in line]
    assert status == 2 and len(lines) == 1 and "Traceback" not in error, error
    assert re.search(message, lines[0]), lines
    assert {p.name for p in path.parent.iterdir()} == {path.name}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_metadata_that_cannot_be_followed_are_one_line(tmp_path, dareu, name):
    changes, message = BAD_METADATA[name]
    path, arch = tmp_path / "model.gguf", changes.get("general.architecture")
    changes = {k: v for k, v in changes.items() if k != "general.architecture"}
    make_gguf.make_gguf(path, {**WIDE, "model_type": "llama"}, arch=arch, **changes)
    refused(dareu, path, message)


BAD_TENSORS = {
    "unknown": (
        {"extra": {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}},
        r"has a tensor blk\.0\.attn_sinks\.weight",
    ),
    "beyond the layers": (
        {"extra": {"blk.2.attn_q.weight": np.zeros((32, 32), np.float32)}},
        r"model\.layers\.2\.self_attn\.q_proj\.weight",
    ),
    "missing": ({"drop": ("blk.1.ffn_up.weight",)}, r"no tensor.*1\.mlp\.up_proj"),
    "NaN": (
        {"drop": ("blk.0.attn_v.weight",), "extra": {"blk.0.attn_v.weight": NAN[:16]}},
        r"blk\.0\.attn_v\.weight has values that are NaN",
    ),
    "integers": (
        {
            "drop": ("blk.0.attn_v.weight",),
            "extra": {"blk.0.attn_v.weight": np.zeros((16, 32), np.int32)},
        },
        r"blk\.0\.attn_v\.weight is stored as I32, which the gguf package cannot",
    ),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_one_line(tmp_path, dareu, name):
    given, message = BAD_TENSORS[name]
    path = tmp_path / "model.gguf"
    make_gguf.make_gguf(path, {**WIDE, "model_type": "llama"}, **given)
    refused(dareu, path, message)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.999])
def test_a_file_cut_short_is_one_line(tmp_path, dareu, share):
    path = tmp_path / "model.gguf"
    make_gguf.make_gguf(path, {**WIDE, "model_type": "llama"}, (Kind.Q8_0,))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(dareu, path, r"is no (whole )?GGUF file" if share else "is no GGUF file")


def test_a_file_of_another_kind_is_one_line(tmp_path, dareu):
    (tmp_path / "model.safetensors").write_bytes(b"\x10" * 200)
    refused(
        dareu, tmp_path / "model.safetensors", "is no GGUF file; give a GGUF file or"
    )


@pytest.mark.real
@pytest.mark.skipif(
    "DAREU_GGUF" not in os.environ,
    reason="DAREU_GGUF names no file (SmolLM2-135M-Instruct.Q4_1.gguf, "
    "experiments/smollm2)",
)
def test_a_real_model_knows_what_it_says(tmp_path):
    """SmolLM2-135M: its own answer, as transformers gives it from the same file."""
    said = []
    path = Path(os.environ["DAREU_GGUF"])
    model = load_model(import_folder(path, tmp_path / "model", say=said.append).folder)
    assert "210 as Q4_1" in said[-1]
    (answer,) = model.generate(["What is the capital of France?"], 16)
    assert answer.startswith("The capital of France is Paris.")
