"""Aggregates from published logs, and from logs that are wrong."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dareu_jax.evaluation.forget_quality import forget_quality
from dareu_jax.evaluation.logs import read_log
from dareu_jax.evaluation.mia import auc, privleak, rel_diff
from dareu_jax.evaluation.rouge import rouge_l_recall
from dareu_jax.evaluation.score_logs import score_log
from dareu_jax.evaluation.truth_ratio import TRUTH_RATIOS
from dareu_jax.evaluation.utility import TERMS, model_utility

OU = "open-unlearning/Llama-2-7b-chat-hf_{}_TOFU_EVAL.json"
LOCUS = "locuslab-tofu/llama2-7b_{}.json"


@pytest.fixture(scope="module")
def scored(data_dir):
    """``scored(candidate, reference, truth_ratio)`` of published logs, read once."""
    read = {}

    def log(name):
        if name not in read:
            read[name] = read_log(data_dir / "tofu" / "eval_logs" / name)
        return read[name]

    return lambda one, other, kind="geometric": score_log(log(one), log(other), kind)


def near(value, relative=1e-9):
    return pytest.approx(value, rel=relative)


FORGET01 = (OU.format("full_forget01"), OU.format("retain99"))
FORGET10 = (OU.format("full_forget10"), OU.format("retain90"))
FULL, RETAIN90 = (LOCUS.format(f"{x}_wd0.01_aggregated") for x in ("full", "retain90"))


@pytest.mark.parametrize(
    ("pair", "wanted"),
    [
        (
            FORGET01,
            {
                "n_forget": 40,
                "ks_statistic": 0.425,
                "forget_quality": 0.0012708143485281624,
                "forget_truth_ratio": 0.530570305552422,
                "model_utility": 0.6275553508047139,
                "forget_probability": 0.9951795697212219,
                "forget_rouge": 0.9493413978494625,
                "tow": 0.457006934347873,
                "tow_star": 0.4595837093696846,
            },
        ),
        (
            FORGET10,
            {
                "n_forget": 400,
                "ks_statistic": 0.3725,
                "forget_quality": 4.34619960013e-25,
                "forget_truth_ratio": 0.5185239623,
                "model_utility": 0.6275553509,
                "tow": 0.421031714,
                "tow_star": 0.421939110,
            },
        ),
    ],
)
def test_open_unlearnings_published_numbers(scored, pair, wanted):
    found = scored(*pair)
    assert found["format"] == "open-unlearning"
    for name, value in wanted.items():
        exact = name in ("ks_statistic", "forget_quality")
        assert found[name] == near(value, 1e-9 if exact else 1e-8), name


def test_open_unlearnings_attacks(scored):
    found = scored(*FORGET10)
    assert found["mia_auc"] == {
        **{"loss": near(0.9990625), "zlib": near(0.9996625), "min_k": near(0.99915)},
        **{"min_k_plus_plus": near(0.99939375), "gradnorm": near(0.99965)},
        "reference": near(0.99785),
    }
    assert found["privleak"]["min_k"] == near(-99.8614125565)
    assert scored(*FORGET01)["privleak"]["min_k"] == near(-99.9999999798)
    retained = scored(FORGET10[1], FORGET10[1])["mia_auc"]
    assert retained["loss"] == near(0.39193125)
    assert retained["min_k_plus_plus"] == near(0.5014875)


TERMS_OF = {
    FORGET10[0]: (
        *(0.98919609, 0.98059049, 0.4596475433, 0.46849536, 0.91683333),
        *(0.6119780507, 0.42388732, 0.90455840, 0.5521230803),
    ),
    FORGET10[1]: (
        *(0.98892038, 0.97594544, 0.4572323831, 0.44593820, 0.91550000),
        *(0.5848386806, 0.41178091, 0.90170940, 0.5329362343),
    ),
    FORGET01[1]: (
        *(0.98911582, 0.98395758, 0.4620514822, 0.45762069, 0.91800000),
        *(0.6086983300, 0.42585635, 0.89316239, 0.5611791166),
    ),
}
UTILITY = {
    FORGET10[0]: 0.6275553509,
    FORGET10[1]: 0.6130190412,
    FORGET01[1]: 0.6267955756,
}


@pytest.mark.parametrize("name", TERMS_OF)
def test_the_nine_terms(scored, name):
    found = scored(name, name)
    terms = [found["model_utility_terms"][term] for term in TERMS]
    np.testing.assert_allclose(terms, TERMS_OF[name], atol=6e-9)
    assert found["model_utility"] == near(UTILITY[name], 1e-9)


@pytest.mark.parametrize(
    ("pair", "n", "statistic", "p"),
    [
        ((FULL, RETAIN90), 300, 0.3966666667, 1.834066411e-21),
        (("retain90_wd0_forget", RETAIN90), 300, 0.03, 0.9993001912),
        (("retain95_wd0_forget", "retain95_wd0.01_forget"), 200, 0.03, 0.9999920613),
        (("retain99_wd0_forget", "retain99_wd0.01_forget"), 40, 0.075, 0.9999246087),
    ],
)
def test_the_original_repositorys_logs(scored, pair, n, statistic, p):
    names = [x if "/" in x else LOCUS.format(x) for x in pair]
    found = scored(*names)
    assert found["n_forget"] == n
    assert found["ks_statistic"] == near(statistic)
    assert found["forget_quality"] == near(p)


def test_both_truth_ratios_of_the_original_repository(scored):
    found = scored(FULL, RETAIN90)
    assert found["model_utility"] == near(0.622677, 1e-6)
    assert found["forget_truth_ratio"] == near(0.515985, 1e-6)
    other = scored(FULL, RETAIN90, "arithmetic")
    assert other["model_utility"] == near(0.585886, 1e-6)
    assert other["forget_truth_ratio"] == near(0.530370, 1e-6)
    assert (other["forget_quality"], other["ks_statistic"]) == (
        near(6.03191e-23, 1e-6),
        near(0.41),
    )


@pytest.mark.parametrize("name", [*FORGET01, FULL])
def test_rouge_of_the_stored_answers_is_the_stored_one_in_every_row(data_dir, name):
    log = read_log(data_dir / "tofu" / "eval_logs" / name)
    for one in log.sets.values():
        assert one.generation is not None
        found = rouge_l_recall(one.generation, one.gold)
        np.testing.assert_allclose(found, one.rouge, atol=1e-9)


@pytest.mark.parametrize("n", [40, 200, 300, 400])
def test_disjoint_samples_have_a_closed_form(n):
    found = forget_quality(np.arange(n), np.arange(n) + n)
    log_p = math.log10(2) - math.log10(math.comb(2 * n, n))
    assert found.floor and found.statistic == 1.0
    assert found.log10_p == near(log_p)
    published = {40: 1.8603403656e-23, 200: 1.9426434495e-119}
    published |= {300: 1.4802978792e-179, 400: 1.0635896770e-239}
    assert found.p == near(published[n])


def test_the_test_is_scipys_on_small_samples():
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(0)
    for n in (3, 17, 60):
        a, b = rng.normal(size=n), rng.normal(0.4, size=n)
        found, wanted = forget_quality(a, b), ks_2samp(a, b, method="exact")
        assert found.statistic == near(wanted.statistic)
        assert found.p == near(wanted.pvalue, 1e-8)


def test_identical_models(scored):
    found = scored(FORGET10[1], FORGET10[1])
    assert (found["forget_quality"], found["tow"], found["tow_star"]) == (1, 1, 1)
    assert set(found["privleak"].values()) == {0.0} == set(found["rel_diff"].values())


def test_hand_computed_equations():
    assert auc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == 0.875
    assert privleak(0.9, 0.5) == near(-80, 1e-8)
    assert rel_diff(0.9, 0.6) == near(50, 1e-8)
    right, wrong = np.log([[2.0], [4.0]])[:, 0], np.log([[2.0, 8.0], [1.0, 4.0]])
    wanted = {
        "geometric": [0.25 / 0.5, 0.5 / 0.25],
        "arithmetic": [0.3125 / 0.5, 0.625 / 0.25],
        "share": [0.5 / 0.75, 0.25 / 0.75],
    }
    for name, ratio in wanted.items():
        np.testing.assert_allclose(TRUTH_RATIOS[name].rows(right, wrong), ratio, 1e-8)
    assert TRUTH_RATIOS["geometric"].forget(np.array([0.5, 4.0])) == near(0.375)
    assert TRUTH_RATIOS["geometric"].others(np.array([0.5, 4.0])) == near(0.25)
    terms = dict.fromkeys(TERMS, 0.5)
    assert model_utility(terms | {TERMS[0]: 0.25}) == near(9 / (4 + 8 * 2))
    assert model_utility(terms | {TERMS[0]: 0.0}) == 0.0


def rows(*names, **fields):
    return {"agg_value": 0, "value_by_index": {name: fields for name in names}}


@pytest.fixture
def small(tmp_path):
    """Writes a log of open-unlearning's with two forget rows; returns its path."""

    def write(name="log.json", **changes):
        both, wrong = ("0", "1"), {"prob": [0.5, 0.2], "avg_loss": [0.7, 1.6]}
        tree = {
            "forget_Q_A_Prob": rows(*both, prob=0.5, avg_loss=0.7),
            "forget_Q_A_PARA_Prob": rows(*both, prob=0.5, avg_loss=0.7),
            "forget_Q_A_PERT_Prob": rows(*both, **wrong),
            "forget_Q_A_ROUGE": rows(*both, rougeL_recall=0.5),
        }
        path = tmp_path / name
        path.write_text(json.dumps(tree | changes))
        return path

    return write


