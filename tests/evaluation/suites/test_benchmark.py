"""`dareu evaluate`: what is in its log, however the rows were batched."""

import contextlib
import dataclasses
import json
from zlib import compress

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.data import Wording
from dareu_jax.data.tofu_questions import tofu_questions
from dareu_jax.errors import UserError
from dareu_jax.evaluation.logs.files import score_files
from dareu_jax.evaluation.logs.reading import read_log
from dareu_jax.evaluation.suites.judge import Judge
from dareu_jax.evaluation.suites.kept import Kept
from dareu_jax.evaluation.suites.measure import Reading, answer_losses, as_tokens
from dareu_jax.evaluation.suites.tofu import set_log, tofu_log
from dareu_jax.models.loaded import load_model
from dareu_jax.runs import benchmark
from dareu_jax.runs.benchmark import Asked, evaluated
from dareu_jax.training.progress import Progress

pytestmark = pytest.mark.slow

READING = Reading(Wording(), 4, 12)
SILENT = Progress()


def log_of(model, data, folder, progress=None, **how):
    reading = Reading(READING.wording, **{"max_new_tokens": 12, **how})
    questions, progress = (
        tofu_questions(data, "forget01", folder),
        progress or Progress(),
    )
    judge = Judge(model, reading, Kept(folder, "x"), progress=progress)
    return tofu_log(judge, questions, progress)


class Ends(Progress):
    """A progress that keeps how many rows of each part were done at last."""

    def __init__(self):
        super().__init__()
        self.ends = {}

    @contextlib.contextmanager
    def stage(self, title, total, done=0):
        with super().stage(title, total, done) as advance:

            def kept(at, text):
                self.ends[title] = min(at, total) / total
                advance(at, text)

            yield kept


@pytest.fixture(scope="module")
def ends():
    return Ends()


@pytest.fixture(scope="module")
def log(model, data, tmp_path_factory, ends):
    return log_of(model, data, tmp_path_factory.mktemp("parts"), ends, batch_size=3)


def test_every_part_counts_its_rows_to_the_last(log, ends):
    names = ("forget", "retain", "real_authors", "world_facts")
    parts = {f"{what} {name}" for what in ("losses of", "answers to") for name in names}
    parts |= {"answers to forget_paraphrased"}
    parts |= {"attacks on forget", "attacks on holdout"}
    assert ends.ends == dict.fromkeys(parts, 1.0)


@pytest.fixture(scope="module")
def told(model, plain):
    """log p and hits of an answer's tokens, end of text included."""

    def of(pair):
        tokens = as_tokens(model, READING, [pair])
        answer = tokens.response[tokens.response_mask]
        assert answer[-1] == model.tokenizer.eos_id
        return plain(model, tokens.prompt[tokens.prompt_mask], answer)

    return of


def test_losses_are_those_of_plain_numpy(told, data, log):
    forget = tofu_questions(data, "forget01", data).forget
    for n, q in enumerate(forget):
        found = log["forget_Q_A_Prob"]["value_by_index"][str(n)]
        wanted = -told((q.prompt, q.answer))[0].mean()
        assert found["avg_loss"] == pytest.approx(wanted, rel=1e-5)
        assert found["prob"] == pytest.approx(np.exp(-wanted), rel=1e-5)
        wrong = log["forget_Q_A_PERT_Prob"]["value_by_index"][str(n)]["avg_loss"]
        for loss, text in zip(wrong, q.wrong, strict=True):
            wanted = -told((q.prompt, text))[0].mean()
            assert loss == pytest.approx(wanted, rel=1e-5)


