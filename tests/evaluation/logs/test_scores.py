"""`dareu score-logs`: formats, output, and logs that are refused in one line."""

import copy
import json
import math
import re
import subprocess
import sys

import pytest

ROWS = ("0", "1", "2")
LOSSES = {"prob": 0.5, "avg_loss": math.log(2)}
CHOICES = {"prob": [0.25] * 3, "avg_loss": [math.log(4)] * 3}
WORDS = {"generation": "a red house", "ground_truth": "a house", "rougeL_recall": 1.0}


def metric(row):
    return {"agg_value": 0.0, "value_by_index": {name: dict(row) for name in ROWS}}


def open_unlearning_log():
    """Three rows per set: every right answer 1/2, every wrong one 1/4, ROUGE 1."""
    log = {}
    for name in ("forget", "retain", "ra", "wf"):
        log[f"{name}_Q_A_Prob"] = metric(LOSSES)
        log[f"{name}_Q_A_PERT_Prob"] = metric(CHOICES)
        log[f"{name}_Q_A_ROUGE"] = metric(WORDS)
    for name in ("forget", "retain"):
        log[f"{name}_Q_A_PARA_Prob"] = metric(LOSSES)
    seen, unseen = metric({"score": 1.0}), metric({"score": 2.0})
    log["mia_min_k"] = {"forget": seen, "holdout": unseen, "agg_value": 1.0}
    return log | {"model_utility": {"agg_value": 0.5}}


def locuslab_log(choice=False):
    columns = {
        "avg_gt_loss": math.log(2),
        "rougeL_recall": 1.0,
        "avg_paraphrased_loss": math.log(2),
        "average_perturb_loss": [math.log(4)] * 3,
        "generated_text": ["Q?", "a red house", "a house"],
    }
    columns |= {"normalized_gt_loss": 0.0} if choice else {}
    return {name: dict.fromkeys(ROWS, value) for name, value in columns.items()}


def aggregated_log():
    return {
        "eval_log.json": locuslab_log(),
        "eval_log_forget.json": locuslab_log(),
        "eval_real_author_wo_options.json": locuslab_log(choice=True),
        "eval_real_world_wo_options.json": locuslab_log(choice=True),
    }


def our_log(**rouge):
    rouge = {"forget": 0.5, "retain": 1.0, "test": 0.5} | rouge
    metrics = {}
    for split, value in rouge.items():
        for name, x in ((f"{split}_rouge", value), (f"{split}_probability", 0.25)):
            values = dict.fromkeys(ROWS, x)
            metrics[name] = {"agg_value": x, "value_by_index": values}
    texts = {split: ["a", "b", "c"] for split in rouge}
    return {"metrics": metrics, "answers": texts, "wall_s": 1.0}


@pytest.fixture
def written(tmp_path):
    def write(log, name="log.json"):
        path = tmp_path / name
        path.write_text(log if isinstance(log, str) else json.dumps(log))
        return path

    return write


@pytest.fixture
def scored(dareu, written):
    """The JSON of logs, the second one as the reference."""

    def call(log, reference=None, *options, name="log.json"):
        arguments = [written(log, name), *options, "--json"]
        if reference is not None:
            arguments += ["--reference", written(reference, "reference.json")]
        status, printed, complaint = dareu("score-logs", *arguments)
        assert status == 0, complaint
        return json.loads(printed)

    return call


@pytest.fixture
def refused(dareu, written, tmp_path):
    """The one line that logs are refused with; paths are shortened to names."""

    def call(log, reference=None, *options, name="log.json"):
        arguments = [written(log, name), *options]
        if reference is not None:
            arguments += ["--reference", written(reference, "reference.json")]
        status, printed, complaint = dareu("score-logs", *arguments)
        assert status == 2 and printed == "" and "Traceback" not in complaint
        assert complaint.startswith("dareu: ") and len(complaint.splitlines()) == 1
        return complaint.replace(f"{tmp_path}/", "")

    return call


FORMATS = {
    "open-unlearning": (open_unlearning_log, "x_EVAL.json"),
    "locuslab-tofu": (locuslab_log, "eval_log_forget.json"),
    "locuslab-tofu-aggregated": (aggregated_log, "eval_log_aggregated.json"),
    "dareu": (our_log, "owners.json"),
}


