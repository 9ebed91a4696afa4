"""The stages of one seed of a run, each saved, each resumable, run when asked for."""

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dareu_jax import corpus as owned
from dareu_jax.attribution import Kernel, OwnerBatch
from dareu_jax.config import (
    ClassifierConfig,
    FinetuneConfig,
    OptimiserConfig,
    PriorConfig,
    RunConfig,
)
from dareu_jax.errors import UserError
from dareu_jax.loop import Stage, StepFn, run_stage
from dareu_jax.models import Decoder, decoder_config
from dareu_jax.models.optimiser import make_optimiser
from dareu_jax.parallel import make_mesh, put_batch, shard
from dareu_jax.registry import KERNELS, METHODS
from dareu_jax.reporting.progress import Progress
from dareu_jax.tracking import Tracker
from dareu_jax.unlearning import (
    Method,
    World,
    finetune_step,
    init_training,
    method_config,
)
from dareu_jax.unlearning.guards import Guards

Array = jax.Array
LOG_EVERY = 10


class Run:
    """One seed of one configuration in one folder; a stage runs when first asked for.

    Args:
      cfg: the configuration; seed: one of its seeds.
      folder: the run folder; tracker, progress: where news goes.
    """

    def __init__(
        self,
        cfg: RunConfig,
        seed: int,
        folder: Path,
        tracker: Tracker,
        progress: Progress,
    ):
        self.cfg, self.seed, self.folder = cfg, seed, folder
        self.tracker, self.progress = tracker, progress
        self.mesh = make_mesh(cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.tensor)
        self.place = functools.partial(put_batch, mesh=self.mesh)
        self.stopped: dict[str, str | None] = {}
        self.wall_s: dict[str, float] = {}

    @functools.cached_property
    def corpus(self) -> owned.Corpus:
        """Every record, from the configured source."""
        corpus, cfg = read_corpus(self.cfg, self.folder), self.cfg.corpus
        if not cfg.merge_others:
            return corpus
        owned.split_by_owner(corpus, cfg.forget)
        return owned.merge_others(corpus, cfg.forget)

    @functools.cached_property
    def split(self) -> owned.Split:
        """Forget, retain and test records."""
        return owned.split_by_owner(self.corpus, self.cfg.corpus.forget)

    @functools.cached_property
    def tokenizer(self) -> owned.Tokenizer:
        """The configured tokenizer, or one trained on the corpus."""
        cfg = self.cfg.corpus
        texts = [f"{r.prompt} {r.response}" for r in self.corpus.train]
        texts += [cfg.template.replace("{prompt}", r.prompt) for r in self.corpus.test]
        place = self.folder / "tokenizer"
        return owned.load_tokenizer(cfg.tokenizer, texts, cfg.vocab_size, place)

    @functools.cached_property
    def lengths(self) -> tuple[int, int]:
        """P and T: tokens of the longest prompt and response, or the set limits."""
        cfg = self.cfg.corpus
        records = self.corpus.train + self.corpus.test
        fit = owned.fit_lengths(records, self.tokenizer, cfg.template)
        return cfg.max_prompt_tokens or fit[0], cfg.max_response_tokens or fit[1]

    @functools.cached_property
    def model(self) -> Decoder:
        """The decoder that is fine-tuned and unlearned."""
        return Decoder(decoder_config(self.cfg.model, self.tokenizer.vocab_size))

    def key(self, stage: str) -> Array:
        """The stage's key: the seed with the stage's name folded in."""
        return jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(stage.encode()))

    def tokens(self, records: tuple[owned.Record, ...]) -> owned.TokenBatch:
        """Tokenises records to this run's lengths."""
        cfg, (p, t) = self.cfg.corpus, self.lengths
        return owned.tokenise(
            records,
            self.tokenizer,
            cfg.template,
            max_prompt=p,
            max_response=t,
            truncate=cfg.truncate,
        )

    def stream(
        self,
        stage: str,
        records: tuple[owned.Record, ...],
        batch_size: int,
        group_by_length: bool = False,
    ) -> owned.BatchStream:
        """Shuffled batches of records, the order given by seed and stage."""
        seed = zlib.crc32(f"{self.seed}/{stage}".encode())
        if group_by_length:
            return owned.GroupedStream(self.tokens(records), batch_size, seed)
        labels = owned.owner_labels(records, self.corpus.owners)
        return owned.BatchStream(self.tokens(records), batch_size, seed, labels)

    @functools.cached_property
    def original(self) -> Any:
        """Parameters fine-tuned on all owners."""
        return self.finetune("finetune_original", self.corpus.train)

    @functools.cached_property
    def retrained(self) -> Any:
        """Parameters fine-tuned on the retain owners: same seed, same recipe."""
        return self.finetune("finetune_retrained", self.split.retain)

    def finetune(self, stage: str, records: tuple[owned.Record, ...]) -> Any:
        """Trains the decoder from the seed's initialisation on ``records``."""
        return self._train_lm(stage, "finetune", self.model, self.cfg.finetune, records)

    @functools.cached_property
    def prior(self) -> tuple[Decoder, Any]:
        """The counterfactual prior: a small decoder of the retain owners alone."""
        cfg = self.cfg.prior
        model = Decoder(decoder_config(cfg.model, self.tokenizer.vocab_size))
        return model, self._train_lm("prior", "prior", model, cfg, self.split.retain)

    def _train_lm(
        self,
        stage: str,
        name: str,
        model: Decoder,
        cfg: FinetuneConfig,
        records: tuple[owned.Record, ...],
    ) -> Any:
        stream = self.stream(name, records, cfg.batch_size, cfg.group_by_length)
        steps = training_steps(cfg, stream)
        optimiser = optimiser_of(cfg, steps)

        hide = cfg.prompt_dropout if isinstance(cfg, PriorConfig) else 0.0
        key = self.key(name)

        def step_fn(state, step):
            batch, noise = self.place(stream[step]), jax.random.fold_in(key, step)
            return finetune_step(
                model, optimiser, state, batch, prompt_dropout=hide, key=noise
            )

        state = init_training(model, optimiser, key=key)
        where = self._stage(stage, "loss", f"lower {name}.learning_rate")
        state, meta = run_stage(where, self._shard(state), steps, step_fn)
        self.wall_s[stage] = meta["wall_s"]
        return state.params

    @functools.cached_property
    def classifier(self) -> tuple[Kernel, Any]:
        """The attribution kernel that serves as reward, and its index."""
        return self._build_index("classifier", self.cfg.reward.kernel)

    @functools.cached_property
    def shuffled(self) -> tuple[Kernel, Any]:
        """The control: the same kernel built on shuffled owner labels."""
        return self._build_index("classifier_shuffled", self.cfg.reward.kernel)

    @functools.cached_property
    def judge(self) -> tuple[Kernel, Any]:
        """An independent classifier, never used as a reward."""
        return self._build_index("judge", "classifier")

    def _build_index(self, stage: str, kernel_name: str) -> tuple[Kernel, Any]:
        cfg: ClassifierConfig = (
            self.cfg.evaluation.judge if stage == "judge" else self.cfg.classifier
        )
        stream, labels = self._owner_stream(stage, cfg)
        steps = training_steps(cfg, stream)
        kernel = KERNELS.get(kernel_name)(
            cfg,
            vocab=self.tokenizer.vocab_size,
            owners=len(self.corpus.owners),
            steps=steps,
        )

        def step_fn(acc, step):
            batch = OwnerBatch(stream[step], labels[stream.rows(step)])
            return kernel.update(self.original, self.place(batch), acc)

        acc = self._shard(kernel.init(self.original, key=self.key(stage)))
        where = self._stage(stage, "loss", "lower the classifier's learning_rate")
        acc, meta = run_stage(where, acc, steps, step_fn)
        self.wall_s[stage] = meta["wall_s"]
        return kernel, kernel.finalize(self.original, acc)

    def _owner_stream(
        self, stage: str, cfg: ClassifierConfig
    ) -> tuple[owned.BatchStream, np.ndarray]:
        """Batches of owned records (and nobody's, where a class is theirs)."""
        records = tuple(
            r for r in self.corpus.train if cfg.nobody or r.owner != owned.NOBODY
        )
        stream = self.stream(stage, records, cfg.batch_size)
        assert stream.owners is not None
        if stage != "classifier_shuffled":
            return stream, stream.owners
        shuffle = np.random.default_rng(zlib.crc32(f"{self.seed}/{stage}".encode()))
        return stream, shuffle.permutation(stream.owners)

    def untrained_world(self, cfg: RunConfig) -> World:
        """What a method may know before any model is trained."""
        owners = self.corpus.owners
        gold = self.tokens(self.split.forget).response_mask
        return World(
            model=self.model,
            reference=None,
            kernel=None,
            index=None,
            forget_columns=tuple(owners.index(o) for o in self.cfg.corpus.forget),
            forget_owner=jnp.asarray(owned.owner_labels(self.split.forget, owners)),
            max_new_tokens=cfg.dareu.max_new_tokens or self.lengths[1],
            eos_id=self.tokenizer.eos_id,
            gold_length=float(gold.sum() / len(gold)),
        )

    def draft(self, name: str, cfg: RunConfig) -> Method:
        """Method ``name`` before any model is trained: what it needs and reads."""
        return METHODS.get(name)(cfg, self.untrained_world(cfg))

    def world(self, name: str, cfg: RunConfig) -> World:
        """What method ``name`` with configuration ``cfg`` may read."""
        kernel, index = self.shuffled if cfg.reward.shuffle_owners else self.classifier
        reads_prior = self.draft(name, cfg).reads_prior
        prior_model, prior = self.prior if reads_prior else (None, None)
        return dataclasses.replace(
            self.untrained_world(cfg),
            reference=self.original,
            kernel=kernel,
            index=index,
            prior_model=prior_model,
            prior=prior,
        )

    def unlearned(self, name: str) -> Any:
        """Parameters after method ``name``."""
        return self.unlearn(name, method_config(self.cfg, name), name)

    def prepare(self, name: str, cfg: RunConfig) -> tuple[Method, Any, StepFn]:
        """Returns method ``name``, its first state and ``(state, step) -> ...``."""
        check_forget_batch(self, name, cfg)
        method = METHODS.get(name)(cfg, self.world(name, cfg))
        splits = {"forget": self.split.forget, "retain": self.split.retain}
        streams = {
            split: self.stream(f"unlearn/{split}", splits[split], need.batch_size)
            for split, need in method.needs.items()
        }
        key = self.key(f"unlearn/{name}")

        def step_fn(state, step):
            batch = {
                split: [
                    self.place(streams[split][step * need.batches + i])
                    for i in range(need.batches)
                ]
                for split, need in method.needs.items()
            }
            return method.step(state, batch, key=jax.random.fold_in(key, step))

        return method, self._shard(method.init(self.original, key=key)), step_fn

    def unlearn(self, name: str, cfg: RunConfig, stage: str) -> Any:
        """Runs method ``name`` with configuration ``cfg`` as stage ``stage``."""
        method, state, step_fn = self.prepare(name, cfg)
        every = self.cfg.checkpoint.every_iterations
        remedy = f"lower {name}'s learning_rate"
        where = self._stage(stage, method.headline, remedy, every)
        state, meta = run_stage(
            where,
            state,
            method.steps,
            step_fn,
            lambda broken: Guards(cfg.guards, broken),
        )
        self.wall_s[stage] = meta["wall_s"]
        self.stopped[stage] = meta["stopped"]
        return method.params_of(state)

    def model_params(self, name: str) -> Any:
        """Parameters of a row of the table."""
        if name in ("original", "retrained"):
            return getattr(self, name)
        return self.unlearned(name)

    def _shard(self, state: Any) -> Any:
        return shard(state, self.mesh)

    def _stage(
        self, name: str, headline: str, remedy: str, every: int | None = None
    ) -> Stage:
        return Stage(
            name=name,
            seed=self.seed,
            folder=self.folder / "checkpoints" / f"seed_{self.seed}" / name,
            keep=self.cfg.checkpoint.keep,
            save_every=every or self.cfg.checkpoint.every,
            log_every=LOG_EVERY,
            tracker=self.tracker,
            progress=self.progress,
            headline=headline,
            remedy=remedy,
        )


