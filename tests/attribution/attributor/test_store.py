"""Indices on disk: what is recorded, what is refused, any mesh to any mesh."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dareu_jax.attribution import attribute, load, read_spec, save
from dareu_jax.attribution.gradients.bilinear import bilinear, exact
from dareu_jax.attribution.kernel import placed_index
from dareu_jax.attribution.store import spec_of
from dareu_jax.config import Section, attribution_config
from dareu_jax.errors import UserError
from dareu_jax.models import Decoder
from dareu_jax.models.loaded import load_model
from dareu_jax.parallel import make_mesh, named_leaves
from dareu_jax.storage.checkpoints import Checkpoints
from dareu_jax.storage.fingerprint import params_fingerprint

pytestmark = pytest.mark.slow

QUERIES = [
    ("What did alice have in 1991?", "It was a bakery by the bridge, 3 times."),
    ("Who played?", "It was carol, in Vienna."),
]
KERNELS = ("grad_dot", "ekfac", "projected", "bm25", "classifier")


@pytest.fixture(scope="module")
def other_mesh(folder):
    """The model split over data, fsdp and tensor."""
    return load_model(folder, make_mesh(2, 2, 2))


@pytest.fixture(scope="module")
def saved(built, tmp_path_factory):
    """A folder with an index of BM25."""
    folder = tmp_path_factory.mktemp("indices") / "words"
    save(built("bm25"), folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """``copied(change)``: a copy of the index with another text of spec.json."""

    def copy(change):
        folder = tmp_path / "index"
        folder.mkdir()
        for path in saved.rglob("*"):
            to = folder / path.relative_to(saved)
            to.mkdir() if path.is_dir() else to.write_bytes(path.read_bytes())
        spec = folder / "spec.json"
        spec.write_text(change(spec.read_text()))
        return folder

    return copy


@pytest.mark.parametrize("name", KERNELS)
def test_an_index_of_one_mesh_scores_the_same_on_another(
    built, other_mesh, name, tmp_path
):
    """Saved from (8, 1, 1), restored on (2, 2, 2)."""
    made = built(name)
    eight = placed_index(made.kernel, made.index, make_mesh(8, 1, 1))
    save(dataclasses.replace(made, index=eight), tmp_path / "index")
    there = load(tmp_path / "index", other_mesh)
    for path, leaf in named_leaves(there.index):
        assert len(leaf.sharding.device_set) == 8, path
    wanted = made.score(QUERIES)
    np.testing.assert_allclose(
        there.score(QUERIES), wanted, rtol=0, atol=1e-5 * abs(wanted).max()
    )


def test_what_numbers_depend_on_is_recorded(built, model, tmp_path):
    save(built("projected"), tmp_path / "index")
    spec = json.loads((tmp_path / "index" / "spec.json").read_text())
    assert spec["model"] == params_fingerprint(model.params)
    assert spec["tokenizer"] == model.tokenizer.fingerprint
    assert spec["compute_dtype"] == "float32" and spec["kernel"] == "projected"
    assert spec["owners"] == ["alice", "bob", "carol"] == list(spec["records"])
    assert spec["measurement"] == "log p(response | prompt)"
    assert spec["selection"]["layers/attention/q/kernel"] == [2, 24, 40]
    assert len(spec["selection"]) == 7
    assert spec["sign"].startswith("higher: more of the owner's")
    assert spec["attribution"] == {
        "echo": "hide",
        "reduction": "mean",
        "projection_seed": 0,
        "damping": 0.1,
        "whole_gradients": None,
        "projection_size": 64,
        "index_dtype": "float32",
        "projected": {"size": 64},
    }


def test_an_index_of_a_new_gradient_kernel_says_what_it_differentiates(
    kernels_kept, model, records
):
    @kernels_kept.register("mine", "a gradient kernel from outside")
    def make(setup):
        return bilinear("mine", setup, exact())

    spec = spec_of(attribute(model, records, kernel="mine"))
    assert spec.measurement == "log p(response | prompt)"
    assert len(spec.selection) == 7
    assert spec.selection["layers/attention/q/kernel"] == (2, 24, 40)


@pytest.mark.parametrize("name", ["bm25", "projected"])
def test_another_description_of_a_kernel_leaves_its_indices_valid(
    kernels_kept, monkeypatch, built, model, name, tmp_path
):
    save(built(name), tmp_path / "index")
    monkeypatch.setitem(kernels_kept._about, name, "said in other words")
    found = load(tmp_path / "index", model).score(QUERIES)
    np.testing.assert_array_equal(found, built(name).score(QUERIES))


def test_options_of_another_kernel_do_not_matter_to_an_index(
    kernels_kept, built, model, tmp_path
):
    class Own(Section):
        size: int = 3

    spec = spec_of(built("projected"))
    save(built("projected"), tmp_path / "index")
    kernels_kept.register("other", "with options", options=Own)(lambda setup: None)
    assert "other" in attribution_config().model_dump()
    made = load(tmp_path / "index", model)
    assert spec_of(made) == spec
    made.remove("bob").merge(built("projected").remove("alice").remove("carol"))


def test_a_loaded_index_goes_on_where_it_was(built, saved, model, records, tmp_path):
    made = load(saved, model, records)
    assert made.owners == built("bm25").owners and made.held == built("bm25").held
    assert made.top_records(QUERIES, 3) == built("bm25").top_records(QUERIES, 3)
    save(made.remove("bob"), tmp_path / "fewer")
    bob = [record for record in records if record.owner == "bob"]
    save(attribute(model, bob, kernel="bm25"), tmp_path / "bob")
    fewer, alone = (load(tmp_path / name, model) for name in ("fewer", "bob"))
    whole = fewer.merge(alone)
    assert whole.owners == ("alice", "carol", "bob")
    wanted = built("bm25").score(QUERIES)[:, [0, 2, 1]]
    np.testing.assert_allclose(whole.score(QUERIES), wanted, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="not at hand"):
        whole.top_records(QUERIES)


def test_another_model_is_refused_by_its_fingerprint(saved, model):
    params = jax.tree.map(lambda x: x, model.params)
    scale = params["final_norm"]["scale"]
    params["final_norm"]["scale"] = scale.at[3].add(1e-6)
    changed = params_fingerprint(params)
    other = model._replace(params=params, fingerprint=changed)
    with pytest.raises(UserError) as caught:
        load(saved, other)
    assert changed in str(caught.value) and model.fingerprint in str(caught.value)


def test_another_dtype_is_refused(saved, model):
    cfg = dataclasses.replace(model.decoder.cfg, compute_dtype="bfloat16")
    with pytest.raises(UserError, match="computing in float32, not bfloat16"):
        load(saved, model._replace(decoder=Decoder(cfg)))


def test_another_tokenizer_is_refused(saved, model):
    other = dataclasses.replace(model.tokenizer, eos_id=0)
    with pytest.raises(UserError, match="tokenizer of fingerprint"):
        load(saved, model._replace(tokenizer=other))


def test_other_records_are_refused(saved, model, records):
    edited = [*records[:-2], dataclasses.replace(records[-2], response="No.")]
    for texts, name in (
        (edited, "carol"),
        (records[1:], "alice"),
        ([*records, dataclasses.replace(records[0], owner="dora")], "dora"),
    ):
        with pytest.raises(UserError, match=f"other records: those of '{name}'"):
            load(saved, model, texts)


def test_what_nobody_owns_may_change(saved, model, records):
    more = [*records, dataclasses.replace(records[-1], response="All.")]
    assert load(saved, model, more).owners == ("alice", "bob", "carol")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "holds no index"),
        (lambda text: "[]", "holds no index"),
        (lambda text: text.replace('"kernel": "bm25",', ""), "holds no index"),
        (lambda text: text.replace('"seed": 0', '"seed": "x"'), "holds no index"),
        (lambda text: text.replace('"format": 3', '"format": 2'), "holds no index"),
        (lambda text: text.replace('"bm25"', '"bm26"'), "unknown kernel 'bm26'"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "was changed"),
        (lambda text: text.replace('"alice"', '"alise"'), "was changed"),
        (lambda text: text.replace('"mean"', '"sum"'), "was changed"),
    ],
)
def test_a_damaged_spec_is_refused(copied, model, change, message):
    with pytest.raises(UserError, match=message) as caught:
        load(copied(change), model)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_arrays_are_refused(copied, model, recwarn):
    folder = copied(lambda text: text)
    files = [path for path in (folder / "index").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load(folder, model)
    assert not recwarn.list


def test_a_folder_without_an_index(tmp_path, model):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="holds no index"):
            read_spec(folder)


def test_an_index_is_never_written_over(built, saved):
    before = (saved / "spec.json").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        save(built("bm25").remove("bob"), saved)
    assert (saved / "spec.json").read_bytes() == before


def test_a_save_that_fails_leaves_nothing(built, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_write", full)
    with pytest.raises(UserError, match="no disk space left"):
        save(built("bm25"), tmp_path / "index")
    assert list(tmp_path.iterdir()) == []
