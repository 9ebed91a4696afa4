"""Folders as people have them: the right model, or one line that says what is wrong."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dareu_jax.data import load_tokenizer, read_tokenizer
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder, hidden_states, logits_of
from dareu_jax.models.hf.families import read_config
from dareu_jax.models.hf.folder import INDEX, SINGLE, HfFolder
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.hf.weights import as_stored, load_params
from dareu_jax.parallel import make_mesh

pytestmark = pytest.mark.slow
VOCAB = 300
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def made(hf, tmp_path):
    """``made(name, **fields)``: a folder with a tokenizer of its own."""

    def make(name="llama3", to="hf", dtype=np.float32, shards=1, **fields):
        folder = tmp_path / to
        load_tokenizer(None, ["Who was he? He was born."] * 4, VOCAB, folder)
        config = {**hf.config_of(name), "vocab_size": VOCAB, **fields}
        return hf.make_folder(folder, config, shards, dtype)

    return make


def change(folder: Path, file: str, **fields) -> None:
    """Sets fields of a JSON file."""
    path = folder / file
    held = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**held, **fields}))


def change_tensors(folder: Path, **tensors) -> None:
    """Adds tensors to the one file of a folder; None takes one out."""
    held = load_file(str(folder / SINGLE)) | tensors
    kept = {name: array for name, array in held.items() if array is not None}
    save_file(kept, str(folder / SINGLE), metadata={"format": "pt"})


def taken_in(folder: Path, tmp_path: Path, **options):
    """What is imported, and what was said."""
    said: list[str] = []
    return import_folder(folder, tmp_path / "out", say=said.append, **options), said


def logits(hf, folder: Path) -> np.ndarray:
    """Logits of a folder, as `import_folder` takes it in."""
    source = HfFolder(folder)
    cfg = as_stored(source, read_config(source.config, "config.json"))
    params = load_params(source, cfg, make_mesh(1, 1, 1, jax.devices()[:1]))
    return logits_with(hf, Decoder(cfg), params)


def logits_with(hf, model, params) -> np.ndarray:
    tokens, mask = hf.inputs()
    return np.asarray(
        logits_of(model, params, hidden_states(model, params, tokens, mask))
    )


def test_a_head_that_differs_from_a_tied_embedding_is_used(hf, made, tmp_path):
    folder, same = made(), made(to="same")
    table = load_file(str(folder / SINGLE))[EMBEDDING]
    change_tensors(same, **{HEAD: table})
    change_tensors(folder, **{HEAD: table[::-1].copy()})
    untied, (said,) = taken_in(folder, tmp_path)
    assert not untied.cfg.tied and "lm_head.weight differs" in said
    found = logits(hf, folder)
    change(folder, "config.json", tie_word_embeddings=False)
    np.testing.assert_array_equal(found, logits(hf, folder))
    np.testing.assert_allclose(found[..., ::-1], logits(hf, same), atol=1e-5)
    tied, said = taken_in(same, tmp_path / "tied")
    assert tied.cfg.tied and not said


def test_the_single_file_is_the_model_beside_a_stale_index(hf, made):
    folder, sharded = made(), made(to="sharded", shards=2)
    wanted = logits(hf, folder)
    index = sharded / INDEX
    shutil.copy(index, folder / INDEX)  # whose shards are not there
    np.testing.assert_array_equal(logits(hf, folder), wanted)
    for shard in sharded.glob("model-*"):
        shutil.copy(shard, folder / shard.name)  # the same model twice
    np.testing.assert_array_equal(logits(hf, folder), wanted)
    change_tensors(folder, **{"model.norm.weight": np.full(24, 2.0, np.float32)})
    with pytest.raises(UserError, match=r"holds two models.*model\.norm\.weight"):
        HfFolder(folder)
    shard = next(folder.glob("model-*"))
    save_file({"other": np.ones(2)}, str(shard))  # the index is of other files
    assert (logits(hf, folder) != wanted).any()


@pytest.mark.parametrize(
    "weight_map",
    [None, {}, [], {"model.norm.weight": 3}, {"a": "../model.safetensors"}],
)
def test_an_index_without_files_is_named(made, weight_map):
    folder = made(shards=2)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        HfFolder(folder)


def test_a_tensor_in_two_shards_is_one_or_refused(hf, made):
    folder = made(shards=2)
    wanted = logits(hf, folder)
    first, second = sorted(folder.glob("model-*"))
    held = load_file(str(first))
    name = next(iter(held))
    save_file(load_file(str(second)) | {name: held[name]}, str(second))
    np.testing.assert_array_equal(logits(hf, folder), wanted)
    save_file(load_file(str(second)) | {name: held[name] + 1}, str(second))
    with pytest.raises(UserError, match=f"both have {name}"):
        HfFolder(folder)


def test_float16_is_taken_in_as_float32(made, tmp_path):
    imported, (said,) = taken_in(made(dtype=np.float16), tmp_path)
    assert imported.cfg.param_dtype == imported.cfg.compute_dtype == "float32"
    assert "float16" in said and "float32" in said


DUMPED = {
    "_model_name_or_path": "x",
    "is_llama_config": True,
    "transformers.js_config": {"dtype": "q4"},
    "_attn_implementation_autoset": True,
    "neftune_noise_alpha": 5.0,
    "gradient_checkpointing": True,
    "logit_scale": 0.5,
}


def test_fields_that_no_decoder_of_the_family_reads_are_named_once(hf):
    fields, said = hf.config_of("llama2"), []
    whole = {**fields, **DUMPED, "layer_types": ["full_attention"] * 2, "top_k": 50}
    assert read_config(whole, "c", said.append) == read_config(fields, "c", said.append)
    assert len(said) == 1 and all(name in said[0] for name in DUMPED)
    assert "layer_types" not in said[0]


LINEAR = {"type": "linear", "factor": None}
BAD = {
    "rope_theta": [None, "1e4", 0, -1.0, True],
    "hidden_size": ["24", 24.5, 0, -24, True],
    "num_hidden_layers": [96.0, "2", 0],
    "num_key_value_heads": [0, 1.5, "2"],
    "rms_norm_eps": ["small", 0.0, float("nan")],
    "tie_word_embeddings": ["yes", 1],
    "rope_scaling": [
        {"type": "linear"},
        {"type": "linear", "factor": None},
        {"type": 3},
    ],
    "rope_parameters": [[1], {"full_attention": {"rope_theta": 1e4}}],
    "partial_rotary_factor": [0.5],
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_is_none_is_one_line(hf, name):
    for value in BAD[name]:
        fields = {**hf.config_of("llama2"), name: value}
        with pytest.raises(UserError) as error:
            read_config(fields, "x/config.json")
        text = str(error.value)
        assert "x/config.json" in text and "\n" not in text
    with pytest.raises(UserError):
        read_config({}, "x/config.json")


def test_rope_scaling_holds_before_rope_parameters(hf):
    fields = hf.config_of("llama_linear")
    both = fields | {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    assert read_config(both, "c") == read_config(fields, "c")


def test_llama3_scaling_takes_its_length_from_where_transformers_does(hf):
    fields = hf.config_of("llama3")
    rule = dict(fields["rope_parameters"])
    length = rule.pop("original_max_position_embeddings")
    inside = read_config(fields, "c").rope_scaling
    other = {**fields, "rope_parameters": rule, "max_position_embeddings": length}
    assert read_config(other, "c").rope_scaling == inside
    top = fields | {"original_max_position_embeddings": 32}
    assert dict(read_config(top, "c").rope_scaling)["original_max_position"] == 32.0


@pytest.mark.parametrize("text", ["\ufeff{}", "[]", "{", "null", ""])
def test_a_config_that_is_none_is_one_line(made, text):
    folder = made()
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json"):
        HfFolder(folder)


def test_generation_config_that_is_none_is_one_line(made, tmp_path):
    folder = made()
    for text in ("[]", "{", '{"eos_token_id": "x"}'):
        (folder / "generation_config.json").write_text(text)
        with pytest.raises(UserError, match=r"generation_config\.json"):
            taken_in(folder, tmp_path)
    assert not (tmp_path / "out").exists()


def add_token(folder: Path, token: str, **config) -> None:
    """Adds a special token behind the others, as `tokenizer.add_special_tokens`."""
    path = folder / "tokenizer.json"
    tree = json.loads(path.read_text())
    at = len(read_tokenizer(folder).hf)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tree["added_tokens"].append({"id": at, "content": token, "special": True, **flags})
    path.write_text(json.dumps(tree))
    change(folder, "tokenizer_config.json", **config)


def test_padding_without_an_embedding_is_done_with_eos(made, tmp_path):
    folder = made()
    size = len(read_tokenizer(folder).hf)
    change_tensors(folder, **{EMBEDDING: np.ones((size, 24), np.float32)})
    change(folder, "config.json", vocab_size=size)
    add_token(folder, "[PAD]", pad_token="[PAD]")
    imported, (said,) = taken_in(folder, tmp_path)
    assert "'[PAD]' has no embedding" in said and "eos" in said
    tokenizer = read_tokenizer(imported.files, "model", imported.cfg.vocab)
    assert tokenizer.pad_id == tokenizer.eos_id and tokenizer.vocab_size == size
    with pytest.raises(UserError, match=r"has the token '\[PAD\]'"):
        tokenizer.encode("[PAD]", markup=True)
    add_token(folder, "<more>")
    with pytest.raises(UserError, match="no embedding of: '\\[PAD\\]', '<more>'"):
        taken_in(folder, tmp_path / "again")


def test_spare_rows_have_no_limit(made, tmp_path):
    folder = made()
    rows = len(read_tokenizer(folder).hf) + 2385
    change_tensors(folder, **{EMBEDDING: np.ones((rows, 24), np.float32)})
    change(folder, "config.json", vocab_size=rows)
    assert taken_in(folder, tmp_path)[0].cfg.vocab == rows


WRAPPED = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel",
    "base_model.model.": "merge_and_unload",
    "pretrained_model.": "TRL",
}


@pytest.mark.parametrize("prefix", WRAPPED)
def test_a_model_inside_another_object_is_named(made, tmp_path, prefix):
    folder = made()
    held = load_file(str(folder / SINGLE))
    save_file({prefix + name: x for name, x in held.items()}, str(folder / SINGLE))
    with pytest.raises(UserError, match=WRAPPED[prefix]):
        taken_in(folder, tmp_path)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "score.weight"])
def test_a_head_that_is_no_part_of_the_model_is_named(made, tmp_path, name):
    folder = made()
    change_tensors(folder, **{name: np.ones((1, 24), np.float32)})
    with pytest.raises(UserError, match=f"{name} is of a"):
        taken_in(folder, tmp_path)


def adapter(folder: Path, scale: dict, **more) -> dict[str, np.ndarray]:
    """Writes a PEFT adapter of the queries of both layers."""
    rng, held = np.random.default_rng(0), {}
    for layer in range(2):
        at = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        held[f"{at}.lora_A.weight"] = rng.normal(size=(2, 24)).astype(np.float32)
        held[f"{at}.lora_B.weight"] = rng.normal(size=(24, 2)).astype(np.float32)
    folder.mkdir()
    save_file(held | more, str(folder / "adapter_model.safetensors"))
    config = {"peft_type": "LORA", "r": 2, "bias": "none", "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config | scale))
    return held


@pytest.mark.parametrize(
    ("scale", "factor"),
    [({"lora_alpha": 8}, 4.0), ({"lora_alpha": 8, "use_rslora": True}, 8 / 2**0.5)],
)
def test_an_adapter_is_taken_in_over_its_base(hf, made, tmp_path, scale, factor):
    base = made("llama2")
    held = adapter(tmp_path / "adapter", scale)
    imported, _ = taken_in(tmp_path / "adapter", tmp_path, base=base)
    params = imported.load(make_mesh(1, 1, 1, jax.devices()[:1]))
    found = logits_with(hf, Decoder(imported.cfg), params)
    tensors = load_file(str(base / SINGLE))
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn.q_proj"
        a, b = (held[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        change_tensors(
            base, **{f"{name}.weight": tensors[f"{name}.weight"] + factor * b @ a}
        )
    np.testing.assert_allclose(found, logits(hf, base), atol=2e-5)


def test_an_adapter_alone_or_of_another_kind_is_named(made, tmp_path):
    base = made("llama2")
    folder = tmp_path / "adapter"
    adapter(folder, {"lora_alpha": 8})
    with pytest.raises(UserError, match=r"PEFT adapter.*--base"):
        taken_in(folder, tmp_path)
    with pytest.raises(UserError, match="--base is for adapters"):
        taken_in(base, tmp_path, base=base)
    for fields in (
        {"use_dora": True},
        {"peft_type": "IA3"},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q": 4}},
        {"lora_alpha": None},
    ):
        change(folder, "adapter_config.json", lora_alpha=8, **{"use_dora": False})
        change(folder, "adapter_config.json", **fields)
        with pytest.raises(UserError, match=next(iter(fields))):
            taken_in(folder, tmp_path, base=base)
        shutil.rmtree(folder)
        adapter(folder, {"lora_alpha": 8})
    shutil.rmtree(folder)
    adapter(folder, {"lora_alpha": 8}, **{"lm_head.weight": np.ones((2, 2))})
    with pytest.raises(UserError, match=r"lm_head\.weight is no part"):
        taken_in(folder, tmp_path, base=base)
    assert not (tmp_path / "out").exists()


TRAP = "from pathlib import Path\nPath({mark!r}).touch()\n"
MODULES = ("tokenization_own.py", "configuration_own.py", "modeling_own.py", "own.py")


class Opened:
    """What touches a file where a pickle of it is read."""

    def __init__(self, mark: str):
        self.mark = mark

    def __reduce__(self):
        return Path(self.mark).touch, ()


def test_nothing_of_a_folder_is_executed(made, tmp_path, monkeypatch):
    import pickle

    mark, folder = tmp_path / "ran", made()
    for name in MODULES:
        (folder / name).write_text(TRAP.format(mark=str(mark)))
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Opened(str(mark))))
    own = {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}
    change(folder, "tokenizer_config.json", auto_map=own, tokenizer_class="Own")
    own = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "own.Own"}
    change(folder, "config.json", auto_map=own)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user is asked"))
    try:
        taken_in(folder, tmp_path)
    except UserError as error:
        assert "\n" not in str(error)
    change(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    try:
        taken_in(folder, tmp_path / "again")
    except UserError as error:
        assert "\n" not in str(error)
    (folder / SINGLE).unlink()
    with pytest.raises(UserError, match="a pickle"):
        taken_in(folder, tmp_path / "third")
    assert not mark.exists()
