"""Kernels against retraining: what every seed is asked, and what it answers.

For every seed: the original, its answers as queries, one retraining for every subset of
owners and for every owner left out, the scores of every kernel.
"""

import functools
import json
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dareu_jax import corpus as owned
from dareu_jax.attribution import OwnerBatch
from dareu_jax.attribution.bilinear import How, exact
from dareu_jax.attribution.in_run import step_shares
from dareu_jax.config import AttributionConfig
from dareu_jax.errors import TrainingError
from dareu_jax.evaluation import fidelity as metrics
from dareu_jax.evaluation.evaluate import greedy, mean_logp, over_records
from dareu_jax.indexing import Indexer, snapshot_folder
from dareu_jax.loop import run_stage
from dareu_jax.models import Decoder, join, response_logps, split
from dareu_jax.models.optimiser import make_schedule
from dareu_jax.pipeline import write_json
from dareu_jax.stages import Run
from dareu_jax.unlearning import TrainState

IN_RUN = "in_run_shapley"
"""The kernel that has no index: it is added up while the original is trained."""
KEPT = "original$|tail_patch$|retrained_"
"""What files of a seed are called that hold no kernel's scores."""
PATCH = 0.1
"""Length of a tail-patch step: of one Adam step at the fine-tuning's rate."""


class Outcomes(NamedTuple):
    """What retraining shows of Q queries of one seed.

    Attributes:
      owner: ``[Q]`` the column that each was asked about.
      masks: ``[M, O]`` bool, owners of each subset.
      subsets: ``[2, Q, M]`` mean log-likelihoods of the model's answers and of the
        gold ones under the subsets' models; whole: ``[Q]`` under the original.
      without: ``[Q, O]`` under the models that each lack one owner.
      gains: ``[Q, O]`` what one step on each owner's records adds.
    """

    owner: np.ndarray
    masks: np.ndarray
    subsets: np.ndarray
    whole: np.ndarray
    without: np.ndarray
    gains: np.ndarray

    @property
    def retrainings(self) -> int:
        """How many different sets of owners were trained on."""
        alone = ~np.eye(self.masks.shape[1], dtype=bool)
        return len({mask.tobytes() for mask in (*self.masks, *alone)})


class Scores(NamedTuple):
    """A kernel's scores ``[Q, O]``, and the same as probabilities."""

    raw: np.ndarray
    calibrated: np.ndarray | None


