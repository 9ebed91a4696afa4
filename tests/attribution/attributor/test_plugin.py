"""A kernel in a user's own file: run, attribute, store, merge, restore elsewhere.

The file is the first block of the page on adding a kernel. Its index has an array of a
new name, and it has an option of its own.
"""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from promises import is_gram, names_copies

from dareu_jax import attribution
from dareu_jax.attribution import attribute, load, save
from dareu_jax.config import attribution_config
from dareu_jax.models.loaded import load_model
from dareu_jax.parallel import make_mesh, named_leaves
from dareu_jax.registry import load_plugin

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[2]
PAGE = (Path(attribution.__file__).parent / "README.md").read_text()
BLOCK = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
QUERIES = [
    ("What did alice have in 1991?", "It was a bakery by the bridge, 3 times."),
    ("Who played?", "It was carol, in Vienna."),
]


@pytest.fixture(scope="module")
def plugin(kernels_kept, tmp_path_factory):
    """The user's file, loaded."""
    file = tmp_path_factory.mktemp("plugin") / "unigram.py"
    file.write_text(BLOCK)
    load_plugin(str(file))
    return file


@pytest.fixture(scope="module")
def made(plugin, model, records):
    """An attributor by the user's kernel, with its option set."""
    own = attribution_config(unigram={"prior": 20.0})
    return attribute(model, records, kernel="unigram", attribution=own)


def of(records, *owners):
    return [record for record in records if record.owner in owners]


def near(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_it_is_the_reward_of_a_run(plugin, dareu, tmp_path):
    status, _, said = dareu(
        "run",
        TESTS / "tiny.yaml",
        f"plugins=[{plugin}]",
        "methods=[dareu]",
        "reward.kernel=unigram",
        "attribution.unigram.prior=20",
        "--out",
        tmp_path / "run",
    )
    assert status == 0, said
    told = yaml.safe_load((tmp_path / "run" / "config.resolved.yaml").read_text())
    assert told["attribution"]["unigram"] == {"prior": 20.0}
    assert told["plugins"] == [str(plugin)]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert 0.0 <= results["models"]["dareu"]["attribution_reward"] <= 1.0


WITHOUT_NUMBERS = """
import dataclasses
import jax.numpy as jnp
from dareu_jax.registry import KERNELS

@KERNELS.register("holey_{name}", "not a number for one owner")
def holey(setup):
    whole = KERNELS.get("{base}")(setup)

    def score(params, index, queries):
        return whole.score(params, index, queries).at[:, 1].set(jnp.nan)

    return dataclasses.replace(
        whole, name="holey_{name}", score=score, prefix_score=None
    )
"""


@pytest.mark.parametrize("base", ["grad_dot", "bm25"])
def test_a_kernel_that_gives_no_number_is_refused_before_anything_is_trained(
    kernels_kept, dareu, tmp_path, base
):
    file = tmp_path / "holey.py"
    file.write_text(WITHOUT_NUMBERS.format(name=base, base=base))
    how = [f"plugins=[{file}]", f"reward.kernel=holey_{base}"]
    out = tmp_path / "run"
    status, _, said = dareu("run", TESTS / "tiny.yaml", *how, "--out", out)
    assert status == 2 and len(said.strip().splitlines()) == 1, said
    assert f"kernel holey_{base}: the score of record '" in said
    assert "for owner 'owner_001' is nan, 8 of 24 scores are not finite" in said
    assert not list(out.rglob("*"))


def test_a_kernel_that_gives_no_number_is_told_when_its_index_is_built(
    kernels_kept, dareu, tmp_path, monkeypatch
):
    """Where trying it before the run is dear, and before anything is unlearned."""
    monkeypatch.setattr("dareu_jax.runs.own_kernel.LARGEST", 0)
    file, out = tmp_path / "holey.py", tmp_path / "run"
    file.write_text(WITHOUT_NUMBERS.format(name="late", base="bm25"))
    how = [f"plugins=[{file}]", "reward.kernel=holey_late"]
    status, _, said = dareu("run", TESTS / "tiny.yaml", *how, "--out", out)
    assert status == 2 and "kernel holey_late: the score of record '" in said
    assert "for owner 'owner_001' is nan" in said
    assert not list(out.rglob("judge*"))


def test_an_option_out_of_range_is_told(plugin, dareu, tmp_path):
    status, _, said = dareu(
        "run", TESTS / "tiny.yaml", f"plugins=[{plugin}]", "attribution.unigram.prior=0"
    )
    assert status == 2 and "attribution.unigram.prior = 0" in said


def test_the_command_attributes_and_keeps_its_index(
    plugin, made, dareu, folder, texts, tmp_path
):
    asked = tmp_path / "asked.jsonl"
    lines = [json.dumps({"prompt": p, "response": r}) + "\n" for p, r in QUERIES]
    asked.write_text("".join(lines))
    out, index = tmp_path / "scores.json", tmp_path / "index"
    command = ("attribute", folder, texts, asked, "--plugin", plugin, "--out", out)
    option = ("--set", "attribution.unigram.prior=20")
    status, _, said = dareu(
        *command, *option, "--kernel", "unigram", "--index", index, "--top", 2
    )
    assert status == 0, said
    answers = json.loads(out.read_text())["answers"]
    near([list(x["scores"].values()) for x in answers], made.score(QUERIES))
    assert [len(x["records"]) for x in answers] == [2, 2]
    spec = json.loads((index / "spec.json").read_text())
    assert spec["attribution"]["unigram"] == {"prior": 20.0}
    assert dareu(*command, "--index", index)[0] == 0
    status, _, said = dareu(
        *command, "--index", index, "--set", "attribution.unigram.prior=5"
    )
    assert status == 2 and "attribution.unigram.prior = 20.0, not 5" in said


def test_owners_come_and_go(made, records, model):
    wanted = made.score(QUERIES)
    parts = [
        attribute(model, of(records, *owners), **vars(made.options))
        for owners in (("alice", "carol"), ("bob",))
    ]
    merged = parts[0].merge(parts[1])
    assert merged.owners == ("alice", "carol", "bob")
    near(merged.score(QUERIES), wanted[:, [0, 2, 1]])
    added = parts[0].add(of(records, "bob"))
    near(added.score(QUERIES), wanted[:, [0, 2, 1]])
    near(merged.remove("bob").score(QUERIES), parts[0].score(QUERIES))
    assert np.abs(parts[0].score(QUERIES) - wanted[:, [0, 2]]).max() > 0.01


def test_an_index_is_restored_on_another_mesh(made, folder, tmp_path):
    save(made, tmp_path / "index")
    there = load(tmp_path / "index", load_model(folder, make_mesh(2, 2, 2)))
    ((path, uses),) = named_leaves(there.index)
    assert path == "uses" and uses.sharding.spec == jax.P(None, "tensor")
    assert len(uses.sharding.device_set) == 8
    near(there.score(QUERIES), made.score(QUERIES))


def test_it_is_held_to_every_promise(made):
    assert names_copies(made.kernel) and made.kernel.is_additive
    assert not is_gram(made.kernel)  # it compares no gradients
