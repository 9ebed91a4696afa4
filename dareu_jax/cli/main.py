"""Run the command line; bad input ends with its message and a status."""

import os
import sys
import warnings
from collections.abc import Callable

from dareu_jax.cli.app import app
from dareu_jax.errors import Caution, Preempted, ProcessLost, UserError


def told(category: type[Warning], message: object, elsewhere: str) -> str:
    """Return the line of a warning: ours without its place in the program."""
    return f"dareu: {message}\n" if issubclass(category, Caution) else elsewhere


def main(command: Callable[[], None] = app) -> None:
    """Runs the command line; bad input ends with its message and status 2."""
    plain = warnings.formatwarning
    warnings.formatwarning = lambda message, category, *where, **more: told(
        category, message, plain(message, category, *where, **more)
    )
    try:
        command()
    except Preempted as news:
        print(f"dareu: SIGTERM: {news}; the same command continues", file=sys.stderr)
    except ProcessLost as error:
        print(f"dareu: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(error.status)  # an ordinary exit would wait for who is gone
    except UserError as error:
        print(f"dareu: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        print(f"dareu: {error.strerror or error}{name}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dareu: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