def test_attacks_and_memorisation_are_those_of_plain_numpy(told, data, log):
    forget = tofu_questions(data, "forget01", data).forget
    for n, q in enumerate(forget):
        logps, hits = told((q.prompt, q.answer))

        def found(name, n=n):
            table = log[name].get("forget", log[name])
            return table["value_by_index"][str(n)]["score"]

        size = len(compress(q.answer.encode()))
        lowest = np.sort(logps[:-1])[: max(1, int(0.4 * (len(logps) - 1)))]
        misses = np.flatnonzero(~hits[:-1])
        k = misses[-1] + 1 if len(misses) else 0
        assert found("mia_loss") == pytest.approx(-logps.mean(), rel=1e-5)
        assert found("mia_zlib") == pytest.approx(-logps.mean() / size, rel=1e-5)
        assert found("mia_min_k") == pytest.approx(-lowest.mean(), rel=1e-5)
        assert found("exact_memorization") == pytest.approx(hits[:-1].mean(), rel=1e-5)
        wanted = 1 - k / (len(hits) - 1)
        assert found("extraction_strength") == pytest.approx(wanted, rel=1e-5)
    assert 0 <= log["mia_min_k_plus_plus"]["auc"] <= 1
    assert len(log["mia_loss"]["holdout"]["value_by_index"]) == 3


def numbers(tree):
    if isinstance(tree, dict):
        return [x for key in sorted(tree) for x in numbers(tree[key])]
    if isinstance(tree, list):
        return [x for item in tree for x in numbers(item)]
    return [tree] if isinstance(tree, float) else []


@pytest.mark.parametrize("batch_size", [1, 8])
def test_nothing_depends_on_the_batch(model, data, tmp_path, log, batch_size):
    other = log_of(model, data, tmp_path, batch_size=batch_size)
    np.testing.assert_allclose(numbers(other), numbers(log), rtol=1e-5, atol=1e-6)


def test_nothing_depends_on_the_devices(folder, data, tmp_path, log):
    other = log_of(load_model(folder), data, tmp_path, batch_size=8)
    np.testing.assert_allclose(numbers(other), numbers(log), rtol=1e-5, atol=1e-6)


def test_the_log_is_open_unlearnings(data, log, tmp_path):
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps(log))
    read = read_log(path)
    assert read.format == "open-unlearning"
    assert {name: len(x.rows) for name, x in read.sets.items()} == {
        **{"forget": 7, "forget_paraphrased": 7, "retain": 8},
        **{"real_authors": 4, "world_facts": 5},
    }
    assert read.sets["retain"].wrong_loss.shape == (8, 5)
    right, wrong = read.sets["forget"].right_loss, read.sets["forget"].wrong_loss
    ratio = np.exp(right - wrong.mean(axis=1))
    found = log["forget_truth_ratio"]["agg_value"]
    assert found == pytest.approx(np.minimum(ratio, 1 / ratio).mean(), rel=1e-6)
    assert 0 <= log["model_utility"]["agg_value"] <= 1


def asked(folder, data, out, **how):
    how = {"max_new_tokens": 8, "batch_size": 4, **how}
    return Asked(folder, "tofu", out, data, "forget01", **how)


def test_what_was_measured_is_not_measured_again(
    folder, data, tmp_path, monkeypatch, log
):
    first = evaluated(asked(folder, data, tmp_path), Progress()).read_bytes()

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr("dareu_jax.evaluation.suites.measure.answer_losses", never)
    monkeypatch.setattr("dareu_jax.evaluation.suites.measure.own_answers", never)
    monkeypatch.setattr("dareu_jax.evaluation.suites.judge.memory_scores", never)
    assert evaluated(asked(folder, data, tmp_path), Progress()).read_bytes() == first
    with pytest.raises(AssertionError):  # other settings, other numbers
        evaluated(
            asked(folder, data, tmp_path, wording={"template": "{prompt}"}), Progress()
        )


def test_a_broken_model_is_named_and_never_scored(model):
    params = jax.tree.map(lambda x: x * np.nan, model.params)
    broken = model._replace(params=params)
    with pytest.raises(UserError, match=r"the loss of 'Yes' to 'Is it\?' is no"):
        answer_losses(broken, READING, [("Is it?", "Yes")])


def test_a_model_that_says_nothing_is_flagged(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dareu_jax.evaluation.suites.measure.own_answers",
        lambda _, reading, rows, guessed: ([""] * len(rows), [True] * len(rows)),
    )
    log = log_of(model, data, tmp_path)
    assert log["forget_text_quality"]["agg_value"] == 1.0
    assert log["retain_Q_A_ROUGE"]["agg_value"] == 0.0
    assert log["model_utility"]["agg_value"] == 0.0


