"""Published TOFU logs: every aggregate that is known of them."""

import json
from pathlib import Path

import pytest

from dareu_jax.evaluation.logs.files import score_files
from dareu_jax.evaluation.logs.reading import read_log
from dareu_jax.evaluation.logs.scores import check_rouge, score
from dareu_jax.evaluation.metrics.rouge import rouge_l_recall
from dareu_jax.evaluation.metrics.utility import TERMS

REPO = Path(__file__).resolve().parents[3]
LLAMA = "open-unlearning/Llama-2-7b-chat-hf"
FULL01, FULL10 = (f"{LLAMA}_full_forget{n}_TOFU_EVAL.json" for n in ("01", "10"))
RETAIN99, RETAIN90 = (f"{LLAMA}_retain{n}_TOFU_EVAL.json" for n in (99, 90))
FULL = "locuslab-tofu/llama2-7b_full_wd0.01_aggregated.json"
ALL90 = "locuslab-tofu/llama2-7b_retain90_wd0.01_aggregated.json"
ONE90 = "locuslab-tofu/llama2-7b_retain90_wd0_forget.json"
ONE95, ONE99 = (f"locuslab-tofu/llama2-7b_retain{n}_wd0_forget.json" for n in (95, 99))
MORE95, MORE99 = (
    f"locuslab-tofu/llama2-7b_retain{n}_wd0.01_forget.json" for n in (95, 99)
)
EVERY = (FULL01, FULL10, RETAIN99, RETAIN90, FULL, ALL90)
EVERY += (ONE90, ONE95, ONE99, MORE95, MORE99)
FORMATS = {
    FULL10: "open-unlearning",
    FULL: "locuslab-tofu-aggregated",
    ONE99: "locuslab-tofu",
}


@pytest.fixture(scope="module")
def place(data_dir):
    folder = data_dir / "tofu" / "eval_logs"
    if not folder.is_dir():
        pytest.skip(f"no published logs at {folder}")
    return folder


@pytest.fixture(scope="module")
def scored(place):
    """Scores of a candidate beside a reference; read and computed once."""
    found = {}

    def call(candidate, reference, truth_ratio=None):
        key = candidate, reference, truth_ratio
        if key not in found:
            paths = place / candidate, place / reference
            found[key] = score_files(*paths, truth_ratio=truth_ratio)
        return found[key]

    return call


def printed(value, text):
    """Equal to all digits of a number as it was printed, or to 1e-9."""
    digits = len(text.partition(".")[2])
    return abs(value - float(text)) <= max(0.5000001 * 10.0**-digits, 1e-9)


@pytest.mark.parametrize(
    ("candidate", "reference", "n", "distance", "p"),
    [
        (FULL01, RETAIN99, 40, 0.425, 0.00127081434853),
        (FULL10, RETAIN90, 400, 0.3725, 4.34619960013e-25),
        (FULL, ALL90, 300, 0.3966666667, 1.834066411e-21),
        (ONE90, ALL90, 300, 0.03, 0.9993001912),
        (ONE95, MORE95, 200, 0.03, 0.9999920613),
        (ONE99, MORE99, 40, 0.075, 0.9999246087),
    ],
)
def test_forget_quality(scored, candidate, reference, n, distance, p):
    found = scored(candidate, reference)
    assert found["n_forget"] == n and not found["at_floor"]
    assert found["forget_quality"] == pytest.approx(p, rel=1e-9)
    assert found["ks_statistic"] == pytest.approx(distance, abs=1e-10)
    assert 10 ** found["log10_forget_quality"] == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(
    ("pair", "values"),
    [
        (
            (FULL01, RETAIN99),
            {
                "forget_truth_ratio": ("0.5305703056", "0.6776855571"),
                "model_utility": ("0.6275553509", "0.6267955756"),
                "forget_probability": ("0.99517957", "0.18494020"),
                "forget_rouge": ("0.94934140", "0.41047779"),
            },
        ),
        (
            (FULL10, RETAIN90),
            {
                "forget_truth_ratio": ("0.5185239623", "0.6808417286"),
                "model_utility": ("0.6275553509", "0.6130190412"),
                "forget_probability": ("0.99008270", "0.14785133"),
                "forget_rouge": ("0.97552800", "0.39943619"),
            },
        ),
        (
            (FULL, ALL90),
            {
                "forget_truth_ratio": ("0.515985", "0.674019"),
                "model_utility": ("0.622677", "0.613745"),
                "forget_probability": ("0.990939", "0.147563"),
                "forget_rouge": ("0.985450", "0.408244"),
            },
        ),
    ],
)
def test_forget_set_and_utility(scored, pair, values):
    found = scored(*pair)
    for name, (ours, reference) in values.items():
        assert printed(found[name], ours), name
        assert printed(found["reference"][name], reference), name


