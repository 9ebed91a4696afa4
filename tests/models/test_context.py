"""Texts that are longer than a model was made for are told, once, in every command."""

import sys
import warnings

import numpy as np
import pytest

from dareu_jax.cli import main
from dareu_jax.data import TokenBatch
from dareu_jax.errors import Caution
from dareu_jax.models.context import lengths_of, warn_beyond


def test_texts_beyond_the_context_are_counted():
    with pytest.warns(
        Caution, match="2 of 4 texts are longer than the 8 tokens"
    ) as said:
        warn_beyond(8, np.asarray([8, 9, 1, 30]))
    assert len(said) == 1 and "the longest has 30" in str(said[0].message)


@pytest.mark.parametrize(("context", "lengths"), [(8, [8, 7]), (None, [9]), (8, [])])
def test_texts_that_fit_are_passed_in_silence(context, lengths, recwarn):
    warn_beyond(context, lengths)
    assert not recwarn.list


def test_padding_does_not_count():
    real = np.asarray([[False, True], [True, True]])
    tokens = TokenBatch(real, real, real, real, np.arange(2))
    assert lengths_of(tokens) == [2, 4]


def test_the_command_line_tells_it_once_in_a_line_of_its_own(monkeypatch, capsys):
    def show(message, category, filename, line, file=None, text=None):
        print(
            warnings.formatwarning(message, category, filename, line), file=sys.stderr
        )

    def command():
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = show
            for _ in range(2):
                warn_beyond(8, [9])
            warnings.warn("of another program", UserWarning, stacklevel=1)

    monkeypatch.setattr(sys, "argv", ["dareu"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    main.main(command)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("dareu: 1 of 1 texts are longer than the 8 tokens")
    assert "UserWarning: of another program" in "".join(lines[1:])
    assert "longer" not in "".join(lines[1:])
