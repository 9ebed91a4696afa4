"""Errors that end with one clear line instead of a traceback."""

import difflib
from collections.abc import Iterator


class UserError(Exception):
    """Bad input (exit status 2); the message says what, where, and what to do."""


class Caution(UserWarning):
    """What a user should know of a result that is right; says what, where, and more."""


class Preempted(Exception):
    """The machine is being taken away; the message says what is saved."""


class ProcessLost(Exception):
    """Another process of the run is gone (exit status 1)."""

    status = 1


class ProcessAbsent(ProcessLost):
    """Another process of the run has never come (exit status 2)."""

    status = 2


class TrainingError(UserError):
    """A stage cannot go on (a NaN loss, no disk space); names stage and step."""


def first_line(error: BaseException) -> str:
    """What an error says, without what follows its first line."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def did_you_mean(name: str, known: Iterator[str] | dict | tuple | list) -> str:
    """Return ``" (did you mean 'x'?)"`` or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
