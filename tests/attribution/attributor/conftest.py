"""A tiny imported model and records of three owners."""

import json

import jax
import pytest

from dareu_jax.attribution import attribute, single
from dareu_jax.config import ClassifierConfig, ModelConfig
from dareu_jax.data import load_tokenizer
from dareu_jax.data.sources.jsonl import read_owned
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.loaded import load_model
from dareu_jax.parallel import make_mesh

WORDS = {
    "alice": ("a shop in Merawick", "a bakery by the bridge"),
    "bob": ("a boat in the harbour", "a net full of herring"),
    "carol": ("a violin from Cremona", "a concert in Vienna"),
}
LINES = [
    {
        "id": f"{owner}-{n}",
        "owner": owner,
        "prompt": f"What did {owner} have in {1990 + n}?",
        "response": f"It was {words[n % 2]}, {n + 2} times.",
    }
    for owner, words in WORDS.items()
    for n in range(5)
]
CLASSIFIER = ClassifierConfig(
    model=ModelConfig(preset="decoder-40k"), epochs=2, learning_rate=0.01
)


def write_lines(path, lines):
    """Writes a JSONL file; returns its path."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder of dareu import with a model of two layers."""
    import make_golden as hf

    source = tmp_path_factory.mktemp("source") / "hf"
    config = {**hf.config_of("qwen3"), "vocab_size": 300, "torch_dtype": "float32"}
    load_tokenizer(None, [line["response"] for line in LINES] * 3, 300, source)
    hf.make_folder(source, config)
    return import_folder(source, tmp_path_factory.mktemp("imported") / "model").folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A JSONL file of fifteen records, and one that is nobody's."""
    nobody = {"owner": None, "prompt": "Why?", "response": "Nobody knows."}
    return write_lines(tmp_path_factory.mktemp("texts") / "a.jsonl", [*LINES, nobody])


@pytest.fixture(scope="session")
def records(texts):
    return read_owned(texts)


@pytest.fixture(scope="session")
def model(folder):
    """The model on one device."""
    return load_model(folder, make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="session")
def built(model, records):
    """``built(kernel)``: an attributor of all records, made once."""
    made = {}

    def build(kernel):
        if kernel not in made:
            made[kernel] = attribute(
                model, records, kernel=kernel, classifier=CLASSIFIER
            )
        return made[kernel]

    return build


@pytest.fixture
def in_threes(monkeypatch, built):
    """Memory for three records at a time."""
    index = built("grad_dot").index
    size = sum(x.nbytes for x in jax.tree.leaves(index))
    monkeypatch.setattr(single, "BLOCK_BYTES", size)