@pytest.mark.parametrize("taken_for", FORMATS)
def test_a_log_is_taken_for_what_it_is_and_is_like_itself(scored, taken_for):
    make, name = FORMATS[taken_for]
    found = scored(make(), make(), name=name)
    assert found["format"] == found["reference"]["format"] == taken_for
    assert found["n_forget"] == 3
    whole = taken_for != "locuslab-tofu"
    assert found["tow"] == found["tow_star"] == (1.0 if whole else None)
    quality = None if taken_for == "dareu" else 1.0
    assert found["forget_quality"] == quality
    assert found["privleak"] == (0.0 if taken_for == "open-unlearning" else None)


def test_every_aggregate_by_hand(scored):
    found = scored(open_unlearning_log())
    ratio, chosen = 0.25 / 0.5, 0.5 / (0.5 + 3 * 0.25)
    assert found["forget_truth_ratio"] == pytest.approx(ratio, rel=1e-9)
    assert found["forget_probability"] == 0.5 and found["forget_rouge"] == 1.0
    assert found["model_utility_terms"] == {
        "retain_Q_A_Prob": 0.5,
        "retain_Q_A_ROUGE": 1.0,
        "retain_Truth_Ratio": pytest.approx(1 - ratio, rel=1e-9),
        "ra_Q_A_Prob_normalised": pytest.approx(chosen, rel=1e-9),
        "ra_Q_A_ROUGE": 1.0,
        "ra_Truth_Ratio": pytest.approx(1 - ratio, rel=1e-9),
        "wf_Q_A_Prob_normalised": pytest.approx(chosen, rel=1e-9),
        "wf_Q_A_ROUGE": 1.0,
        "wf_Truth_Ratio": pytest.approx(1 - ratio, rel=1e-9),
    }
    # 1 / x: 2, 1, 2 for retain and 2.5, 1, 2 for each of the others
    assert found["model_utility"] == pytest.approx(9 / (5 + 2 * 5.5), rel=1e-9)
    assert found["mia_auc"] == {"min_k": 1.0} and found["reference"] is None
    assert found["forget_quality"] is found["tow"] is found["privleak"] is None


@pytest.mark.parametrize(
    ("name", "ratio"), [("arithmetic", 0.5), ("share", 2 / 3), ("geometric", 0.5)]
)
def test_the_truth_ratio_can_be_chosen(scored, name, ratio):
    found = scored(open_unlearning_log(), None, "--truth-ratio", name)
    assert found["truth_ratio"] == name
    assert found["forget_truth_ratio"] == pytest.approx(ratio, rel=1e-9)


def test_locuslab_logs_say_the_same(scored):
    whole, theirs = scored(aggregated_log()), scored(open_unlearning_log())
    for name in ("forget_probability", "forget_truth_ratio", "model_utility"):
        assert whole[name] == pytest.approx(theirs[name], rel=1e-12)
    retain = scored(locuslab_log(), name="eval_log.json")
    assert list(retain["sets"]) == ["retain"] and retain["n_forget"] is None
    authors = scored(locuslab_log(True), name="eval_real_author_wo_options.json")
    assert next(iter(authors["model_utility_terms"])) == "ra_Q_A_Prob_normalised"


def test_a_model_far_from_the_reference_by_hand(scored):
    log, retrained = open_unlearning_log(), open_unlearning_log()
    for row in log["forget_Q_A_PARA_Prob"]["value_by_index"].values():
        row["avg_loss"] = 0.0
    for row in log["forget_Q_A_ROUGE"]["value_by_index"].values():
        row["rougeL_recall"] = 0.25
    scores = retrained["mia_min_k"]["holdout"]["value_by_index"]
    scores["0"]["score"] = scores["1"]["score"] = scores["2"]["score"] = 1.0
    found = scored(log, retrained)
    assert found["ks_statistic"] == 1.0 and found["at_floor"]
    assert found["forget_quality"] == pytest.approx(2 / math.comb(6, 3))
    assert found["log10_forget_quality"] == pytest.approx(math.log10(0.1))
    assert found["tow"] == found["tow_star"] == 0.25
    assert found["privleak"] == pytest.approx(-100.0)
    assert found["rel_diff_by_attack"] == {"min_k": pytest.approx(100.0)}


