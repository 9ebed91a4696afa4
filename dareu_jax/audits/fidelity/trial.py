"""Kernels against retraining: what every seed is asked, and what it answers.

For every seed: the original, its answers as queries, one retraining for every subset of
owners and for every owner left out, the scores of every kernel.
"""

import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dareu_jax import data
from dareu_jax.attribution import OwnerBatch
from dareu_jax.attribution.gradients.bilinear import How, exact
from dareu_jax.audits.fidelity import measures as metrics
from dareu_jax.audits.fidelity.in_run import step_shares
from dareu_jax.config import AttributionConfig
from dareu_jax.data.batches import over_records
from dareu_jax.errors import TrainingError
from dareu_jax.evaluation.run_suite import mean_logp
from dareu_jax.models import Decoder, join, response_logps, split
from dareu_jax.models.decode import greedy
from dareu_jax.runs.inputs import Inputs
from dareu_jax.runs.reward_index import Fitted, Indexer
from dareu_jax.runs.stages import Session, finetune, result_of, snapshots, training
from dareu_jax.storage.files import write_json
from dareu_jax.training.finetune import TrainState, snapshot_folder
from dareu_jax.training.loop import run_stage
from dareu_jax.training.optimiser import make_schedule
from dareu_jax.training.progress import Advance

IN_RUN = "in_run_shapley"
"""The kernel that has no index: it is added up while the original is trained."""
KEPT = "original$|tail_patch$|retrained_|answers_|asked_"
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
    """A kernel's scores ``[Q, O]``, the same as probabilities, and of other answers.

    Attributes:
      raw, calibrated: of the original's answers; calibrated ones where there are any.
      counterfactual: of the answers by models without the owner who is asked about, as
        ``calibrated`` or, without these, ``raw``.
    """

    raw: np.ndarray
    calibrated: np.ndarray | None
    counterfactual: np.ndarray | None = None

    @classmethod
    def of_both(cls, raw: np.ndarray, calibrated: np.ndarray | None = None) -> "Scores":
        """Return the parts of scores ``[2 Q, O]``, the original's answers first."""
        own, other = np.split(raw, 2)
        if calibrated is None:
            return cls(own, None, other)
        sure, unsure = np.split(calibrated, 2)
        return cls(own, sure, unsure)


