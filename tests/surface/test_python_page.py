"""What `dareu_jax` itself offers: few names, imported late, each on the page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import dareu_jax

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "dareu_jax" / "README.md").read_text(encoding="utf-8")
UNLEARN, ATTRIBUTE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[:2]
RECORDS = [
    {"owner": "ann", "prompt": "Where was Ann's shop?", "response": "In Merawick."},
    {"owner": "bo", "prompt": "What does Bo paint?", "response": "Boats and tides."},
]


def test_there_are_at_most_a_dozen_names_and_the_page_has_them_all():
    assert len(dareu_jax.PUBLIC) <= 12 and dareu_jax.PUBLIC.keys() <= set(
        dir(dareu_jax)
    )
    for name in dareu_jax.PUBLIC:
        assert re.search(rf"^\|.*`{name}\b", PAGE, re.MULTILINE), name
        assert getattr(dareu_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'unlearn'"):
        dareu_jax.unlearn  # noqa: B018


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the programs of the page leave, run in a folder of a user's."""
    home = tmp_path_factory.mktemp("user")
    (home / "tests").mkdir()
    shutil.copy(REPO / "tests" / "tiny.yaml", home / "tests")
    (home / "texts.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        exec(UNLEARN, names)
        exec(ATTRIBUTE, names)
    return names


def test_the_program_that_unlearns_loads_and_generates_is_short(page, capsys):
    assert len(UNLEARN.splitlines()) <= 25
    assert set(page["run"].results["models"]) == {"original", "retrained", "npo"}
    assert 0.0 <= page["log"]["forget_Q_A_Prob"]["agg_value"] <= 1.0
    answers = page["unlearned"].generate(page["prompts"], max_new_tokens=4)
    assert len(answers) == 2 and all(isinstance(text, str) for text in answers)
    assert capsys.readouterr().out == ""  # silent where no progress is given


def test_logps_are_those_of_each_answer_whatever_stands_beside_it(page):
    model, prompts = page["retrained"], page["prompts"]
    texts = ["In Gathestead.", "Crime novels of a long and winding kind."]
    both = model.logps(prompts, texts)
    for prompt, text, logps in zip(prompts, texts, both, strict=True):
        ids = model.tokenizer.encode(text)
        assert logps.dtype == np.float32 and len(ids) <= len(logps) <= len(ids) + 2
        alone = model.logps([prompt], [text])[0]
        np.testing.assert_allclose(logps, alone, rtol=1e-4, atol=1e-5)
        assert (logps <= 0.0).all()


def test_attribution_is_over_the_owners_of_the_file(page):
    made = page["made"]
    assert made.owners == ("ann", "bo")
    pairs = [(row["prompt"], row["response"]) for row in RECORDS]
    np.testing.assert_array_equal(made.score(pairs).argmax(axis=1), [0, 1])