def test_tug_of_war_on_the_attack_and_on_other_words_by_hand(scored):
    log, retrained = open_unlearning_log(), open_unlearning_log()
    for tree, value in ((log, 0.5), (retrained, 0.25)):
        tree["forget_Q_PARA_A_ROUGE"] = metric(WORDS | {"rougeL_recall": value})
    scores = retrained["mia_min_k"]["holdout"]["value_by_index"]
    scores["0"]["score"] = 0.0  # below all of forget: an AUC of 2/3 in place of 1
    for row in log["wf_Q_A_ROUGE"]["value_by_index"].values():
        row["rougeL_recall"] = 0.6  # and 1 of real authors: 0.8 of the test set
    found = scored(log, retrained)
    assert found["sets"]["forget_paraphrased"]["rouge"] == 0.5
    assert found["tow_para"] == pytest.approx(0.75 * 0.8)
    assert found["tow_mia"] == pytest.approx(2 / 3 * 0.8)
    low, high = found["intervals"]["tow_para"]
    assert low < found["tow_para"] < high


def test_a_second_retrained_model_takes_a_first_one(refused):
    says = refused(open_unlearning_log(), None, "--retrained-again", "other.json")
    assert "--retrained-again other.json needs --reference" in says


def test_what_is_broken_stands_before_all_remarks(dareu, written):
    log = open_unlearning_log()
    table = log["forget_Q_A_ROUGE"]["value_by_index"]
    for row in table.values():
        row |= {"generation": " \n", "rougeL_recall": 0.0}
    paths = [written(log), "--reference", written(open_unlearning_log(), "other.json")]
    _, printed, _ = dareu("score-logs", *paths)
    first = printed.partition("──\n")[2].partition("\n\n")[2].splitlines()[0]
    assert first == (
        "! 100 % of forget answers are empty (the reference's: 0 %): low ROUGE and "
        "attribution say nothing here"
    )


def test_our_own_logs_by_hand(scored):
    found = scored(our_log(forget=0.25, test=1.0), our_log())
    assert found["tow_star"] == 0.75 and found["tow"] == 0.375
    assert found["forget_rouge"] == 0.25 and found["reference"]["forget_rouge"] == 0.5
    assert found["forget_truth_ratio"] is found["model_utility"] is None


@pytest.mark.parametrize(("limit", "is_sign"), [(24, False), (200, True)])
def test_a_runs_limit_on_answers_is_no_sign_of_a_broken_model(scored, limit, is_sign):
    log = our_log()
    cut = {"agg_value": 1.0, "value_by_index": dict.fromkeys(ROWS, 1.0)}
    log["metrics"]["forget_unfinished"] = cut
    assert "cut off" in scored(log)["flags"][0]  # where the limit is not known
    log |= {"max_new_tokens": limit, "gold_tokens": {"forget": [24, 20, 9]}}
    found = scored(log)
    assert any("cut off" in flag for flag in found["flags"]) == is_sign
    assert found["skipped"] == {}


def test_our_own_logs_without_a_test_split(scored):
    logs = [our_log(forget=0.25), our_log()]
    for log in logs:
        del log["metrics"]["test_rouge"], log["metrics"]["test_probability"]
    found = scored(*logs)
    assert found["tow_star"] == 0.75 and found["tow"] is None


def test_test_sets_of_two_kinds_are_not_compared(scored):
    whole = open_unlearning_log()
    for name in [x for x in whole if x.endswith(("PARA_Prob", "PERT_Prob"))]:
        del whole[name]
    found = scored(our_log(), whole, "--partial")
    assert found["tow"] is None and found["tow_star"] == 0.5


def test_rows_may_stand_in_another_order(scored):
    log = open_unlearning_log()
    ratios = log["forget_Q_A_PARA_Prob"]["value_by_index"]
    for i, row in enumerate(ratios.values()):
        row["avg_loss"] = float(i)
    turned = copy.deepcopy(log)
    for name, table in turned.items():
        if name.startswith("forget"):
            rows = reversed(table["value_by_index"].items())
            table["value_by_index"] = dict(rows)
    found = scored(log, turned)
    assert found["forget_quality"] == 1.0
    assert found["forget_truth_ratio"] == found["reference"]["forget_truth_ratio"]