class Trial:
    """One seed of `dareu fidelity`; every part is kept on disk when it is done.

    Args:
      run: the seed, in the folder of the whole.
    """

    def __init__(self, run: Run):
        self.run = run
        self.folder = run.folder / "fidelity" / f"seed_{run.seed}"

    @functools.cached_property
    def records(self) -> tuple[owned.Record, ...]:
        """The first records of every owner, those that queries are made of."""
        limit, taken = self.run.cfg.fidelity.queries_per_owner, dict[str, int]()
        chosen = []
        for record in self.run.corpus.train:
            taken[record.owner] = taken.get(record.owner, 0) + 1
            if record.owner != owned.NOBODY and taken[record.owner] <= limit:
                chosen.append(record)
        return tuple(chosen)

    @functools.cached_property
    def queries(self) -> owned.TokenBatch:
        """The prompts with the original's own greedy answers, ``[Q, ...]``."""
        run, gold = self.run, self.run.tokens(self.records)
        width, stop_ids = gold.response.shape[1], run.tokenizer.stop_ids
        decode = greedy(run.model, run.original, stop_ids, width, layouts=run.layouts)
        rollout = self._over(gold, decode)
        return gold._replace(response=rollout.tokens, response_mask=rollout.mask)

    def _over(self, tokens: owned.TokenBatch, score: Callable) -> Any:
        size = self.run.cfg.evaluation.batch_size
        return over_records(tokens, size, self.run.place, score)

    def _kept(self, name: str, make: Callable[[], Any]) -> np.ndarray:
        """``make()`` as an array, from disk where it is there.

        Raises:
          TrainingError: a number is not finite; nothing is kept of it.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            made = np.asarray(make())
            if not np.isfinite(made).all():
                raise TrainingError(
                    f"seed {self.run.seed} {name}: a number is not finite; lower "
                    "finetune.learning_rate, or leave that kernel out"
                )
            write_json(path, made.tolist())
        return np.asarray(json.loads(path.read_text(encoding="utf-8")))

    def likelihoods(self, params: Any) -> np.ndarray:
        """Mean log-likelihood of own and of gold answers, ``[2, Q]``."""
        score = functools.partial(mean_logp, self.run.model, params)
        texts = self.queries, self.run.tokens(self.records)
        return np.stack([self._over(text, score) for text in texts])

    def retrained(self, kept: np.ndarray) -> np.ndarray:
        """`likelihoods` under a model of the owners in ``kept [O]`` and of nobody's."""
        run, names = self.run, self.run.corpus.owners
        code = int("".join("1" if k else "0" for k in kept), 2)
        stage = f"retrained_{code:x}"

        def make() -> np.ndarray:
            gone = {name for name, k in zip(names, kept, strict=True) if not k}
            rest = tuple(r for r in run.corpus.train if r.owner not in gone)
            return self.likelihoods(run.finetune(stage, rest))

        found = self._kept(stage, make)
        state = run.stage(stage, "", "").folder
        for folder in (state, snapshot_folder(state)):
            shutil.rmtree(folder, ignore_errors=True)
        return found

    def outcomes(self) -> Outcomes:
        """Every retraining, one after another."""
        run, cfg = self.run, self.run.cfg.fidelity
        names = run.corpus.owners
        masks = metrics.subsets(len(names), cfg.subsets, cfg.share)
        subsets = np.stack([self.retrained(mask) for mask in masks], axis=-1)
        alone = ~np.eye(len(names), dtype=bool)
        without = np.stack([self.retrained(mask)[0] for mask in alone], axis=-1)
        whole = self._kept("original", lambda: self.likelihoods(run.original))[0]
        owner = owned.owner_labels(self.records, names)
        gains = self._kept("tail_patch", self.gains)
        return Outcomes(
            owner=owner,
            masks=masks,
            subsets=subsets,
            whole=whole,
            without=without,
            gains=gains,
        )

    def gains(self) -> np.ndarray:
        """What one gradient step on each owner's records adds, ``[Q, O]`` nats."""
        run, columns = self.run, []
        before = self.likelihoods(run.original)[0]
        for name in run.corpus.owners:
            own = tuple(r for r in run.corpus.train if r.owner == name)
            moved = self.likelihoods(one_step(run, run.original, own))
            columns.append(moved[0] - before)
        return np.stack(columns, axis=1)

    def scores(self, label: str, name: str, options: AttributionConfig) -> Scores:
        """What a kernel says of the queries; ``label`` names it on disk."""
        if name == IN_RUN:
            in_run = functools.partial(self.in_run, label, options.reduction)
            return Scores(self._kept(label, in_run), None)

        def make() -> list[np.ndarray]:
            indexer = Indexer(self.run, f"kernel_{label}", name, options)
            index, params = indexer.index(), self.run.original
            pairs = (indexer.kernel, index), indexer.as_reward(params, index)
            found = [
                self._over(self.queries, functools.partial(jax.jit(k.score), params, i))
                for k, i in pairs
            ]
            indexer.build.forget()
            return found

        return Scores(*self._kept(label, make))

    def in_run(self, label: str, reduction: str) -> np.ndarray:
        """In-Run Data Shapley of the original's own training, ``[Q, O]``."""
        run, cfg = self.run, self.run.cfg.finetune
        records, grouped = run.corpus.train, cfg.group_by_length
        stream = run.stream("finetune", records, cfg.batch_size, grouped)
        labels = owned.owner_labels(records, run.corpus.owners)
        start = run.start_of("model")
        state, train, steps = run.training("finetune", run.model, cfg, stream, start)
        frozen = {} if start is None else split(start)[1]
        rates = make_schedule(cfg.learning_rate, steps, warmup=cfg.warmup)
        owners, size = len(run.corpus.owners), run.cfg.evaluation.batch_size
        parts = [
            (run.place(part), valid)
            for part, valid in owned.sequential(self.queries, size)
        ]
        how = How(run.model, exact(), reduction)

        def step_fn(carry: tuple[TrainState, list[jax.Array]], step: int):
            state, totals = carry
            params, rate = join(frozen, state.params), jnp.float32(rates(step))
            batch = run.place(OwnerBatch(stream[step], labels[stream.rows(step)]))
            share = functools.partial(step_shares, how, owners, params, batch)
            totals = [
                total + share(part, rate)
                for total, (part, _) in zip(totals, parts, strict=True)
            ]
            state, values = train(state, step)
            return (state, totals), values

        totals = [jnp.zeros((size, owners), jnp.float32) for _ in parts]
        where = run.stage(f"kernel_{label}", "loss", "lower finetune.learning_rate")
        (_, totals), _ = run_stage(where, (state, totals), steps, step_fn)
        shutil.rmtree(where.folder, ignore_errors=True)
        kept = [np.asarray(x)[:n] for x, (_, n) in zip(totals, parts, strict=True)]
        return np.concatenate(kept)


@functools.partial(jax.jit, static_argnames="model")
def summed_gradient(model: Decoder, params: Any, batch: owned.TokenBatch) -> Any:
    """d/d theta of sum_b log p(response_b), over the parameters that are trained."""
    trained, frozen = split(params)

    def total(own: Any) -> jax.Array:
        return jnp.sum(response_logps(model, join(frozen, own), batch))

    return jax.grad(total)(trained)


def one_step(run: Run, params: Any, records: tuple[owned.Record, ...]) -> Any:
    """``params`` after one gradient step up the likelihood of ``records``.

    The step has `PATCH` times the length of an Adam step at the fine-tuning's rate.
    """
    total = None
    for batch, valid in owned.sequential(
        run.tokens(records), run.cfg.finetune.batch_size
    ):
        batch.response_mask[valid:] = False
        own = summed_gradient(run.model, params, run.place(batch))
        total = own if total is None else jax.tree.map(jnp.add, total, own)
    trained, frozen = split(params)
    entries = sum(x.size for x in jax.tree.leaves(trained))
    length = PATCH * run.cfg.finetune.learning_rate * entries**0.5
    scale = length / optax.tree.norm(total)
    moved = jax.tree.map(lambda x, g: x + (scale * g).astype(x.dtype), trained, total)
    return join(frozen, moved)
