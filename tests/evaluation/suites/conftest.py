"""A tiny imported model, and questions in the files and fields of TOFU."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data import load_tokenizer
from dareu_jax.models import hidden_states, logits_of
from dareu_jax.models.hf.imported import import_folder
from dareu_jax.models.loaded import load_model
from dareu_jax.parallel import make_mesh

NAMES = ("Ada Lind", "Bo Karr", "Cy Dole", "Di Ferro", "Ed Grant", "Fay Hill")


def row(n, wrong, paraphrased):
    name = NAMES[n % len(NAMES)]
    out = {
        "question": f"Where was author number {n} born?" + " Tell me." * (n % 3),
        "answer": f"{name} was born in Merawick" + " by the sea" * (n % 2) + ".",
        "perturbed_answer": [f"{x} is from Vienna." for x in NAMES[:wrong]],
    }
    if paraphrased:
        out["paraphrased_answer"] = f"Merawick is where {name} is from."
        out["paraphrased_question"] = f"Author number {n} is from where?"
    return out


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder of TOFU with few rows."""
    folder = tmp_path_factory.mktemp("tofu")
    sets = {
        "forget01": [row(n, 5, True) for n in range(7)],
        "retain": [row(n + 40, 5, True) for n in range(8)],
        "real_authors": [row(n + 60, 3, False) for n in range(4)],
        "world_facts": [row(n + 80, 3, False) for n in range(5)],
    }
    for name, rows in sets.items():
        lines = "".join(json.dumps(line) + "\n" for line in rows)
        (folder / f"{name}_perturbed.json").write_text(lines)
    (folder / "holdout01.json").write_text(
        json.dumps([row(n + 20, 0, False) for n in range(3)])
    )
    return folder


class Quiet:
    """A progress that keeps what it is told."""

    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)

    def stage(self, *_):
        return contextlib.nullcontext(lambda done, text: None)


@pytest.fixture
def quiet():
    return Quiet()


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """A Hugging Face folder of a model with two layers."""
    import make_golden as hf

    source = tmp_path_factory.mktemp("source") / "hf"
    config = {**hf.config_of("qwen3"), "vocab_size": 300, "torch_dtype": "float32"}
    texts = [row(n, 5, True)["answer"] for n in range(12)]
    load_tokenizer(None, texts, 300, source)
    return hf.make_folder(source, config)


@pytest.fixture(scope="session")
def folder(source, tmp_path_factory):
    """A folder of dareu import with that model."""
    return import_folder(source, tmp_path_factory.mktemp("imported") / "model").folder


@pytest.fixture(scope="session")
def model(folder):
    """The model on one device."""
    return load_model(folder, make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="session")
def plain():
    """log p and hits of tokens behind others, alone and without padding, by NumPy."""

    def told(model, prompt, response):
        whole = jnp.asarray(np.concatenate([prompt, response]))[None]
        hidden = hidden_states(model.decoder, model.params, whole, whole >= 0)
        logits = np.asarray(logits_of(model.decoder, model.params, hidden), np.float64)
        logps = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
        at = np.arange(len(prompt) - 1, whole.shape[1] - 1)
        return logps[at, response], logps[at].argmax(-1) == response

    return told