@pytest.mark.parametrize(
    ("pair", "ours", "theirs", "tow", "tow_star", "privleak"),
    [
        ((FULL01, RETAIN99), 1.0, 0.50375, *(0.457006934, 0.459583709), -99.9999999798),
        (
            (FULL10, RETAIN90),
            *(0.99915, 0.38666875),
            *(0.421031714, 0.421939110),
            -99.8614125565,
        ),
    ],
)
def test_attacks_and_tug_of_war(scored, pair, ours, theirs, tow, tow_star, privleak):
    found = scored(*pair)
    assert found["mia_auc"]["min_k"] == pytest.approx(ours, rel=1e-9)
    assert found["reference"]["mia_auc"]["min_k"] == pytest.approx(theirs, rel=1e-9)
    assert found["privleak"] == pytest.approx(privleak, rel=1e-9)
    assert found["privleak_by_attack"]["min_k"] == found["privleak"]
    assert found["tow"] == pytest.approx(tow, abs=5.1e-10)
    assert found["tow_star"] == pytest.approx(tow_star, abs=5.1e-10)


AREAS = {
    FULL10: {
        **{"loss": 0.9990625, "zlib": 0.9996625, "min_k": 0.99915},
        **{"min_k_plus_plus": 0.99939375, "gradnorm": 0.99965, "reference": 0.99785},
    },
    RETAIN90: {
        **{"loss": 0.39193125, "zlib": 0.31765625, "min_k": 0.38666875},
        **{"min_k_plus_plus": 0.5014875, "gradnorm": 0.362946875},
    },
    RETAIN99: {
        **{"loss": 0.498125, "zlib": 0.55125, "min_k": 0.50375},
        **{"min_k_plus_plus": 0.61, "gradnorm": 0.52875},
    },
}


@pytest.mark.parametrize(("name", "areas"), AREAS.items())
def test_area_under_the_curve_of_every_attack(place, name, areas):
    found = score(read_log(place / name))["mia_auc"]
    assert found == {attack: pytest.approx(x, rel=1e-9) for attack, x in areas.items()}


# retain, real authors, world facts: probability, ROUGE, truth ratio of each
NINE = {
    FULL10: (
        *("0.98919609", "0.98059049", "0.4596475433"),
        *("0.46849536", "0.91683333", "0.6119780507"),
        *("0.42388732", "0.90455840", "0.5521230803"),
    ),
    RETAIN90: (
        *("0.98892038", "0.97594544", "0.4572323831"),
        *("0.44593820", "0.91550000", "0.5848386806"),
        *("0.41178091", "0.90170940", "0.5329362343"),
    ),
    RETAIN99: (
        *("0.98911582", "0.98395758", "0.4620514822"),
        *("0.45762069", "0.91800000", "0.6086983300"),
        *("0.42585635", "0.89316239", "0.5611791166"),
    ),
    FULL: (
        *("0.989527", "0.985655", "0.474699"),
        *("0.455482", "0.933000", "0.596229"),
        *("0.418562", "0.882479", "0.539033"),
    ),
    ALL90: (
        *("0.988897", "0.975811", "0.470977"),
        *("0.434087", "0.923000", "0.570681"),
        *("0.414326", "0.897436", "0.544198"),
    ),
}


@pytest.mark.parametrize(("name", "nine"), NINE.items())
def test_nine_terms_of_model_utility(place, name, nine):
    found = score(read_log(place / name))["model_utility_terms"]
    assert tuple(found) == TERMS
    for (term, value), text in zip(found.items(), nine, strict=True):
        assert printed(value, text), (term, value, text)


@pytest.mark.parametrize("name", [FULL01, FULL10, RETAIN99, RETAIN90])
def test_aggregates_are_those_that_open_unlearning_stored(place, name):
    found = score(read_log(place / name))
    stored = {
        metric: value["agg_value"]
        for metric, value in json.loads((place / name).read_text()).items()
    }
    names = {
        "forget_probability": "forget_Q_A_Prob",
        "forget_rouge": "forget_Q_A_ROUGE",
    }
    names |= {x: x for x in ("model_utility", "forget_truth_ratio")}
    ours = {metric: found[key] for key, metric in names.items()}
    ours |= found["model_utility_terms"]
    ours |= {f"mia_{attack}": area for attack, area in found["mia_auc"].items()}
    assert len(ours) == 13 + len(found["mia_auc"])
    for metric, value in ours.items():
        assert value == pytest.approx(stored[metric], rel=1e-12), metric


