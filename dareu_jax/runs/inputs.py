"""Read what a seed of a run begins with: corpus, tokenizer, shapes, batches."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dareu_jax import data, models, parallel
from dareu_jax.attribution.echo import Echo, echo_of
from dareu_jax.config import LoraConfig, ModelConfig, RunConfig
from dareu_jax.data import read_tokenizer
from dareu_jax.data.batches import encode
from dareu_jax.data.widths import MOST, MULTIPLE, rounded_up
from dareu_jax.data.words import name_like, spelled, word_numbers
from dareu_jax.errors import UserError
from dareu_jax.models.context import warn_beyond
from dareu_jax.models.hf.imported import Imported, check_vocabulary, open_imported
from dareu_jax.storage.files import user_cache
from dareu_jax.unlearning.renamed import Names, names_of

Array = jax.Array


class Part(NamedTuple):
    """A decoder of a run: where its keys are, its shape, adapters and dropout."""

    prefix: str
    model: ModelConfig
    lora: LoraConfig | None
    dropout: float = 0.0

    def trained(self, shape: models.DecoderConfig) -> models.DecoderConfig:
        """The shape with what the part's training adds: adapters, or dropout."""
        lora = self.lora
        if lora is None:
            return dataclasses.replace(shape, dropout=self.dropout)
        return dataclasses.replace(
            shape, dropout=0.0, lora_alpha=lora.alpha, lora_dropout=lora.dropout
        )


def parts_of(cfg: RunConfig) -> dict[str, Part]:
    """Returns every decoder that a configuration describes."""
    kernel, judge, prior = cfg.classifier, cfg.evaluation.judge, cfg.prior
    return {
        "model": Part("", cfg.model, cfg.lora),
        "classifier": Part("classifier.", kernel.model, kernel.lora, kernel.dropout),
        "judge": Part("evaluation.judge.", judge.model, judge.lora, judge.dropout),
        "prior": Part("prior.", prior.model, prior.lora),
    }


