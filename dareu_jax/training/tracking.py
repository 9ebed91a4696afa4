"""Metrics as JSON lines and TensorBoard scalars, written by process 0 only."""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import jax

from dareu_jax.errors import UserError
from dareu_jax.storage.files import write_whole

FILE = "metrics.jsonl"
SPEEDS = "throughput.jsonl"


class Tracker:
    """Appends to `metrics.jsonl` and `tb/` of a run folder; use it in a `with`.

    ``traced``: first and last step of every stage that `profile/` gets a trace of.

    A last line torn by a kill is dropped when the file is next opened for writing.
    """

    def __init__(self, folder: Path, traced: tuple[int, int] | None = None):
        self._folder = Path(folder)
        self._traced = traced
        self._tracing = False
        self._path = self._folder / FILE
        self._file: Any = None
        self._boards: dict[tuple[str, int], Any] = {}
        self._purge: dict[tuple[str, int], int] = {}

    def log(
        self, stage: str, step: int, values: Mapping[str, SupportsFloat], seed: int
    ) -> None:
        """Write one line `{"seed", "stage", "step", **values}`; NaN becomes null."""
        if jax.process_index() != 0:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {"seed": seed, "stage": stage, "step": step}
        line |= {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        self._append(json.dumps(line) + "\n")
        board = self._board(stage, seed)
        for name, number in numbers.items():
            board.add_scalar(f"{stage}/{name}", number, step)

    def throughput(
        self,
        stage: str,
        step: int,
        phases: Mapping[str, Mapping[str, float | None]],
        seed: int,
    ) -> None:
        """Write `{"seed", "stage", "step", "phase", **rates}` for every phase.

        They have a file of their own: metrics are the same in every run, times are not.
        """
        if jax.process_index() != 0 or not phases:
            return
        head = {"seed": seed, "stage": stage, "step": step}
        board = self._board(stage, seed)
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / SPEEDS).open("a", encoding="utf-8") as file:
            for phase, numbers in phases.items():
                file.write(json.dumps({**head, "phase": phase, **numbers}) + "\n")
                for name, number in numbers.items():
                    if number is not None:
                        board.add_scalar(f"{stage}/{phase}/{name}", number, step)

    def truncate(self, stage: str, seed: int, step: int) -> None:
        """Drop what `stage` with `seed` logged after `step`; call it on resume."""
        if jax.process_index() != 0:
            return
        self.close()
        self._purge[stage, seed] = step + 1
        if self._path.exists():

            def stays(line: dict[str, Any]) -> bool:
                own = line["stage"] == stage and line["seed"] == seed
                return not own or line["step"] <= step

            _rewrite(self._path, filter(stays, read(self._folder)))

    @contextlib.contextmanager
    def step(self, stage: str, step: int, seed: int) -> Iterator[None]:
        """Name one step of a stage in a trace; begin and end the trace."""
        first, last = self._traced or (0, 0)
        if step == first and jax.process_index() == 0:
            folder = self._folder / "profile" / f"{stage}-seed{seed}"
            jax.profiler.start_trace(str(folder))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(stage, step_num=step):
            yield
        if step == last:
            self._end_trace()

    def _end_trace(self) -> None:
        if self._tracing:
            jax.effects_barrier()
            jax.profiler.stop_trace()
            self._tracing = False

    def close(self) -> None:
        """Flush and close every file; the tracker stays usable."""
        self._end_trace()
        if self._file is not None:
            self._file.close()
            self._file = None
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: str) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and not self._path.read_bytes().endswith(b"\n"):
                _rewrite(self._path, read(self._folder))
            self._file = self._path.open("a", encoding="utf-8")
        self._file.write(line)
        self._file.flush()

    def _board(self, stage: str, seed: int) -> Any:
        from tensorboardX import SummaryWriter

        if (stage, seed) not in self._boards:
            folder = self._folder / "tb" / f"{stage}-seed{seed}"
            purge = self._purge.pop((stage, seed), None)
            self._boards[stage, seed] = SummaryWriter(str(folder), purge_step=purge)
        return self._boards[stage, seed]


def read(folder: Path) -> list[dict[str, Any]]:
    """Return every line of `metrics.jsonl` in `folder`; none when there is no file.

    Raises:
      UserError: a line other than a torn last one is not JSON.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    out = []
    for number, line in enumerate(lines, start=1):
        try:
            out.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path} line {number} is not JSON: {error}") from None
    return out


def _rewrite(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
