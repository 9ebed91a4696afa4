"""Errors that end with one clear line instead of a traceback."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and what to do.

    The command line prints the message and exits with status 2.
    """


class Preempted(Exception):
    """The machine is being taken away; the message says what is saved."""


class TrainingError(UserError):
    """A stage cannot go on (a NaN loss, no disk space); names stage and step."""
