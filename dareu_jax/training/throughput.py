"""How fast each phase of a step is: tokens a second, and the share of the peak."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

PEAK_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s of one device by the beginning of its kind, from vendors."""


class Work(NamedTuple):
    """What a phase has to do: ``tokens`` that count, ``flops`` of the model or None."""

    tokens: float
    flops: float | None = None


@dataclasses.dataclass
class Lap:
    """All calls of one phase in one step: wall seconds, tokens, FLOPs."""

    seconds: float = 0.0
    tokens: float = 0.0
    flops: float | None = 0.0

    def add(self, seconds: float, work: Work) -> None:
        """Count one more call."""
        self.seconds += seconds
        self.tokens += work.tokens
        if self.flops is not None:
            self.flops = None if work.flops is None else self.flops + work.flops


def peak_flops(device: jax.Device) -> float | None:
    """Return bfloat16 FLOP/s of a device at its peak; None: not known, as on a CPU."""
    kind = device.device_kind
    names = [name for name in PEAK_FLOPS if kind.startswith(name)]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def rates(lap: Lap, devices: int, peak: float | None) -> dict[str, float | None]:
    """Return `seconds`, `tokens_per_s` and ``mfu = FLOPs / (seconds devices peak)``.

    Model FLOPs utilisation as in PaLM (Chowdhery et al., 2022): recomputation and
    padding count as time, not as work.
    """
    mfu = None
    if peak is not None and lap.flops is not None:
        mfu = lap.flops / (lap.seconds * devices * peak)
    per_s = lap.tokens / lap.seconds
    return {"seconds": lap.seconds, "tokens_per_s": per_s, "mfu": mfu}


class Stopwatch:
    """Times the phases of those steps that it is told to; else it is not there.

    A phase that is timed is waited for, before and after.
    """

    def __init__(self) -> None:
        self._laps: dict[str, Lap] | None = None

    @contextlib.contextmanager
    def timing(self, is_on: bool = True) -> Iterator[dict[str, Lap]]:
        """Give what the phases inside take, by name; nothing where it is not on."""
        laps: dict[str, Lap] = {}
        self._laps = laps if is_on else None
        try:
            yield laps
        finally:
            self._laps = None

    def timed(
        self, name: str, phase: Callable[..., Any], work: Callable[..., Work]
    ) -> Callable[..., Any]:
        """Return ``phase``, timed; ``work(result, *args, **kwargs)``: what it did."""

        @functools.wraps(phase)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._laps is None:
                return phase(*args, **kwargs)
            jax.block_until_ready((args, kwargs))
            begun = time.perf_counter()
            result = jax.block_until_ready(phase(*args, **kwargs))
            seconds = time.perf_counter() - begun
            with jax.transfer_guard("allow"):
                done = work(result, *args, **kwargs)
            self._laps.setdefault(name, Lap()).add(seconds, done)
            return result

        return run
