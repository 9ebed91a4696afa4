"""Sampling: what do many answers at a temperature give away that one does not?"""

import math
from typing import Any

import numpy as np

from dareu_jax.audits.stress.context import Context, means, outcome, stress_test
from dareu_jax.evaluation.metrics.rouge import rouge_l_recall
from dareu_jax.evaluation.run_suite import in_batches
from dareu_jax.models.decode import answering, texts_of
from dareu_jax.models.sampler import Sampling
from dareu_jax.parallel import key_of, shared_out

MORE = "asking often enough brings out what a model that never saw the records lacks"


def expected_maximum(values: np.ndarray, k: int) -> np.ndarray:
    """E max of k of the n samples, drawn without putting back, ``[..]`` of ``[.., n]``.

    sum_i x_(i) C(i - 1, k - 1) / C(n, k) over the ordered samples: unbiased for the
    maximum of k fresh ones (leak@k).
    """
    n = values.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"the maximum of {k} of {n} samples")
    weights = [math.comb(i, k - 1) / math.comb(n, k) for i in range(n)]
    return np.sort(values, axis=-1) @ np.asarray(weights)


def draws(samples: int) -> list[int]:
    """1, 2, 4, 8, ... up to ``samples``."""
    return [2**n for n in range(samples.bit_length())]


@stress_test(
    "sample", "the best of k sampled answers, leak@k", reads=("samples", "temperature")
)
def sample(context: Context) -> dict[str, Any]:
    """Expected best ROUGE recall of k answers, at T = 1 and ``stress.temperature``."""
    cfg, ks = context.cfg, draws(context.cfg.samples)
    curves: dict[str, Any] = {}
    leaks: dict[tuple[float, int], dict[str, list[float]]] = {}
    for temperature in dict.fromkeys((1.0, cfg.temperature)):
        curve: dict[str, list[float]] = {}
        for role in context.models:
            scores = sampled_rouge(context, role, temperature)
            for k in ks:
                own = expected_maximum(scores, k).tolist()
                leaks.setdefault((temperature, k), {})[role] = own
            curve[role] = [means(leaks[temperature, k])[role] for k in ks]
        curves[f"{temperature:g}"] = curve
    head = (1.0, ks[-1])
    greedy = {
        role: rouge_l_recall(context.greedy(role).text, context.suite.gold["forget"])
        for role in context.models
    }
    parts = {"ROUGE of the greedy answer": greedy} | {
        f"leak@{k}, T = {t:g}": own
        for (t, k), own in leaks.items()
        if k in (1, ks[-1]) and (t, k) != head
    }
    measure = f"leak@{ks[-1]}, T = 1"
    return outcome(measure, leaks[head], MORE, parts=parts, k=ks, curves=curves)


def sampled_rouge(context: Context, role: str, temperature: float) -> np.ndarray:
    """ROUGE recall of ``stress.samples`` answers to each forget prompt, ``[N, n]``.

    Every model draws with the same keys.
    """
    suite, run, samples = context.suite, context.run, context.cfg.samples
    there = suite.layouts.params(context.models[role])
    how = Sampling(suite.tokenizer.stop_ids, temperature)
    columns = []
    with run.progress.stage(
        f"sample at T = {temperature:g}: {role}", samples
    ) as advance:
        for number in range(samples):
            decode = answering(
                suite.model,
                there,
                how,
                suite.max_new_tokens,
                layouts=suite.layouts,
                key=key_of(run.inputs.key("stress/sample"), number),
            )
            texts = texts_of(suite.tokenizer, in_batches(suite, context.forget, decode))
            columns.append(shared_out(rouge_l_recall, texts, suite.gold["forget"]))
            advance(number + 1, f"ROUGE {np.mean(columns[-1]):.3f}")
    return np.asarray(columns).T