def read_corpus(cfg: RunConfig, folder: Path) -> owned.Corpus:
    """Returns the corpus of the configuration; its dataset is kept in ``folder``."""
    c = cfg.corpus
    options = owned.SourceOptions(
        path=c.path,
        owners=c.owners,
        records_per_owner=c.records_per_owner,
        general_facts=c.general_facts,
        seed=c.seed,
        authors_per_owner=c.authors_per_owner,
        last_authors=c.last_authors,
        general_knowledge=c.general_knowledge,
    )
    return owned.load_corpus(c.source, options, folder / "data")


def training_steps(cfg: OptimiserConfig, stream: owned.BatchStream) -> int:
    """Steps that make ``cfg.epochs`` passes over the stream's records."""
    return max(1, round(cfg.epochs * stream.steps_per_epoch))


def optimiser_of(cfg: OptimiserConfig, steps: int):
    """The optimiser of a fine-tuning stage."""
    return make_optimiser(
        cfg.learning_rate,
        steps,
        warmup=cfg.warmup,
        weight_decay=cfg.weight_decay,
        clip_norm=cfg.clip_norm,
    )


def check_forget_batch(run: Run, name: str, cfg: RunConfig) -> None:
    """Raises `UserError` when the forget records cannot fill one batch."""
    need = run.draft(name, cfg).needs["forget"]
    have = len(run.split.forget)
    if have < need.batch_size:
        raise UserError(
            f"forget owners {', '.join(cfg.corpus.forget)} have {have} records but a "
            f"batch takes {need.key} = {need.batch_size}; lower it to at most {have}"
        )