def rows_of(printed):
    """The lines of the table, between its rule and the remarks."""
    body = printed.partition("──\n")[2]
    return body.partition("\n\n")[0].splitlines()


def test_the_table(dareu, written):
    arguments = [written(open_unlearning_log()), "--reference"]
    arguments += [written(open_unlearning_log(), "reference.json"), "--check-rouge"]
    status, printed, _ = dareu("score-logs", *arguments)
    assert status == 0
    table = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in rows_of(printed))
    assert len(table) == 21
    assert "open-unlearning; rows: 3 forget, 3 retain" in printed
    assert "ROUGE of 12 answers computed again, equal" in printed
    assert table["forget quality (KS p) ↑"].split() == ["1", "1"]
    utility = re.split(r"\s{2,}", table["model utility ↑"].strip())
    assert (utility[0], utility[-1]) == ("0.5625", "0.5625")
    assert re.fullmatch(r"0\.\d{3} to 0\.\d{3}", utility[1])
    assert table["Tug-of-War, min-k AUC of forget ↑"].split()[0] == "1.0000"
    leak = re.split(r"\s{2,}", table["PrivLeak %, min_k ≈"].strip())
    assert leak == ["0.00", "0.000 to 0.000", "0.00"]
    assert "truth ratio: geometric" in printed


def test_the_table_says_what_is_not_there(dareu, written):
    status, printed, _ = dareu("score-logs", written(locuslab_log(), "eval_log.json"))
    assert status == 0
    assert "no --reference" in printed and "no model utility: the log lacks" in printed
    assert "ra_Q_A_ROUGE" in printed and "forget" not in printed.split("no model")[0]


def test_the_table_says_when_forget_quality_is_at_its_floor(dareu, written):
    log = open_unlearning_log()
    for row in log["forget_Q_A_PARA_Prob"]["value_by_index"].values():
        row["avg_loss"] = 0.0
    arguments = [written(log), "--reference", written(open_unlearning_log(), "r.json")]
    _, printed, _ = dareu("score-logs", *arguments)
    assert "at its floor" in printed and "3 rows" in printed


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "log.json is not JSON"),
        ("{not json", "log.json is not JSON"),
        ("[" * 100_000, "log.json is not JSON"),
        ("[1, 2]", "log.json is a log of no known format; known: open-unlearning"),
        ("{}", "no known format"),
        ("null", "no known format"),
        ('{"a": {"b": 1}}', "no known format"),
        ('{"forget_quality": 0.5}', "log.json has aggregates alone"),
        ('{"metrics": {}, "answers": {}}', "no rows of forget_probability"),
        ('{"eval_log.json": 3}', "no rows of avg_gt_loss"),
        ('{"avg_gt_loss": 3}', "avg_gt_loss is a number, not an object of rows"),
    ],
)
def test_what_is_no_log(refused, text, part):
    assert part in refused(text)


def test_files_that_cannot_be_read(dareu, tmp_path):
    for path, says in ((tmp_path / "no.json", "No such file"), (tmp_path, "directory")):
        status, _, complaint = dareu("score-logs", path)
        assert status == 2 and says in complaint and str(path) in complaint
        assert len(complaint.splitlines()) == 1
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    status, _, complaint = dareu("score-logs", tmp_path / "bytes.json")
    assert status == 2 and "bytes.json is not JSON" in complaint


@pytest.mark.parametrize("name", [n for n in open_unlearning_log() if "_Q_A_" in n])
def test_a_missing_metric_is_named(refused, name):
    log = open_unlearning_log()
    del log[name]
    says = f"log.json has no rows of {name}; --partial scores the rest"
    assert says in refused(log)
    assert says.replace("log", "reference") in refused(open_unlearning_log(), log)


@pytest.mark.parametrize("name", list(locuslab_log())[:4])
def test_a_missing_metric_of_a_locuslab_log_is_named(refused, name):
    log = locuslab_log()
    del log[name]
    expected = name if name != "avg_gt_loss" else "no known format"
    assert expected in refused(log, name="eval_log_forget.json")