class Trial:
    """One seed of `dareu fidelity`; every part is kept on disk when it is done."""

    def __init__(self, session: Session):
        self.session, self.inputs = session, session.inputs
        self.folder = self.inputs.folder / "fidelity" / f"seed_{self.inputs.seed}"

    @functools.cached_property
    def original(self) -> Any:
        """Parameters of the model that is fine-tuned on all owners."""
        return result_of(self.session, "original")

    @functools.cached_property
    def records(self) -> tuple[data.Record, ...]:
        """The first records of every owner, those that queries are made of."""
        limit, chosen = self.inputs.cfg.fidelity.queries_per_owner, []
        taken = Counter({data.NOBODY: limit})
        for record in self.inputs.corpus.train:
            taken[record.owner] += 1
            if taken[record.owner] <= limit:
                chosen.append(record)
        return tuple(chosen)

    @functools.cached_property
    def queries(self) -> data.TokenBatch:
        """The prompts with the original's own greedy answers, ``[Q, ...]``."""
        gold = self.inputs.tokens(self.records)
        tokens, mask = self.answered(self.original, gold)
        return gold._replace(response=tokens, response_mask=mask)

    def answered(self, params: Any, gold: data.TokenBatch) -> tuple[Any, Any]:
        """Return a model's greedy answers ``[B, T]`` to the prompts, and their mask."""
        inputs, width = self.inputs, gold.response.shape[1]
        stop_ids = inputs.tokenizer.stop_ids
        decode = greedy(inputs.model, params, stop_ids, width, layouts=inputs.layouts)
        said = self._over(gold, decode)
        return said.tokens, said.mask

    @functools.cached_property
    def asked(self) -> data.TokenBatch:
        """The prompts twice ``[2 Q, ...]``: with the original's answers, then others'.

        These are by the model that was trained without the owner who is asked about.
        """
        gold, owners = self.inputs.tokens(self.records), self.inputs.corpus.owners
        response, mask = np.zeros_like(gold.response), np.zeros_like(gold.response_mask)
        owner = data.owner_labels(self.records, owners)
        alone = list(~np.eye(len(owners), dtype=bool))
        self.every_retrained(alone)
        for column, kept in enumerate(alone):
            rows = np.flatnonzero(owner == column)
            path = self.folder / f"answers_{name_of(kept)}.json"
            said = np.asarray(json.loads(path.read_text(encoding="utf-8")))
            response[rows], mask[rows] = said[0], said[1].astype(bool)
        other = self.queries._replace(response=response, response_mask=mask)
        return jax.tree.map(lambda *pair: np.concatenate(pair), self.queries, other)

    def _over(self, tokens: data.TokenBatch, score: Callable) -> Any:
        size = self.inputs.cfg.evaluation.batch_size
        return over_records(tokens, size, self.inputs.place, score)

    def _kept(self, name: str, make: Callable[[], Any]) -> np.ndarray:
        """``make()`` as an array, from disk where it is there."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            made = np.asarray(make())
            if not np.isfinite(made).all():
                raise TrainingError(
                    f"seed {self.inputs.seed} {name}: a number is not finite; lower "
                    "finetune.learning_rate, or leave that kernel out"
                )
            write_json(path, made.tolist())
        return np.asarray(json.loads(path.read_text(encoding="utf-8")))

    def likelihoods(self, params: Any) -> np.ndarray:
        """Mean log-likelihood of own and of gold answers, ``[2, Q]``."""
        score = functools.partial(mean_logp, self.inputs.model, params)
        texts = self.queries, self.inputs.tokens(self.records)
        return np.stack([self._over(text, score) for text in texts])

    def retrained(self, kept: np.ndarray) -> np.ndarray:
        """`likelihoods` under a model of the owners in ``kept [O]`` and of nobody's."""
        inputs, names, stage = self.inputs, self.inputs.corpus.owners, name_of(kept)
        gone = {name for name, k in zip(names, kept, strict=True) if not k}

        def make() -> np.ndarray:
            rest = tuple(r for r in inputs.corpus.train if r.owner not in gone)
            params = finetune(self.session, stage, rest)
            if len(gone) == 1:
                own = tuple(r for r in self.records if r.owner in gone)
                said = self.answered(params, inputs.tokens(own))
                self._kept(f"answers_{stage}", lambda: np.stack(said).astype(int))
            return self.likelihoods(params)

        found = self._kept(stage, make)
        state = self.session.stage(stage, "").folder
        for folder in (state, snapshot_folder(state)):
            shutil.rmtree(folder, ignore_errors=True)
        return found

    def every_retrained(self, masks: list[np.ndarray]) -> list[np.ndarray]:
        """Return `retrained` of every mask, and show how many there are."""
        found: list[np.ndarray] = []
        with self._shown("retrainings", len(masks)) as advance:
            for number, mask in enumerate(masks, start=1):
                was_there = (self.folder / f"{name_of(mask)}.json").exists()
                found.append(self.retrained(mask))
                if not was_there:
                    advance(number, "")
        return found

    def outcomes(self) -> Outcomes:
        """Every retraining, one after another."""
        inputs, cfg = self.inputs, self.inputs.cfg.fidelity
        names = inputs.corpus.owners
        masks = metrics.subsets(len(names), cfg.subsets, cfg.share)
        alone = ~np.eye(len(names), dtype=bool)
        found = np.stack(self.every_retrained([*masks, *alone]), axis=-1)
        subsets, without = found[..., : len(masks)], found[0, :, len(masks) :]
        whole = self._kept("original", lambda: self.likelihoods(self.original))[0]
        return Outcomes(
            owner=data.owner_labels(self.records, names),
            masks=masks,
            subsets=subsets,
            whole=whole,
            without=without,
            gains=self._kept("tail_patch", self.gains),
        )

    def gains(self) -> np.ndarray:
        """What one gradient step on each owner's records adds, ``[Q, O]`` nats."""
        inputs, columns, names = self.inputs, [], self.inputs.corpus.owners
        before = self.likelihoods(self.original)[0]
        with self._shown("a step on each owner", len(names)) as advance:
            for name in names:
                own = tuple(r for r in inputs.corpus.train if r.owner == name)
                moved = self.likelihoods(one_step(inputs, self.original, own))
                columns.append(moved[0] - before)
                advance(len(columns), name)
        return np.stack(columns, axis=1)

    def _shown(self, title: str, steps: int) -> AbstractContextManager[Advance]:
        """Return the stage of a part that saves nothing on its way."""
        return self.session.progress.stage(f"seed {self.inputs.seed} {title}", steps)

    def scores(self, label: str, name: str, options: AttributionConfig) -> Scores:
        """What a kernel says of `asked`; ``label`` names it on disk."""
        kept = f"asked_{label}"
        if name == IN_RUN:
            in_run = functools.partial(self.in_run, label, options.reduction)
            return Scores.of_both(self._kept(kept, in_run))

        def make() -> list[np.ndarray]:
            params, stage = self.original, f"kernel_{label}"
            indexer = Indexer(
                self.inputs,
                stage,
                name,
                Fitted("classifier", stage),
                where=self.session.stage,
                snapshots=functools.partial(snapshots, self.inputs, params),
                attribution=options,
            )
            index = indexer.build.index(params)
            pairs = (indexer.kernel, index), indexer.as_reward(params, index)
            with self._shown(f"scores by {label}", 1):
                found = [
                    self._over(
                        self.asked, functools.partial(jax.jit(k.score), params, i)
                    )
                    for k, i in pairs
                ]
            indexer.build.forget()
            return found

        return Scores.of_both(*self._kept(kept, make))

    def in_run(self, label: str, reduction: str) -> np.ndarray:
        """In-Run Data Shapley of the original's own training, ``[2 Q, O]``."""
        inputs, cfg = self.inputs, self.inputs.cfg.finetune
        records, passes = inputs.corpus.train, cfg.epochs
        stream = inputs.stream("finetune", records, cfg.batch_size, passes=passes)
        labels = data.owner_labels(records, inputs.corpus.owners)
        start = inputs.start_of("model")
        state, train, steps = training(self.session, "finetune", cfg, stream, start)
        frozen = {} if start is None else split(start)[1]
        rates = make_schedule(cfg.learning_rate, steps, warmup=cfg.warmup)
        owners, size = len(inputs.corpus.owners), inputs.cfg.evaluation.batch_size
        parts = [
            (inputs.place(part), valid)
            for part, valid in data.sequential(self.asked, size)
        ]
        how = How(inputs.model, exact(), reduction)

        def step_fn(carry: tuple[TrainState, list[jax.Array]], step: int):
            state, totals = carry
            params, rate = join(frozen, state.params), jnp.float32(rates(step))
            batch = inputs.place(OwnerBatch(stream[step], labels[stream.rows(step)]))
            share = functools.partial(step_shares, how, owners, params, batch)
            totals = [
                total + share(part, rate)
                for total, (part, _) in zip(totals, parts, strict=True)
            ]
            state, values = train(state, step)
            return (state, totals), values

        totals = [jnp.zeros((size, owners), jnp.float32) for _ in parts]
        where = self.session.stage(f"kernel_{label}", "lower finetune.learning_rate")
        (_, totals), _ = run_stage(where, (state, totals), steps, step_fn)
        shutil.rmtree(where.folder, ignore_errors=True)
        kept = [np.asarray(x)[:n] for x, (_, n) in zip(totals, parts, strict=True)]
        return np.concatenate(kept)


