"""A model on its devices, with its tokenizer."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dareu_jax import data
from dareu_jax.data.batches import PLAIN, encode, over_records, pad
from dareu_jax.data.tokenizer import Tokenizer
from dareu_jax.data.widths import rounded_up
from dareu_jax.data.wording import CHAT, Wording
from dareu_jax.models.context import lengths_of, warn_beyond
from dareu_jax.models.decode import answering, check_sampling, texts_of
from dareu_jax.models.decoder import Decoder
from dareu_jax.models.hf.imported import open_imported
from dareu_jax.models.sampler import Sampling
from dareu_jax.models.scoring import response_logps
from dareu_jax.parallel import Layouts, batch_devices, make_mesh, put_batch
from dareu_jax.storage.fingerprint import params_fingerprint

MULTIPLE = 32
"""Of the tokens of prompts and of responses: few lengths, few compilations."""


class LoadedModel(NamedTuple):
    """A model on its devices, its tokenizer, and what identifies its weights."""

    decoder: Decoder
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    fingerprint: str  # of its weights
    context: int | None = None  # tokens it was made for; None: it does not say
    wording: Wording = PLAIN
    counted: Callable[[int], None] = lambda rows: None  # is told of rows that are done

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 64,
        batch_size: int = 8,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Return the model's own answers, by default each token the likeliest.

        Args:
          prompts: N of them; max_new_tokens: of each answer.
          batch_size: prompts at a time; it changes no answer.
          temperature: logits are divided by it before a token is drawn; 0: no draw.
          top_k: how many of the likeliest tokens may be drawn; 0: all.
          top_p: the likeliest tokens may be drawn whose mass reaches it.
          seed: of the draws.
        """
        how = Sampling(self.tokenizer.stop_ids, temperature, top_k, top_p)
        check_sampling(how)
        blank = [data.Record("", "", prompt, ".") for prompt in prompts]
        tokens = as_tokens(self, blank, self.wording)
        warn_beyond(self.context, tokens.prompt_mask.sum(axis=1), "prompts")
        answer = answering(
            self.decoder,
            self.params,
            how,
            max_new_tokens,
            layouts=self.layouts,
            key=jax.random.key(seed),
        )
        return texts_of(self.tokenizer, self.over(tokens, batch_size, answer))

    def logps(
        self, prompts: Sequence[str], answers: Sequence[str], batch_size: int = 8
    ) -> list[np.ndarray]:
        """Return log p of every token of each answer, eos too: float32, nats."""
        pairs = zip(prompts, answers, strict=True)
        records = [data.Record("", "", *pair) for pair in pairs]
        tokens = as_tokens(self, records, self.wording)
        warn_beyond(self.context, lengths_of(tokens))
        score = functools.partial(response_logps, self.decoder, self.params)
        rows = self.over(tokens, batch_size, jax.jit(score))
        return [row[keep] for row, keep in zip(rows, tokens.response_mask, strict=True)]

    def rows(self, batch_size: int) -> int:
        """Return the batch size, rounded up to a multiple of the devices."""
        return rounded_up(batch_size, batch_devices(self.mesh))

    @property
    def layouts(self) -> Layouts:
        """Where parameters are, and where they are while answers are decoded."""
        return Layouts.of(self.mesh, self.decoder.cfg.kv_heads)

    def place(self, batch: Any) -> Any:
        """Put host arrays ``[B, ...]`` on the devices."""
        return put_batch(batch, self.mesh)

    def over(
        self,
        tokens: data.TokenBatch,
        batch_size: int,
        score: Callable[[Any], Any],
        widths: data.Widths = (),
    ) -> Any:
        """Return ``score`` of all of ``tokens`` in batches, see `over_records`."""
        size = self.rows(batch_size)

        def told(batch: data.TokenBatch) -> Any:
            values = score(batch)
            self.counted(len(batch.index))
            return values

        with jax.set_mesh(self.mesh):
            return over_records(tokens, size, self.place, told, widths)


def load_model(folder: Path | str, mesh: Mesh | None = None) -> LoadedModel:
    """Load a folder that ``dareu import`` wrote, by default onto all devices."""
    imported = open_imported(Path(folder), "model")
    mesh = make_mesh(data=1, fsdp=-1) if mesh is None else mesh
    params = imported.load(mesh)
    tokenizer = data.read_tokenizer(imported.files, "model", imported.cfg.vocab)
    return LoadedModel(
        decoder=Decoder(imported.cfg),
        params=params,
        tokenizer=tokenizer,
        mesh=mesh,
        fingerprint=params_fingerprint(params),
        context=imported.context,
        wording=Wording(CHAT) if tokenizer.has_chat else PLAIN,
    )


def as_tokens(
    model: LoadedModel,
    records: Sequence[data.Record],
    wording: Wording,
    *,
    whole_turn: bool = False,
) -> data.TokenBatch:
    """Return records as whole tokens; a prompt of none becomes the end of text."""
    tokenizer = model.tokenizer
    sides = encode(records, tokenizer, wording, whole_turn=whole_turn)
    tokens = padded(model, *sides)
    empty = np.flatnonzero(~tokens.prompt_mask.any(axis=1))
    tokens.prompt[empty, -1] = tokenizer.eos_id
    tokens.prompt_mask[empty, -1] = True
    return tokens


def padded(
    model: LoadedModel, prompts: list[list[int]], responses: list[list[int]]
) -> data.TokenBatch:
    """Return texts as long as the longest, rounded up to `MULTIPLE`."""
    width = rounded_up(max(1, *map(len, prompts)), MULTIPLE)
    size = rounded_up(max(map(len, responses)), MULTIPLE)
    pad_id, index = model.tokenizer.pad_id, np.arange(len(prompts), dtype=np.int32)
    left, right = pad(prompts, width, pad_id, left=True), pad(responses, size, pad_id)
    return data.TokenBatch(*left, *right, index)