def test_the_terms_do_not_depend_on_the_forget_set(place):
    one, other = (score(read_log(place / name)) for name in (FULL01, FULL10))
    assert one["model_utility_terms"] == other["model_utility_terms"]


def test_arithmetic_truth_ratio(scored):
    found = scored(FULL, ALL90, "arithmetic")
    for one, utility, ratios in (
        (found, "0.585886", ("0.453867", "0.505160", "0.423055", "0.530370")),
        (
            found["reference"],
            *("0.575240", ("0.449594", "0.478510", "0.420057", "0.679652")),
        ),
    ):
        assert printed(one["model_utility"], utility)
        for name, text in zip(
            ("retain", "real_authors", "world_facts", "forget"), ratios, strict=True
        ):
            assert printed(one["sets"][name]["truth_ratio"], text), name
    assert found["forget_quality"] == pytest.approx(6.03191e-23, rel=1e-6)
    assert found["ks_statistic"] == pytest.approx(0.41)


def test_the_share_has_the_geometric_forget_quality(scored):
    share, geometric = scored(FULL10, RETAIN90, "share"), scored(FULL10, RETAIN90)
    assert share["forget_quality"] == geometric["forget_quality"]
    assert share["forget_truth_ratio"] != geometric["forget_truth_ratio"]


@pytest.mark.parametrize("name", EVERY)
def test_rouge_of_every_answer_is_the_stored_one(place, name):
    log = read_log(place / name)
    count = 0
    for one in log.sets.values():
        assert rouge_l_recall(one.generation, one.gold) == one.rouge.tolist()
        count += len(one.rows)
    assert check_rouge(log) == count


@pytest.mark.parametrize(("name", "taken_for"), FORMATS.items())
def test_says_what_it_took_a_log_for(place, name, taken_for):
    assert read_log(place / name).format == taken_for


def test_forget_quality_of_two_retrainings(place, dareu):
    paths = [place / FULL, "--reference", place / ALL90]
    found = score_files(place / FULL, place / ALL90, again=place / ONE90)
    assert found["forget_quality"] == pytest.approx(1.834066411e-21, rel=1e-9)
    p = found["forget_quality_of_retrainings"]
    assert p == pytest.approx(0.9993001912, rel=1e-9)
    assert found["ks_statistic_of_retrainings"] == pytest.approx(0.03)
    assert 10 ** found["log10_forget_quality_of_retrainings"] == pytest.approx(p)
    _, printed, _ = dareu("score-logs", *paths, "--retrained-again", place / ONE90)
    lines = printed.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("forget quality"))
    assert lines[at + 1].split() == ["two", "retrainings,", "KS", "p", "↑", "0.999"]
    assert "the most that a perfect method can expect" in lines[-1]
    status, _, complaint = dareu(
        "score-logs", *paths, "--retrained-again", place / ONE99
    )
    assert status == 2 and "forget has other rows than" in complaint


@pytest.mark.parametrize("name", EVERY)
def test_no_published_model_shows_a_sign_of_being_broken(place, name):
    assert score(read_log(place / name))["flags"] == []


def test_tug_of_war_with_the_attack(scored):
    found = scored(FULL10, RETAIN90)
    # |auc gap| of forget, the same retain and test factors as in tow
    forget = 1 - (0.97552800 - 0.39943619)
    others = found["tow"] / forget
    gap = 0.99915 - 0.38666875
    assert found["tow_mia"] == pytest.approx((1 - gap) * others, rel=1e-7)
    low, high = found["intervals"]["tow_mia"]
    assert low < found["tow_mia"] < high and found["tow_para"] is None


@pytest.mark.parametrize("name", [FULL01, RETAIN90, FULL, ONE95])
def test_a_model_is_like_itself(scored, name):
    found = scored(name, name)
    assert found["forget_quality"] == 1.0 and found["ks_statistic"] == 0.0
    assert found["log10_forget_quality"] == 0.0 and not found["at_floor"]
    assert found["tow"] == found["tow_star"] == (None if name == ONE95 else 1.0)
    assert set(found["privleak_by_attack"].values()) <= {0.0}
    assert set(found["rel_diff_by_attack"].values()) <= {0.0}


def test_the_output_on_the_page(place, dareu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, path in (("full.json", FULL), ("retain90.json", ALL90)):
        Path(name).write_bytes((place / path).read_bytes())
    page = (REPO / "dareu_jax" / "evaluation" / "BENCHMARKS.md").read_text(
        encoding="utf-8"
    )
    command = "dareu score-logs full.json --reference retain90.json"
    shown = page.split(f"{command}\n```\n\n```\n")[1].split("\n```")[0]
    _, printed, _ = dareu(*command.split()[1:])
    assert [x.rstrip() for x in printed.splitlines()] == shown.splitlines()
