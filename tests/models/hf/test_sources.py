"""Every field that transformers' own code of a family reads is known here."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from dareu_jax.models.hf.families.family import MAPPED, MUST_BE, NO_MATHS, Family
from dareu_jax.registry import FAMILIES

FOLDERS = {"gemma3_text": "gemma3"}
READ = re.compile(r"""\bconfig\.(\w+)|\bgetattr\((?:self\.)?config, "(\w+)\"""")
OF_THE_LIBRARY = {"num_labels", "classifier_dropout", "get_text_config", "to_dict"}


def classes_of(folder: str) -> dict[str, str]:
    """The text of every class of a model's file, by name."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "models" / folder / f"modeling_{folder}.py"
    text = path.read_text(encoding="utf-8")
    nodes = [x for x in ast.parse(text).body if isinstance(x, ast.ClassDef)]
    return {x.name: ast.get_source_segment(text, x) or "" for x in nodes}


def fields_read(family: Family) -> set[str]:
    """Fields that the decoder's classes read, from the language model downwards."""
    classes = classes_of(FOLDERS.get(family.model_type, family.model_type))
    todo, done, found = [family.architecture], set[str](), set[str]()
    while todo:
        name = todo.pop()
        if name in done or name not in classes or name.endswith("PreTrainedModel"):
            continue
        done.add(name)
        found |= {one or other for one, other in READ.findall(classes[name])}
        todo += re.findall(r"\b[A-Z]\w+", classes[name])
    assert len(done) > 5
    return found


@pytest.mark.parametrize("name", FAMILIES.names())
def test_what_transformers_computes_with_is_known(name):
    family: Family = FAMILIES.get(name)
    known = {*MAPPED, *MUST_BE, *NO_MATHS, *family.names.values(), *family.must_be}
    read = fields_read(family)
    assert read - known - set(family.reads) - OF_THE_LIBRARY == set()
    assert {"hidden_size", "num_hidden_layers", "vocab_size"} <= read


@pytest.mark.parametrize("name", FAMILIES.names())
def test_what_a_family_names_is_a_field_of_transformers(name):
    from transformers import AutoConfig

    family: Family = FAMILIES.get(name)
    theirs = set(AutoConfig.for_model(name).to_dict())
    old = {"rotary_pct", "rotary_emb_base", "rope_local_base_freq", "hidden_act"}
    old |= {"sliding_window_pattern", "partial_rotary_factor", "rope_theta"}
    other = {*family.absent, *family.reads, *family.names.values()} - theirs - old
    assert other <= {"head_dim"}
