import json
import subprocess
import sys

import pytest

from dareu_jax.data import Tokenizer, Wording, load_tokenizer
from dareu_jax.errors import UserError

TEXTS = ["Where was Soko Vosdrul born?", "She was born in Trilabrook."] * 4


def none_may_be_read():
    raise AssertionError("a saved tokenizer was trained again")
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers") / "bpe"


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return load_tokenizer(None, TEXTS, 300, folder)


def test_special_ids_and_size(tokenizer):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert 259 < tokenizer.vocab_size <= 300


@pytest.mark.parametrize(
    "text",
    ["She was born in Trilabrook.", " leading", "", "Ünïcode 雪 🙂\n\ttabs  spaces ."],
)
def test_decode_undoes_encode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_written_in_text_stay_text(tokenizer):
    ids = tokenizer.encode("a <eos> b")
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids) == "a <eos> b"
    assert tokenizer.eos_id in tokenizer.encode("a <eos> b", markup=True)


def test_decode_skips_special_tokens(tokenizer):
    ids = [1, *tokenizer.encode("born"), 2, 0, 0]
    assert tokenizer.decode(ids) == "born"


def test_a_saved_tokenizer_is_read_again_not_trained(tokenizer, folder):
    again = load_tokenizer(None, none_may_be_read(), 300, folder)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert load_tokenizer(str(folder), [], 0, folder / "x").vocab_size == (
        tokenizer.vocab_size
    )


def test_training_is_deterministic_and_leaves_no_draft(tokenizer, tmp_path):
    again = load_tokenizer(None, TEXTS, 300, tmp_path / "new")
    other = load_tokenizer(None, TEXTS, 280, tmp_path / "small")
    assert again.fingerprint == tokenizer.fingerprint
    assert other.fingerprint != tokenizer.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "small"]


def test_the_fingerprint_ignores_how_it_was_used(tokenizer, folder):
    used = load_tokenizer(str(folder), [], 0, folder)
    used.hf(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert used.fingerprint == tokenizer.fingerprint


def edited(folder, target, **changes):
    """Copies the tokenizer folder with its config changed; None drops a key."""
    target.mkdir()
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config = {k: v for k, v in (config | changes).items() if v is not None}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return str(target)


def test_pad_falls_back_to_eos_and_bos_may_be_absent(tokenizer, folder, tmp_path):
    spec = edited(folder, tmp_path / "t", pad_token=None, bos_token=None)
    bare = load_tokenizer(spec, [], 0, tmp_path)
    assert (bare.pad_id, bare.bos_id, bare.eos_id) == (2, None, 2)
    assert bare.fingerprint != tokenizer.fingerprint


def test_no_eos_is_an_error(tokenizer, folder, tmp_path):
    spec = edited(folder, tmp_path / "t", eos_token=None)
    with pytest.raises(UserError, match=r"no eos token.*eos_token"):
        load_tokenizer(spec, [], 0, tmp_path)


def test_missing_or_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.tokenizer: no folder '.*nowhere'"):
        load_tokenizer(str(tmp_path / "nowhere"), [], 0, tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer") as error:
        load_tokenizer(str(tmp_path), [], 0, tmp_path)
    assert "\n" not in str(error.value)


def test_too_small_vocabulary_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.vocab_size=100 .*at least 259"):
        load_tokenizer(None, TEXTS, 100, tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_no_notice_about_torch(tokenizer, folder):
    code = (
        "from dareu_jax.data import load_tokenizer; from pathlib import Path;"
        f"load_tokenizer({str(folder)!r}, [], 0, Path('.'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "PyTorch" not in done.stderr


CHAT_TEMPLATE = (
    "<bos>{% if date_string is defined %}[{{ date_string }}]{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chatty(tokenizer, folder, tmp_path):
    return load_tokenizer(
        edited(folder, tmp_path / "chat", chat_template=CHAT_TEMPLATE), [], 0, tmp_path
    )


def test_the_chat_template_is_the_tokenizers_with_a_fixed_date(chatty):
    ids = chatty.prompt("Who?", Wording("chat", system="Be brief."))
    assert ids[0] == chatty.bos_id and chatty.bos_id not in ids[1:]
    wanted = "[26 Jul 2024]<system>Be brief.<user>Who?<assistant>"
    assert chatty.decode(ids) == wanted
    unasked = chatty.prompt("Who?", Wording("chat"))
    assert chatty.decode(unasked).startswith("[26 Jul 2024]<user>")


def test_a_tokenizer_without_a_chat_template_says_so(tokenizer):
    with pytest.raises(UserError, match=r"no chat template.*write the template out"):
        tokenizer.prompt("Who?", Wording("chat"))


@pytest.mark.parametrize(
    ("given", "stops"),
    [(None, (2,)), ({"eos_token_id": 5}, (2, 5)), ({"eos_token_id": [5, 2]}, (2, 5))],
)
def test_generation_config_may_name_more_ends_of_text(
    tokenizer, folder, tmp_path, given, stops
):
    spec = edited(folder, tmp_path / "t")
    if given is not None:
        (tmp_path / "t" / "generation_config.json").write_text(json.dumps(given))
    assert load_tokenizer(spec, [], 0, tmp_path).stop_ids == stops
