"""Tables and answers as a terminal and as a file show them."""

import io

import pytest
from rich.console import Console

from dareu_jax.reporting.table import print_answers, print_results, results_table


def printed(draw, **options):
    file = io.StringIO()
    draw(Console(file=file, **options))
    return file.getvalue()


def terminal(width):
    return {"force_terminal": True, "width": width, "color_system": None}


def test_several_seeds_show_the_spread_and_one_does_not(make_results):
    three = printed(lambda c: print_results(c, make_results(3)))
    one = printed(lambda c: print_results(c, make_results(1)))
    assert "0.510±0.010" in three and "over 3 seeds" in three
    assert "±" not in one and "one seed" in one


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off(make_results, width):
    text = printed(lambda c: print_results(c, make_results(3)), **terminal(width))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for part in ("ROUGE ≈", "ROUGE ↑", "(unseen) ↓", "loglik ↑", "per answer ≈"):
        assert part in text


def test_a_narrow_pipe_is_not_cut_off_either(make_results):
    text = printed(lambda c: print_results(c, make_results(3)), width=40)
    assert "…" not in text and "\x1b" not in text


def test_rows_keep_the_fixed_order(make_results):
    table = results_table(make_results(1))
    names = list(table.columns[0].cells)
    assert names == ["original", "retrained", "dareu"]
    assert len(table.columns) == 1 + 8


def test_answers_side_by_side(answers):
    text = printed(lambda c: print_answers(c, answers, n=2))
    assert "Question 1?" in text and "Question 2?" not in text
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert [line[0] for line in lines[:5]] == [
        *("1", "gold", "original", "retrained", "dareu")
    ]
    assert lines[3][1] == "(empty)"


def test_answers_are_not_markup_nor_control_codes():
    answer = {
        "prompt": "[red]Why?[/red]",
        "gold": "[/]",
        "answers": {"dareu": "\x1b[2Jgone"},
    }
    text = printed(lambda c: print_answers(c, [answer]))
    assert "[red]Why?[/red]" in text and "[/]" in text
    assert "\x1b" not in text and "\\x1b[2Jgone" in text