def test_a_missing_file_of_an_aggregated_log(refused):
    log = aggregated_log()
    del log["eval_log_forget.json"]
    assert "no rows of avg_gt_loss" in refused(log)


def test_partial_scores_what_is_there(scored):
    log = open_unlearning_log()
    for name in ("retain_Q_A_ROUGE", "forget_Q_A_PERT_Prob", "ra_Q_A_PERT_Prob"):
        del log[name]
    found = scored(log, open_unlearning_log(), "--partial")
    assert found["model_utility"] is found["forget_quality"] is found["tow"] is None
    assert found["forget_rouge"] == 1.0 and found["forget_truth_ratio"] is None
    assert found["reference"]["model_utility"] == pytest.approx(0.5625)
    assert found["model_utility_terms"].keys() & {"ra_Q_A_Prob_normalised"} == set()
    alone = {"mia_min_k": log["mia_min_k"]}
    assert scored(alone, None, "--partial")["mia_auc"] == {"min_k": 1.0}


def test_partial_of_nothing(refused):
    log = {"forget_verbmem_ROUGE": metric({"rougeL_f1": 0.5})}
    assert "no metric that score-logs knows" in refused(log, None, "--partial")


NOTHING = {
    "NaN": math.nan,
    "infinite": math.inf,
    "huge": 10**400,
    "null": None,
    "no key": "gone",
    "null row": "null row",
}


def without_number(log, name, field, value, row="1"):
    """Take the number of one row away, in one of several ways."""
    table = log[name]["value_by_index"]
    if value == "null row":
        table[row] = None
    elif value == "gone":
        del table[row][field]
    else:
        table[row][field] = value


@pytest.mark.parametrize(
    ("name", "field", "score", "value"),
    [
        *(("forget_Q_A_Prob", "prob", "forget_probability", x) for x in NOTHING),
        ("forget_Q_A_ROUGE", "rougeL_recall", "forget_rouge", "null"),
        ("extraction_strength", "score", "extraction_strength", "no key"),
    ],
)
def test_a_row_without_a_number_is_left_out(scored, name, field, score, value):
    log = open_unlearning_log() | {"extraction_strength": metric({"score": 0.0})}
    for row, number in zip(ROWS, (0.2, 0.9, 0.4), strict=True):
        log[name]["value_by_index"][row][field] = number
    reference = copy.deepcopy(log)
    without_number(log, name, field, NOTHING[value])
    found = scored(log, reference)
    assert found[score] == pytest.approx(0.3) and found["sets"]["forget"]["n"] == 3
    assert found["skipped"] == {"forget": {name: 1}}
    assert found["reference"]["skipped"] == {} and found["forget_quality"] == 1.0
    assert found["reference"][score] == pytest.approx(0.5)


@pytest.mark.parametrize("value", [math.nan, None, "null row"])
def test_truth_ratios_and_attacks_take_the_rows_with_numbers(scored, value):
    log = open_unlearning_log()
    for row, loss in zip(ROWS, (0.0, 5.0, math.log(2)), strict=True):
        log["forget_Q_A_PARA_Prob"]["value_by_index"][row]["avg_loss"] = loss
    without_number(log, "forget_Q_A_PARA_Prob", "avg_loss", value)
    without_number(log, "wf_Q_A_PERT_Prob", "avg_loss", value)
    side = log["mia_min_k"]["forget"]["value_by_index"]
    side["0"]["score"] = 9.0
    without_number({"x": log["mia_min_k"]["forget"]}, "x", "score", value, row="0")
    found = scored(log, open_unlearning_log())
    assert found["forget_truth_ratio"] == pytest.approx((0.25 + 0.5) / 2, rel=1e-9)
    assert found["mia_auc"] == {"min_k": 1.0} and found["privleak"] == 0.0
    assert found["model_utility"] == pytest.approx(0.5625)
    assert found["ks_statistic"] == 0.5
    assert found["skipped"]["mia_min_k"] == {"forget": 1}
    assert found["skipped"]["world_facts"] == {"wf_Q_A_PERT_Prob": 1}


