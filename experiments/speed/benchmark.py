"""Speed of prefix scoring, generation and import.

python experiments/speed/benchmark.py
Prints one JSON object; medians of five runs after a warm-up.
"""

import json
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax.attribution import Setup, make_classifier
from dareu_jax.config import AttributionConfig, ClassifierConfig, ModelConfig
from dareu_jax.data import TokenBatch
from dareu_jax.models import (
    Decoder,
    decoder_config,
    generate,
    hidden_states,
    init_decoder,
    logits_of,
)

B, P, T, V, KAPPA, OWNERS = 32, 32, 64, 1024, 4, 10


def median_s(f, n=5):
    jax.block_until_ready(f())
    times = []
    for _ in range(n):
        begun = time.perf_counter()
        jax.block_until_ready(f())
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def queries(key):
    tokens = jax.random.randint(key, (B, T), 3, V)
    yes = jnp.ones((B, T), bool)
    return TokenBatch(tokens, yes, tokens, yes, jnp.arange(B, dtype=jnp.int32))


def prefix_scoring():
    """DA of every kappa-prefix: one forward against one call per prefix."""
    cfg = ClassifierConfig()
    backbone = Decoder(decoder_config(cfg.model, V))
    setup = Setup(
        model=backbone,
        owners=OWNERS,
        cfg=AttributionConfig(),
        classifier=cfg,
        steps=1,
        backbone=backbone,
    )
    kernel = make_classifier(setup)
    acc = kernel.init(None, key=jax.random.key(0))
    head = acc.params["owner_head"]
    noise = 0.3 * jax.random.normal(jax.random.key(1), head["kernel"].shape)
    index = {**acc.params, "owner_head": {**head, "kernel": noise}}
    batch = queries(jax.random.key(2))
    once = jax.jit(lambda index, q: kernel.prefix_score(None, index, q))
    each = jax.jit(lambda index, q: kernel.score(None, index, q))
    ends = range(KAPPA, T + 1, KAPPA)

    def cut(n):
        return batch._replace(
            response=batch.response[:, :n], response_mask=batch.response_mask[:, :n]
        )

    def padded(n):
        mask = batch.response_mask & (jnp.arange(T) < n)
        return batch._replace(response_mask=mask)

    cuts, pads = [cut(n) for n in ends], [padded(n) for n in ends]
    one = once(index, batch)[:, KAPPA - 1 :: KAPPA]
    many = jnp.stack([each(index, q) for q in cuts], axis=1)
    one_s = median_s(lambda: once(index, batch))
    cut_s = median_s(lambda: [each(index, q) for q in cuts])
    pad_s = median_s(lambda: [each(index, q) for q in pads])
    return {
        "max_abs_difference": float(jnp.max(jnp.abs(one - many))),
        "one_pass_s": one_s,
        "call_per_prefix_s": cut_s,
        "call_per_padded_prefix_s": pad_s,
        "times_faster": cut_s / one_s,
        "times_faster_than_padded": pad_s / one_s,
    }


def generation():
    """Greedy decoding of the quickstart model with and without a cache."""
    model = Decoder(decoder_config(ModelConfig(), V))
    params = init_decoder(model, key=jax.random.key(0))
    prompt = jax.random.randint(jax.random.key(1), (B, P), 3, V)
    seen = jnp.ones((B, P), bool)

    def cached():
        return generate(
            model,
            params,
            prompt,
            seen,
            max_new_tokens=T,
            temperature=0.0,
            stop_ids=(V - 1,),
            key=jax.random.key(2),
        ).tokens

    @jax.jit
    def plain(params, prompt):
        tokens = jnp.zeros((B, P + T), jnp.int32).at[:, :P].set(prompt)

        def body(i, tokens):
            mask = jnp.broadcast_to(jnp.arange(P + T) < i, (B, P + T))
            hidden = hidden_states(model, params, tokens, mask)
            logits = logits_of(model, params, hidden[:, i - 1])
            best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return tokens.at[:, i].set(best)

        return jax.lax.fori_loop(P, P + T, body, tokens)[:, P:]

    same = bool(jnp.all(cached() == plain(params, prompt)))
    cached_s, plain_s = median_s(cached), median_s(lambda: plain(params, prompt))
    return {
        "same_tokens": same,
        "with_cache_s": cached_s,
        "without_cache_s": plain_s,
        "times_faster": plain_s / cached_s,
        "tokens_per_s": B * T / cached_s,
    }


def import_time():
    """Seconds of ``import dareu_jax`` in a fresh interpreter, best of five."""
    code = "import time as t; a = t.time(); import dareu_jax; print(t.time() - a)"
    runs = [
        float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5)
    ]
    return min(runs)


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "device": jax.devices()[0].device_kind,
                "prefix_scoring": prefix_scoring(),
                "generation": generation(),
                "import_s": import_time(),
            },
            indent=1,
        )
    )