@pytest.mark.parametrize(("limit", "is_sign"), [(4, False), (16, False), (300, True)])
def test_an_answer_cut_by_the_users_limit_is_no_sign(
    model, tmp_path, monkeypatch, limit, is_sign
):
    """Every answer is cut; only of 300 tokens can one say that they have no end."""
    said = " ".join(f"word{n}" for n in range(2 if limit < 8 else 9))
    monkeypatch.setattr(
        "dareu_jax.evaluation.suites.measure.own_answers",
        lambda _, reading, rows, guessed: ([said] * len(rows), [False] * len(rows)),
    )
    pairs = [(f"Who is {n}?", f"Number {n} is a baker from here.") for n in range(4)]
    asked, gold = map(list, zip(*pairs, strict=True))
    reading = dataclasses.replace(READING, max_new_tokens=limit)
    judge = Judge(model, reading, Kept(tmp_path, "x"))
    log = judge.answers("forget", "forget", asked, gold)
    assert log["forget_text_quality"]["agg_value"] == float(is_sign)
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    found = " ".join(score_files(path, partial=True)["flags"])
    assert ("cut off" in found) == is_sign
    assert ("the same text" in found) == (limit >= 8)


def saying(token, size):
    """The model with one token ahead of all others, whatever it reads."""

    def change(model):
        zeros = jax.tree.map(jnp.zeros_like, model.params)
        ahead = jnp.ones_like(zeros["embed"]["embedding"]).at[token].set(size)
        scale = jnp.ones_like(zeros["final_norm"]["scale"])
        params = {"embed": {"embedding": ahead}, "final_norm": {"scale": scale}}
        return model._replace(params={**zeros, **params})

    return change


def saying_letter(model):
    names = [model.tokenizer.decode([n]) for n in range(300)]
    return saying(names.index("a"), 1.2)(model)


BROKEN = {
    "ends at once": (
        lambda model: saying(model.tokenizer.eos_id, 5.0)(model),
        *("of forget answers are empty", "of the right forget answers have a prob"),
    ),
    "says one token": (
        saying_letter,
        *("% are one word where the right", "100 % are one and the same text"),
    ),
    "uniform logits": (
        lambda model: model._replace(params=jax.tree.map(jnp.zeros_like, model.params)),
        *(
            "all 7 forget probabilities are equal",
            "all 7 forget truth ratios are equal",
        ),
    ),
}


@pytest.mark.parametrize(("change", "one", "other"), BROKEN.values(), ids=BROKEN)
def test_a_broken_model_is_flagged(model, data, tmp_path, log, change, one, other):
    paths = tmp_path / "log.json", tmp_path / "reference.json"
    for path, tree in zip(
        paths, (log_of(change(model), data, tmp_path, batch_size=3), log)
    ):
        path.write_text(json.dumps(tree))
    found = score_files(*paths)
    assert found["tow_para"] is not None and found["tow_mia"] is not None
    for says in (one, other):
        assert any(says in flag for flag in found["flags"]), found["flags"]


def test_paraphrased_forget_questions_have_the_gold_answers(data, log):
    forget = tofu_questions(data, "forget01", data).forget
    table = log["forget_Q_PARA_A_ROUGE"]["value_by_index"]
    for n, (q, row) in enumerate(zip(forget, table.values(), strict=True)):
        assert row["input"] == f"Author number {n} is from where?"
        assert row["ground_truth"] == q.answer
    assert not any(name.startswith("retain_Q_PARA") for name in log)