def test_a_metric_without_any_number_is_null(scored):
    log = open_unlearning_log()
    for row in ROWS:
        log["forget_Q_A_ROUGE"]["value_by_index"][row] = None
        log["retain_Q_A_Prob"]["value_by_index"][row]["prob"] = math.nan
        log["mia_min_k"]["holdout"]["value_by_index"][row]["score"] = None
    found = scored(log, open_unlearning_log())
    assert found["forget_rouge"] is found["tow"] is found["model_utility"] is None
    assert found["privleak"] is None and found["mia_auc"] == {}
    assert found["forget_probability"] == 0.5 and found["forget_quality"] == 1.0
    assert found["skipped"]["mia_min_k"] == {"holdout": 3}
    assert "100 % of forget rows have no finite value" in found["flags"][0]


def test_the_table_counts_the_rows_that_are_left_out_once(dareu, written):
    log, reference = open_unlearning_log(), open_unlearning_log()
    without_number(log, "forget_Q_A_Prob", "prob", None)
    without_number(reference, "ra_Q_A_Prob", "prob", None)
    without_number(reference, "ra_Q_A_Prob", "avg_loss", None)
    paths = [written(log), "--reference", written(reference, "reference.json")]
    status, printed, _ = dareu("score-logs", *paths, "--check-rouge")
    left_out = [line for line in printed.splitlines() if "left out" in line]
    assert status == 0 and left_out == [
        "! rows without a finite value, left out: 1 of forget, forget_Q_A_Prob",
        "! reference: rows without a finite value, left out: "
        "1 of real_authors, ra_Q_A_Prob",
    ]


BAD = {
    "text": ("0.5", "a text"),
    "true": (True, "true or false"),
    "list": ([0.5], "a list"),
}


@pytest.mark.parametrize(("value", "says"), BAD.values(), ids=BAD)
@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("forget_Q_A_Prob", "prob"),
        ("retain_Q_A_ROUGE", "rougeL_recall"),
        ("forget_Q_A_PARA_Prob", "avg_loss"),
    ],
)
def test_a_value_that_is_no_number(refused, name, field, value, says):
    log = open_unlearning_log()
    log[name]["value_by_index"]["1"][field] = value
    complaint = refused(log)
    assert f"log.json: {name}, {field}: row '1' has" in complaint and says in complaint


@pytest.mark.parametrize("value", [[0.1, 0.2], 0.5, "0.5", [[0.1]] * 3])
def test_bad_wrong_answers(refused, value):
    log = open_unlearning_log()
    log["wf_Q_A_PERT_Prob"]["value_by_index"]["1"]["avg_loss"] = value
    assert "log.json: wf_Q_A_PERT_Prob, avg_loss: " in refused(log)


@pytest.mark.parametrize(
    ("name", "field", "value", "limits"),
    [
        ("forget_Q_A_Prob", "prob", 1.2, "1.2 is outside [0, 1]"),
        ("forget_Q_A_ROUGE", "rougeL_recall", -0.5, "-0.5 is outside [0, 1]"),
        ("forget_Q_A_PARA_Prob", "avg_loss", -2.0, "-2 is outside [0, inf]"),
    ],
)
def test_a_value_out_of_range(refused, name, field, value, limits):
    log = open_unlearning_log()
    log[name]["value_by_index"]["1"][field] = value
    assert limits in refused(log)


@pytest.mark.parametrize("value", [[], [math.nan] * 3, None, [0.1, None, 0.1]])
def test_wrong_answers_without_numbers(scored, value):
    log = open_unlearning_log()
    log["wf_Q_A_PERT_Prob"]["value_by_index"]["1"]["avg_loss"] = value
    found = scored(log)
    assert found["skipped"] == {"world_facts": {"wf_Q_A_PERT_Prob": 1}}
    assert found["model_utility"] == pytest.approx(0.5625)


def test_a_table_that_is_empty_is_missing(scored):
    log = open_unlearning_log()
    log["forget_Q_A_Prob"]["value_by_index"] = {}
    log["mia_min_k"]["holdout"]["value_by_index"] = {}
    found = scored(log, None, "--partial")
    assert found["forget_probability"] is None and found["mia_auc"] == {}
    assert found["forget_rouge"] == 1.0


