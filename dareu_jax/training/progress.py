"""Progress of a run: bars on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

Advance = Callable[[int, str], None]
PLAIN_EVERY_S = 15.0


class Progress:
    """Shows how far each stage is, on a console or nowhere; a terminal gets bars."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(quiet=True)

    def say(self, line: str) -> None:
        """Print one plain line."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Yield ``advance(done, text)`` for a stage of ``total`` steps."""
        if self.console.is_terminal:
            yield from self._bar(title, total, done)
        else:
            yield from self._lines(title, total, done)

    def _bar(self, title: str, total: int, done: int) -> Iterator[Advance]:
        name, text = "{task.description:<28}", "{task.fields[text]}"
        columns = name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text
        with Bars(*columns, console=self.console) as bars:
            task = bars.add_task(title, total=total, completed=done, text="")
            yield lambda at, text: bars.update(task, completed=at, text=text)

    def _lines(self, title: str, total: int, done: int) -> Iterator[Advance]:
        begun = shown = time.monotonic()
        last = ""

        def advance(at: int, text: str) -> None:
            nonlocal shown, last
            last = text
            if at < total and time.monotonic() - shown > PLAIN_EVERY_S:
                shown = time.monotonic()
                self.say(f"{title}: {at}/{total} {text}")

        yield advance
        self.say(f"{title}: done in {time.monotonic() - begun:.1f} s {last}".rstrip())