BAD = [
    ({"forget_Q_A_Prob": rows("0", prob=0.5)}, "has other rows than"),
    ({"forget_Q_A_Prob": rows()}, "has no rows"),
    (
        {"forget_Q_A_ROUGE": rows("0", "1", rougeL_recall=math.nan)},
        "not a finite number",
    ),
    ({"forget_Q_A_ROUGE": rows("0", "1", rougeL_recall="x")}, "not a number"),
    ({"forget_Q_A_ROUGE": rows("0", "1", rougeL_recall=7.0)}, "is outside [0, 1]"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_rows_are_named(dareu, small, change, message):
    status, printed, complaint = dareu("score-logs", small(**change))
    assert status == 2 and not printed
    assert message in complaint and len(complaint.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is a log of no known format"),
        ('{"model_utility": 0.5}', "has aggregates alone"),
        (None, "No such file"),
    ],
)
def test_files_that_are_no_logs(dareu, tmp_path, text, message):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    status, _, complaint = dareu("score-logs", path)
    assert status == 2 and message in complaint
    assert len(complaint.strip().splitlines()) == 1


def test_a_reference_of_other_rows_and_an_unknown_ratio(dareu, small):
    other = small("other.json")
    text = other.read_text().replace('"1":', '"7":')
    other.write_text(text)
    status, _, complaint = dareu("score-logs", small(), "--reference", other)
    assert status == 2 and "other rows" in complaint
    status, _, complaint = dareu("score-logs", small(), "--truth-ratio", "geometrc")
    assert status == 2 and "did you mean 'geometric'" in complaint


def test_json_is_one_object_and_the_table_names_every_score(dareu, small):
    status, printed, _ = dareu("score-logs", small(), "--reference", small(), "--json")
    found = json.loads(printed)
    assert status == 0 and found["forget_quality"] == 1.0
    assert (found["n_forget"], found["forget_rouge"]) == (2, 0.5)
    status, printed, _ = dareu("score-logs", small(), "--reference", small())
    assert status == 0
    for label in ("forget quality (KS p)", "forget truth ratio", "retrained"):
        assert label in printed
    status, printed, _ = dareu("score-logs", small())
    assert "need --reference" in printed


def test_no_model_and_no_jax():
    code = "import sys, dareu_jax.evaluation.score_logs; print('jax' in sys.modules)"
    repo = Path(__file__).resolve().parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=repo, capture_output=True, text=True
    )
    assert out.stdout.strip() == "False", out.stderr