class Inputs:
    """What is known before anything is trained; each part is read when asked for.

    Nothing here trains a model. Where the run ``is_finished`` its folder is only read:
    a tokenizer or a dataset that is missing is an error and is not made again.
    """

    def __init__(
        self, cfg: RunConfig, seed: int, folder: Path, is_finished: bool = False
    ):
        self.cfg, self.seed, self.folder = cfg, seed, folder
        self.is_finished = is_finished
        self._bases: dict[tuple[Path, str], Any] = {}

    def _needs(self, name: str) -> Path:
        """Return a path of the run; raise `UserError` if a finished one lacks it."""
        path = self.folder / name
        if self.is_finished and not path.exists():
            raise UserError(f"{path} is missing; the same dareu run makes it again")
        return path

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices, as the configuration divides them."""
        cfg = self.cfg.mesh
        return parallel.make_mesh(cfg.data, cfg.fsdp, cfg.tensor)

    @functools.cached_property
    def layouts(self) -> parallel.Layouts:
        """The mesh, and the same devices as they are divided to sample text."""
        kv_heads, tensor = self.model.cfg.kv_heads, self.cfg.mesh.rollout_tensor
        return parallel.Layouts.of(self.mesh, kv_heads, tensor)

    def place(self, batch: Any) -> Any:
        """Puts host arrays ``[B, ...]`` on the mesh."""
        return parallel.put_batch(batch, self.mesh)

    @functools.cached_property
    def corpus(self) -> data.Corpus:
        """Every record, from the configured source."""
        self._needs("data")
        corpus = parallel.first_then_others(lambda: read_corpus(self.cfg, self.folder))
        cfg = self.cfg.corpus
        if not cfg.merge_others:
            return corpus
        data.split_by_owner(corpus, cfg.forget)
        return data.merge_others(corpus, cfg.forget)

    def use(self, corpus: data.Corpus | None) -> data.Corpus:
        """Take records that another seed has read; none: read them. Return them."""
        if corpus is not None:
            self.corpus = corpus
        return self.corpus

    @functools.cached_property
    def split(self) -> data.Split:
        """Forget, retain and test records."""
        return data.split_by_owner(self.corpus, self.cfg.corpus.forget)

    @functools.cached_property
    def forget_columns(self) -> tuple[int, ...]:
        """Columns of the owners that withdraw."""
        owners = self.corpus.owners
        return tuple(owners.index(owner) for owner in self.cfg.corpus.forget)

    @functools.cached_property
    def gold_length(self) -> float:
        """Mean tokens of the forget records' own responses, as far as answers go."""
        gold = self.tokens(self.split.forget).response_mask.sum(axis=1)
        return float(np.minimum(gold, self.max_new_tokens).sum() / len(gold))

    @property
    def max_new_tokens(self) -> int:
        """T of rollouts: as set, or the longest response."""
        return self.cfg.options("dareu").max_new_tokens or self.lengths[1]

    @functools.cached_property
    def tokenizer(self) -> data.Tokenizer:
        """The configured tokenizer, or one trained on the corpus."""
        cfg = self.cfg.corpus
        spec = cfg.tokenizer
        if spec is None and self.imported is not None:
            spec = str(self.imported.files)
        place = self.folder / "tokenizer" if spec else self._needs("tokenizer")
        rows = None if self.imported is None else self.imported.cfg.vocab
        return parallel.first_then_others(
            lambda: data.load_tokenizer(
                spec, self._texts(), cfg.vocab_size, place, rows
            )
        )

    def _texts(self) -> Iterator[str]:
        """What a tokenizer is trained on; the corpus is read at the first of them."""
        for r in self.corpus.train:
            yield f"{r.prompt} {r.response}"
        for r in self.corpus.test:
            yield self.wording.filled(r.prompt)

    @property
    def wording(self) -> data.Wording:
        """How a question and its answer become one text."""
        return data.wording_of(self.cfg.corpus)

    @functools.cached_property
    def lengths(self) -> tuple[int, int]:
        """P and T: tokens of the longest prompt and response, or the set limits."""
        cfg = self.cfg.corpus
        fit = [rounded_up(int(longest), MULTIPLE) for longest in self._counts.max(0)]
        found = cfg.max_prompt_tokens or fit[0], cfg.max_response_tokens or fit[1]
        if self.context is not None and sum(found) > self.context:
            kept = np.minimum(self._counts, found)
            warn_beyond(self.context, kept.sum(axis=1), "records")
        return found

    @functools.cached_property
    def _counts(self) -> np.ndarray:
        """Tokens ``[N, 2]`` of every prompt and response, the test records last."""
        records = self.corpus.train + self.corpus.test
        sides = encode(records, self.tokenizer, self.wording)
        return np.asarray([list(map(len, side)) for side in sides]).T

    @functools.cached_property
    def widths(self) -> data.Widths:
        """Widths that the batches of every stage are chosen from: few programs."""
        known = self._counts[: len(self.corpus.train)]
        lengths = np.minimum(known, self.lengths)
        return data.fit_widths(lengths, self.lengths, worth=1)

    @functools.cached_property
    def context(self) -> int | None:
        """Tokens that the imported models were made for, the least; None: unknown."""
        parts = parts_of(self.cfg).values()
        given = [(part.model.path, f"{part.prefix}model.path") for part in parts]
        found = [open_imported(Path(x), key).context for x, key in given if x]
        return min((context for context in found if context), default=None)

    @functools.cached_property
    def imported(self) -> Imported | None:
        """The model in ``model.path``, where one is given."""
        path = self.cfg.model.path
        return None if path is None else open_imported(Path(path))

    @functools.cached_property
    def model(self) -> models.Decoder:
        """The decoder that is fine-tuned and unlearned."""
        return self.decoder("model")

    @functools.cached_property
    def echo(self) -> Echo | None:
        """What kernels are not shown of a response: words of its prompt."""
        return echo_of(self.cfg.attribution, self.tokenizer, self.model.cfg.vocab)

    @functools.cached_property
    def names(self) -> Names:
        """Words that prompts of the owners that withdraw have, and no other record."""
        size = self.model.cfg.vocab
        forget, retain = map(self.tokens, (self.split.forget, self.split.retain))
        asked = rows_of(forget.prompt, forget.prompt_mask)
        answered = rows_of(forget.response, forget.response_mask)
        stays = rows_of(retain.prompt, retain.prompt_mask)
        stays += rows_of(retain.response, retain.response_mask)
        kept = {word for ids in stays for word, _ in spelled(self.tokenizer, ids)}
        words = [pair for ids in asked for pair in spelled(self.tokenizer, ids)]
        return names_of(
            [tokens for word, tokens in words if word not in kept],
            word_numbers(self.tokenizer, size),
            name_like(self.tokenizer, size),
            np.bincount(np.concatenate([*asked, *answered, *stays]), minlength=size),
        )

    def decoder(self, name: str) -> models.Decoder:
        """The decoder of a part of the run, ``model`` or one of `parts_of`."""
        part = parts_of(self.cfg)[name]
        key = f"{part.prefix}model"
        if (path := part.model.path) is not None:
            imported = open_imported(Path(path), f"{key}.path")
            check_vocabulary(self.tokenizer, imported.cfg, imported.files)
            shape = models.over_imported(part.model, imported.cfg, key)
        else:
            known = self.tokenizer.vocab_size if name == "model" else None
            shape = models.decoder_config(part.model, known or self.model.cfg.vocab)
        return models.Decoder(part.trained(shape))

    def check_shape(self, imported: Imported) -> None:
        """Raises `UserError` when an imported model is not of this run's shape."""
        dtypes = ("param_dtype", "compute_dtype")
        own = ("remat", "attention", *dtypes, "lora_alpha", "lora_dropout", "family")
        given, cfg = (dataclasses.asdict(c) for c in (imported.cfg, self.model.cfg))
        if any(given[name] != cfg[name] for name in cfg if name not in own):
            raise UserError(
                f"{imported.folder} holds a model of another shape than this run's; "
                "import one of the same family and size"
            )

    def load(self, imported: Imported, dtype: str) -> Any:
        """Imported parameters in the place of this run's model."""
        params = imported.load(self.mesh)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), params)

    def base(self, name: str) -> Any:
        """A part's imported parameters; those who adapt one folder share one copy."""
        part, dtype = parts_of(self.cfg)[name], self.decoder(name).cfg.param_dtype
        assert part.model.path is not None
        folder = Path(part.model.path).resolve()
        imported = open_imported(folder)
        if part.lora is None:  # trained whole: its memory is given away
            return self.load(imported, dtype)
        if (folder, dtype) not in self._bases:
            self._bases[folder, dtype] = self.load(imported, dtype)
        return self._bases[folder, dtype]

    def check_base(self) -> Imported:
        """Return the model in ``dareu.base_path``; raise `UserError` for another kind.

        It must have the model's vocabulary, for a KL compares token by token.
        """
        key = "dareu.base_path"
        imported = open_imported(Path(self.cfg.options("dareu").base_path), key)
        own, given = self.model.cfg.vocab, imported.cfg.vocab
        if given != own:
            raise UserError(
                f"{key}: {imported.folder} has {given} embeddings, the model {own}; "
                "the base must be the model that was fine-tuned"
            )
        theirs = read_tokenizer(imported.files, key)
        if token := other_token(self.tokenizer, theirs):
            raise UserError(
                f"{key}: token {token[0]} of {imported.folder} is {token[2]!r}, of the "
                f"run's tokenizer {token[1]!r}; the base must have the same tokenizer"
            )
        self.check_shape(imported)
        return imported

    def before_tuning(self) -> Any:
        """Parameters of the base, which nothing trains: shared where they are there."""
        if self.cfg.options("dareu").base_path is None:
            return self.base("model")
        imported, dtype = self.check_base(), self.model.cfg.param_dtype
        there = self._bases.get((imported.folder.resolve(), dtype))
        return self.load(imported, dtype) if there is None else there

    def with_adapters(self, params: Any, name: str) -> Any:
        """Parameters with fresh adapters, where the part's ``lora`` asks for some."""
        part = parts_of(self.cfg)[name]
        if part.lora is None or models.split(params)[1]:
            return params
        lora, key = part.lora, self.key(f"{part.prefix}lora")
        adapters = self.made(
            models.init_adapters,
            params,
            lora.rank,
            tuple(lora.targets),
            static=(1, 2),
            key=key,
        )
        return models.join(params, adapters)

    def start_of(self, name: str) -> Any:
        """What a part's training begins with; None: with a fresh decoder."""
        if parts_of(self.cfg)[name].model.path is None:
            return None
        return self.with_adapters(self.base(name), name)

    def made(self, init: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`init_sharded` on this run's mesh."""
        return parallel.init_sharded(init, self.mesh, *args, **options)

    def key(self, stage: str) -> Array:
        """The stage's key: the seed with the stage's name folded in."""
        return parallel.key_of(self._key, zlib.crc32(stage.encode()))

    @functools.cached_property
    def _key(self) -> Array:
        """The seed's key, on every device."""
        whole, number = NamedSharding(self.mesh, PartitionSpec()), self.seed
        return jax.jit(lambda: jax.random.key(number), out_shardings=whole)()

    def tokens(self, records: tuple[data.Record, ...]) -> data.TokenBatch:
        """Tokenises records to this run's lengths."""
        cfg, (p, t) = self.cfg.corpus, self.lengths
        return data.tokenise(
            records,
            self.tokenizer,
            self.wording,
            max_prompt=p,
            max_response=t,
            truncate=cfg.truncate,
        )

    def stream(
        self,
        stage: str,
        records: tuple[data.Record, ...],
        batch_size: int,
        *,
        passes: float = 1.0,
        most: int = MOST,
    ) -> data.BatchStream:
        """Shuffled batches of records of like length, by seed and stage.

        Args:
          stage: whose; records: of the corpus; batch_size: B.
          passes: how often they will be read; most: widths of batches, at most.
        """
        seed = zlib.crc32(f"{self.seed}/{stage}".encode())
        tokens = self.tokens(records)
        widths = data.fitted_widths(
            tokens, batch_size, passes=passes, among=self.widths, most=most
        )
        labels = data.owner_labels(records, self.corpus.owners)
        return data.BatchStream(tokens, batch_size, seed, labels, widths)


def rows_of(tokens: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Return the tokens of every row of ``tokens [B, T]`` that ``mask`` shows."""
    return [row[keep] for row, keep in zip(tokens, mask, strict=True)]


def other_token(
    own: data.Tokenizer, given: data.Tokenizer
) -> tuple[int, str, str] | None:
    """Return the first id that both have and write otherwise, with its two tokens."""
    first, second = (
        {number: token for token, number in x.hf.get_vocab().items()}
        for x in (own, given)
    )
    both = sorted(first.keys() & second.keys())
    pairs = ((number, first[number], second[number]) for number in both)
    return next((pair for pair in pairs if pair[1] != pair[2]), None)


def read_corpus(cfg: RunConfig, folder: Path) -> data.Corpus:
    """Return the corpus; downloads are kept in the user's cache."""
    options, downloads = cfg.corpus.options(), user_cache() / "downloads"
    return data.load_corpus(cfg.corpus.source, options, folder / "data", downloads)