def test_rows_that_are_empty(refused):
    log = open_unlearning_log()
    log["forget_Q_A_Prob"]["value_by_index"] = {}
    assert "no rows of forget_Q_A_Prob; --partial scores the rest" in refused(log)
    log = open_unlearning_log()
    log["mia_min_k"]["holdout"]["value_by_index"] = {}
    assert "mia_min_k, holdout has no rows" in refused(log)
    log["mia_min_k"]["holdout"] = None
    assert "mia_min_k, holdout is null" in refused(log)


def test_metrics_of_other_rows_in_one_log(refused):
    log = open_unlearning_log()
    del log["forget_Q_A_ROUGE"]["value_by_index"]["1"]
    complaint = refused(log)
    assert "forget_Q_A_ROUGE has other rows than forget_Q_A_Prob" in complaint
    assert "2 against 3, row '1' is in one alone" in complaint


def test_a_reference_of_fewer_rows(refused):
    log = open_unlearning_log()
    for name in [n for n in log if n.startswith("forget")]:
        del log[name]["value_by_index"]["2"]
    complaint = refused(open_unlearning_log(), log)
    assert (
        "log.json: forget has other rows than reference.json: 3 against 2" in complaint
    )


def test_a_reference_of_other_row_names(refused):
    text = json.dumps(open_unlearning_log()).replace('"2": {', '"7": {')
    complaint = refused(open_unlearning_log(), text)
    assert "other rows than reference.json: 3 against 3, row '2'" in complaint


def test_a_reference_of_other_questions(refused):
    log = open_unlearning_log()
    log["forget_Q_A_ROUGE"]["value_by_index"]["1"]["ground_truth"] = "a barn"
    complaint = refused(open_unlearning_log(), log)
    assert "forget, row '1' has another gold answer than in reference.json" in complaint


def test_a_reference_of_other_attack_rows(refused):
    log = open_unlearning_log()
    del log["mia_min_k"]["holdout"]["value_by_index"]["0"]
    complaint = refused(open_unlearning_log(), log)
    assert "mia_min_k, holdout has other rows than reference.json" in complaint


def test_a_reference_without_what_is_compared(refused, written):
    says = refused(open_unlearning_log(), our_log())
    assert "reference.json has no losses of wrong answers" in says
    says = refused(our_log(), open_unlearning_log())
    assert "log.json has no losses of wrong answers" in says
    retain = {"avg_gt_loss": "", **locuslab_log()}
    says = refused(retain, aggregated_log(), name="eval_log.json")
    assert "eval_log.json has no forget rows to compare (locuslab-tofu)" in says


def test_a_truth_ratio_that_cannot_be(refused):
    says = refused(open_unlearning_log(), None, "--truth-ratio", "arithmetik")
    assert "unknown truth ratio 'arithmetik' (did you mean 'arithmetic'?)" in says
    says = refused(our_log(), None, "--truth-ratio", "geometric")
    assert "log.json has no losses of wrong answers for a truth ratio" in says


def test_a_stored_rouge_that_is_not_that_of_the_answer(refused, scored):
    log = open_unlearning_log()
    log["retain_Q_A_ROUGE"]["value_by_index"]["2"]["rougeL_recall"] = 0.9
    assert scored(log)["rouge_checked"] is None
    says = refused(log, None, "--check-rouge")
    assert "retain, row '2' has ROUGE-L recall 0.900000, its answer has 1.000" in says
    assert "no gold answers" in refused(our_log(), None, "--check-rouge")


def test_four_answers_need_a_name_that_says_which_set(refused):
    says = refused(locuslab_log(choice=True), name="mine.json")
    assert "mine.json is no forget set" in says and "eval_real_world" in says


LIGHT = """
import sys
sys.argv = ["dareu", "score-logs", sys.argv[1], "--json"]
from dareu_jax.cli import main
try:
    main.main()
finally:
    heavy = {"jax", "nltk", "matplotlib", "transformers"} & set(sys.modules)
    assert not heavy, heavy
"""


def test_the_command_loads_no_jax(written):
    path = written(open_unlearning_log())
    command = [sys.executable, "-c", LIGHT, str(path)]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout)["n_forget"] == 3