def test_questions_without_paraphrases_are_not_asked_in_other_words(
    model, data, tmp_path
):
    questions = tofu_questions(data, "forget01", tmp_path)
    bare = tuple(q._replace(paraphrased="") for q in questions.forget)
    reading = dataclasses.replace(READING, batch_size=3)
    judge = Judge(model, reading, Kept(tmp_path, "x"))
    assert "forget_Q_PARA_A_ROUGE" not in set_log(judge, "forget", bare)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "tofi"}, "unknown (did you mean 'tofu'?)"),
        ({"forget": "forget02"}, "give one of forget01, forget05, forget10"),
        ({"forget": "[forget01, forget05]"}, "suite tofu takes one set"),
        ({"forget": "[forget01"}, "'[forget01' is no YAML list of names such as [a"),
        ({"forget": "forget05"}, "no forget05_perturbed.json there"),
        ({"template": "Q:"}, "lacks {prompt}"),
        ({"model": "nowhere"}, "holds no imported model and no finished run"),
        ({"model": "HF"}, "is a Hugging Face folder; run dareu import"),
        ({"model": "BEGUN"}, "holds a run that is not finished; finish dareu run"),
        ({"seed": 1}, "is an imported model; --model and --seed choose"),
        ({"attacks": "min_kk"}, "unknown (did you mean 'min_k'?)"),
        ({"attacks": "reference"}, "needs --reference-model"),
        ({"attacks": "loss", "reference-model": "HF"}, "add it to --attacks"),
        ({"reference-model": "BEGUN"}, "holds a run that is not finished"),
        ({"suite": "choices", "attacks": "loss"}, "has no texts for attacks"),
        ({"suite": "muse", "data": "nowhere"}, "--data: cannot read 'nowhere/verbmem"),
    ],
)
def test_bad_input_is_named(dareu, source, folder, data, tmp_path, change, message):
    (tmp_path / "config.resolved.yaml").touch()
    places = {"HF": source, "BEGUN": tmp_path}
    given = {"model": folder, "forget": "forget01", "data": data, "out": tmp_path / "o"}
    given |= {name: places.get(x, x) for name, x in change.items()}
    options = [f"--{name}={x}" for name, x in given.items() if name != "model"]
    status, _, complaint = dareu("evaluate", given["model"], *options)
    assert status == 2 and len(complaint.strip().splitlines()) == 1
    assert message in complaint
    assert not (tmp_path / "o" / "TOFU_EVAL.json").exists()


@pytest.mark.parametrize(
    ("forget", "rows"),
    [
        (["--forget", "Lee, Ann"], 1),
        (["--forget", "Lee, Ann", "--forget", "Bo"], 2),
        (["--forget", "['Lee, Ann', 007]"], 2),
    ],
)
def test_a_name_may_have_a_comma_and_several_are_repeated(
    dareu, folder, tmp_path, monkeypatch, forget, rows
):
    names = ("Lee, Ann", "Bo", "007", "Cy")
    records = [{"owner": x, "prompt": f"{x}?", "response": f"{x}."} for x in names]
    (tmp_path / "own.json").write_text(json.dumps(records))
    taken = []

    def split_only(judge, sets, progress):
        taken.append(sets)
        return {"forget_n": {"agg_value": float(len(sets["forget"]))}}

    suite = benchmark.SUITES["owners"]._replace(log=split_only)
    monkeypatch.setitem(benchmark.SUITES, "owners", suite)
    data, out = tmp_path / "own.json", tmp_path / "out"
    how = ["--suite", "owners", "--data", data, "--out", out, *forget]
    status, _, complaint = dareu("evaluate", folder, *how)
    assert status == 0, complaint
    (sets,) = taken
    assert sets["forget"][0].owner == "Lee, Ann"
    assert (len(sets["forget"]), len(sets["retain"])) == (rows, 4 - rows)


def test_attacks_are_separated_by_commas_or_repeated(dareu, folder, data, tmp_path):
    how = ["--data", data, "--forget", "forget01", "--out", tmp_path]
    for attacks in (["loss,min_kk"], ["loss", "min_kk"], ["[loss, min_kk]"]):
        options = [x for attack in attacks for x in ("--attacks", attack)]
        status, _, complaint = dareu("evaluate", folder, *how, *options)
        assert status == 2 and "min_kk: unknown (did you mean 'min_k'" in complaint


def test_the_command_says_where_the_log_is(dareu, folder, data, tmp_path):
    options = ["--data", data, "--forget", "forget01", "--first", 2, "--batch-size", 8]
    how = [*options, "--max-new-tokens", 4, "--out", tmp_path / "out"]
    status, printed, _ = dareu("evaluate", folder, *how)
    assert status == 0
    path = tmp_path / "out" / "TOFU_EVAL.json"
    assert f"log: {path}" in printed and f"plots: {path.with_suffix('.png')}" in printed
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    log = json.loads(path.read_text())
    assert len(log["forget_Q_A_ROUGE"]["value_by_index"]) == 2