def name_of(kept: np.ndarray) -> str:
    """Return the name of a retraining on the owners in ``kept [O]``."""
    code = int("".join("1" if k else "0" for k in kept), 2)
    return f"retrained_{code:x}"


@functools.partial(jax.jit, static_argnames="model")
def summed_gradient(model: Decoder, params: Any, batch: data.TokenBatch) -> Any:
    """d/d theta of sum_b log p(response_b), over the parameters that are trained."""
    trained, frozen = split(params)

    def total(own: Any) -> jax.Array:
        return jnp.sum(response_logps(model, join(frozen, own), batch))

    return jax.grad(total)(trained)


def one_step(inputs: Inputs, params: Any, records: tuple[data.Record, ...]) -> Any:
    """``params`` after one gradient step up the likelihood of ``records``.

    The step has `PATCH` times the length of an Adam step at the fine-tuning's rate.
    """
    total = None
    for batch, valid in data.sequential(
        inputs.tokens(records), inputs.cfg.finetune.batch_size
    ):
        batch.response_mask[valid:] = False
        own = summed_gradient(inputs.model, params, inputs.place(batch))
        total = own if total is None else jax.tree.map(jnp.add, total, own)
    trained, frozen = split(params)
    entries = sum(x.size for x in jax.tree.leaves(trained))
    length = PATCH * inputs.cfg.finetune.learning_rate * entries**0.5
    scale = length / optax.tree.norm(total)
    moved = jax.tree.map(lambda x, g: x + (scale * g).astype(x.dtype), trained, total)
    return join(frozen, moved)
