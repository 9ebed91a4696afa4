"""Progress of a run: bars on a terminal, plain lines elsewhere."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TimeElapsedColumn
from rich.progress import Progress as Bars

T = TypeVar("T")
Advance = Callable[[int, str], None]
"""``(done, text)``: how many steps of a stage are done, and what to show beside."""
PLAIN_EVERY_S = 20.0
"""Seconds between plain lines: under 30, however busy the machine is."""


@dataclasses.dataclass
class Way:
    """How far a stage is; times are in seconds of one clock.

    Attributes:
      title, total: what is done, in how many steps; begun: when.
      at: how many are done; text: what is shown beside; latest: when that was said.
      first: steps and time at the end of the first step, which compiles.
    """

    title: str
    total: int
    begun: float
    at: int
    text: str = ""
    latest: float = 0.0
    first: tuple[int, float] | None = None

    def advance(self, at: int, text: str, now: float) -> None:
        """Take down that ``at`` steps are done."""
        self.at, self.text, self.latest = min(at, self.total), text, now
        self.first = self.first or (self.at, now)

    def left_s(self, now: float) -> float | None:
        """Return the seconds that are left at the pace since the first step.

        None: no step was done since then.
        """
        if self.first is None or self.at <= self.first[0]:
            return None
        pace = (self.latest - self.first[1]) / (self.at - self.first[0])
        return max(0.0, pace * (self.total - self.at) - (now - self.latest))

    def line(self, now: float) -> str:
        """Return how far it is, in words."""
        left, since = self.left_s(now), seconds(now - self.begun)
        parts = [] if self.total == 1 else [f"{self.at}/{self.total}"]
        parts += [f"{since} so far" if left is None else f"{seconds(left)} left"]
        parts += [self.text] if self.text else []
        return f"{self.title}: {', '.join(parts)}"


def seconds(count: float) -> str:
    """Return a time in hours, minutes or seconds."""
    if count >= 7200.0:
        return f"{count / 3600.0:.1f} h"
    return f"{count / 60.0:.0f} min" if count >= 120.0 else f"{count:.0f} s"


class Progress:
    """Shows how far each stage is, on a console or nowhere; a terminal gets bars.

    Elsewhere a line is printed every `PLAIN_EVERY_S` seconds, whatever the stage does
    meanwhile. A stage inside another is shown beside it.
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.console, self.clock = console or Console(quiet=True), clock
        self._ways: list[Way] = []
        self._bars: Bars | None = None

    def say(self, line: str) -> None:
        """Print one plain line."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Yield ``advance(done, text)`` for a stage of ``total`` steps."""
        way = Way(title, total, self.clock(), done)
        is_inside = bool(self._ways)
        self._ways.append(way)
        try:
            with contextlib.ExitStack() as shown:
                if not is_inside:
                    shown.enter_context(self._shown())
                yield shown.enter_context(self._advancing(way))
        finally:
            self._ways.remove(way)
        if not self.console.is_terminal:
            took = f"{title}: done in {self.clock() - way.begun:.1f} s {way.text}"
            self.say(took.rstrip())

    def tick(self) -> None:
        """Print one line about the stages that are under way."""
        if ways := tuple(self._ways):
            now = self.clock()
            self.say("; ".join(way.line(now) for way in ways))

    def tell(self) -> None:
        """Print that line now, where no bars show it."""
        if not self.console.is_terminal:
            self.tick()

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        """Show what is under way: in bars, in a line now and then, or not at all."""
        if self.console.is_terminal:
            name, text = "{task.description:<28}", "{task.fields[text]}"
            columns = name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text
            with Bars(*columns, console=self.console) as self._bars:
                yield
        elif self.console.quiet:
            yield
        else:
            with ticking(self.tick):
                yield

    @contextlib.contextmanager
    def _advancing(self, way: Way) -> Iterator[Advance]:
        """Yield what a stage says how far it is by."""
        bars, bar = self._bars if self.console.is_terminal else None, TaskID(0)
        if bars is not None:
            bar = bars.add_task(way.title, total=way.total, completed=way.at, text="")

        def advance(at: int, text: str) -> None:
            now = self.clock()
            way.advance(at, text, now)
            if bars is not None:
                left = way.left_s(now)
                beside = "" if left is None else f"{seconds(left)} left "
                bars.update(bar, completed=way.at, text=beside + text)

        yield advance
        if bars is not None and len(self._ways) > 1:
            bars.remove_task(bar)


@contextlib.contextmanager
def ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Call ``tick`` every `PLAIN_EVERY_S` seconds beside the work inside."""
    ended = threading.Event()

    def ticks() -> None:
        while not ended.wait(PLAIN_EVERY_S):
            tick()

    beside = threading.Thread(target=ticks, daemon=True)
    beside.start()
    try:
        yield
    finally:
        ended.set()
        beside.join()


def counter(advance: Advance) -> Callable[[int], None]:
    """Return a function that is told how many more steps are done."""
    done = 0

    def more(steps: int) -> None:
        nonlocal done
        done += steps
        advance(done, "")

    return more


def counting(score: Callable[..., T], more: Callable[[int], None]) -> Callable[..., T]:
    """Return ``score`` of a batch, which tells ``more`` how many rows it had."""

    def counted(batch: Any) -> T:
        values = score(batch)
        more(len(batch.index))
        return values

    return counted
