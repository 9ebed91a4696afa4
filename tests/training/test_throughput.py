"""Tokens a second and the share of the peak, of those steps that are timed."""

import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dareu_jax.errors import UserError
from dareu_jax.models import (
    Decoder,
    DecoderConfig,
    abstract_params,
    forward_flops,
    hidden_states,
    logits_of,
)
from dareu_jax.training.loop import watched
from dareu_jax.training.throughput import Lap, Stopwatch, Work, peak_flops, rates

pytestmark = pytest.mark.slow


class Kind(NamedTuple):
    device_kind: str


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device(kind, peak):
    assert peak_flops(Kind(kind)) == peak


def test_rates_are_hand_computed():
    lap = Lap()
    lap.add(2.0, Work(300, 4e12))
    lap.add(2.0, Work(100, 4e12))
    assert rates(lap, devices=4, peak=10e12) == {
        "seconds": 4.0,
        "tokens_per_s": 100.0,
        "mfu": 0.05,
    }
    assert rates(lap, devices=4, peak=None)["mfu"] is None
    lap.add(1.0, Work(100))
    assert rates(lap, devices=4, peak=10e12)["mfu"] is None


def test_only_what_happens_while_it_is_on_is_timed():
    def wait(seconds):
        time.sleep(seconds)
        return seconds

    watch = Stopwatch()
    phase = watch.timed("wait", wait, lambda result, _: Work(result * 100, 1.0))
    assert phase(0.001) == 0.001
    with watch.timing() as laps:
        phase(0.02)
        phase(0.03)
    with watch.timing(is_on=False) as none:
        phase(0.001)
    assert none == {}
    assert laps["wait"].tokens == pytest.approx(5.0)
    assert 0.05 <= laps["wait"].seconds < 0.5


def test_flops_of_a_forward_pass_are_those_xla_counts():
    cfg = DecoderConfig(
        **{"vocab": 512, "layers": 1, "embed": 128, "heads": 4, "kv_heads": 2},
        **{"head_dim": 32, "ffn": 384},
    )
    model, (b, t) = Decoder(cfg), (4, 64)

    def forward(params, tokens, mask):
        return logits_of(model, params, hidden_states(model, params, tokens, mask))

    shapes = [jax.ShapeDtypeStruct((b, t), kind) for kind in (jnp.int32, bool)]
    program = jax.jit(forward).lower(abstract_params(cfg), *shapes).compile()
    found = program.cost_analysis()["flops"]
    # XLA multiplies masked scores too: twice the causal half.
    masked = b * t * 2 * cfg.heads * cfg.head_dim * t
    wanted = forward_flops(cfg, b * t, t, b * t) + masked
    assert wanted == pytest.approx(found, rel=0.05)


def test_a_step_that_copies_unasked_ends_in_a_line_that_says_where():
    step = watched(lambda state, step: (state + np.float32(1.0), {}), "method 'mine'")
    with pytest.raises(UserError) as caught:
        step(jnp.float32(1.0), 0)
    (line,) = str(caught.value).splitlines()
    here = (
        rf"^method 'mine': step copies .* at {__file__}, line \d+ \(.*Disallowed host"
    )
    assert re.search(here, line) and line.endswith("return metrics as arrays")


def test_other_errors_of_a_step_stay_as_they_are():
    def step(state, step):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        watched(step, "method 'mine'")(jnp.float32(1.0), 0)
