"""What an attributor is made of: an imported model and the options of a kernel."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dareu_jax import corpus as owned
from dareu_jax.attribution import Kernel, Setup
from dareu_jax.attribution.identity import params_fingerprint
from dareu_jax.config import AttributionConfig, ClassifierConfig, attribution_config
from dareu_jax.corpus.batches import CHAT, Tokenizer
from dareu_jax.errors import UserError
from dareu_jax.evaluation.evaluate import greedy, over_records, texts_of
from dareu_jax.imported import open_imported
from dareu_jax.models import Decoder, decoder_config
from dareu_jax.parallel import (
    BATCH_AXES,
    Layouts,
    make_mesh,
    put_batch,
)
from dareu_jax.registry import KERNELS

MULTIPLE = 32
"""Of the tokens of prompts and of responses: few lengths, few compilations."""
Snapshots = Sequence[tuple[Any, float]]
"""Parameters of checkpoints and their weights, for ``tracin``."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How text is read and what a kernel is made with.

    Attributes:
      kernel: of ``dareu list kernels``.
      attribution: options of kernels, see `attribution_config`; classifier: of one that
        is trained.
      template: what a prompt is written into; ``chat``: the tokenizer's own.
      batch_size: texts at a time, rounded up to a multiple of the devices; a
        classifier is trained with its own. seed: of what is drawn.

    Raises:
      UserError: an unknown kernel, or a template or option that cannot be used.
    """

    kernel: str = "grad_dot"
    attribution: AttributionConfig = field(default_factory=attribution_config)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    template: str = owned.TEMPLATE
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        KERNELS.get(self.kernel)
        if "{prompt}" not in self.template and self.template != CHAT:
            raise UserError(
                f"template {self.template!r:.60} lacks {{prompt}}, the place of the "
                "prompt (chat: the tokenizer's own template)"
            )
        if self.batch_size < 1:
            raise UserError(f"batch_size = {self.batch_size} must be at least 1")
        if self.classifier.model.path or self.classifier.lora:
            raise UserError(
                "classifier.model.path and classifier.lora are for dareu run; here a "
                "classifier is trained from scratch, classifier.model.preset its shape"
            )

    def read_by_kernel(self) -> dict[str, Any]:
        """Return what scores depend on: no batch size, no options of other kernels."""
        attribution = self.attribution.model_dump(
            mode="json", include={*AttributionConfig.model_fields, self.kernel}
        )
        return {
            "kernel": self.kernel,
            "attribution": attribution,
            "classifier": self.classifier.model_dump(mode="json"),
            "template": self.template,
            "seed": self.seed,
        }


class Model(NamedTuple):
    """A model on its devices, its tokenizer, and what identifies its weights.

    ``context`` is how many tokens it was made for; None: it does not say.
    """

    decoder: Decoder
    params: Any
    tokenizer: Tokenizer
    mesh: Mesh
    fingerprint: str
    context: int | None = None

    def rows(self, batch_size: int) -> int:
        """Return the batch size, rounded up to a multiple of the devices."""
        devices = math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)
        return -(-batch_size // devices) * devices

    @property
    def layouts(self) -> Layouts:
        """Where parameters are, and where they are while answers are decoded."""
        return Layouts.of(self.mesh, self.decoder.cfg.kv_heads)

    def place(self, batch: Any) -> Any:
        """Put host arrays ``[B, ...]`` on the devices."""
        return put_batch(batch, self.mesh)

    def over(
        self, tokens: owned.TokenBatch, batch_size: int, score: Callable[[Any], Any]
    ) -> Any:
        """Return ``score`` of batches of fixed shape, over all of ``tokens``."""
        with jax.set_mesh(self.mesh):
            return over_records(tokens, self.rows(batch_size), self.place, score)


def load_model(folder: Path | str, mesh: Mesh | None = None) -> Model:
    """Load a folder that ``dareu import`` wrote.

    Args:
      folder: where; mesh: of the devices; None: all of them, parameters split.

    Raises:
      UserError: no such folder, or nothing imported in it.
    """
    imported = open_imported(Path(folder), "model")
    mesh = make_mesh(data=1, fsdp=-1) if mesh is None else mesh
    params = imported.load(mesh)
    tokenizer = owned.read_tokenizer(imported.files, "model")
    return Model(
        decoder=Decoder(imported.cfg),
        params=params,
        tokenizer=tokenizer,
        mesh=mesh,
        fingerprint=params_fingerprint(params),
        context=imported.context,
    )


def kernel_for(
    model: Model,
    options: Options,
    *,
    owners: int,
    steps: int,
    snapshots: Snapshots,
) -> Kernel:
    """Return the kernel of ``options`` for so many owners.

    Args:
      model: what is attributed; options: the kernel's.
      owners: O; steps: of the training of a kernel that is fitted.
      snapshots: of the model's training.

    Raises:
      UserError: the kernel reads snapshots and there are none.
    """
    classifier = options.classifier
    shape = decoder_config(classifier.model, model.decoder.cfg.vocab)
    setup = Setup(
        model=model.decoder,
        owners=owners,
        cfg=options.attribution,
        classifier=classifier,
        steps=steps,
        backbone=Decoder(dataclasses.replace(shape, dropout=classifier.dropout)),
        snapshots=lambda: snapshots,
    )
    kernel = KERNELS.get(options.kernel)(setup)
    if kernel.reads_snapshots and not snapshots:
        raise UserError(
            f"kernel {options.kernel} needs checkpoints of the model's training: in "
            "Python, attribute(..., snapshots=[(params, weight)]); or take grad_dot"
        )
    return kernel


def as_tokens(
    model: Model, options: Options, records: Sequence[owned.Record]
) -> owned.TokenBatch:
    """Return records as tokens, as long as the longest and a multiple of `MULTIPLE`.

    A prompt of no tokens, where there is neither bos nor text, becomes the end of
    text: that is what a response which begins a document follows.
    """
    template, tokenizer = options.template, model.tokenizer
    p, t = owned.fit_lengths(records, tokenizer, template, MULTIPLE)
    wide, rows = max(p, MULTIPLE), tuple(records)
    tokens = owned.tokenise(rows, tokenizer, template, max_prompt=wide, max_response=t)
    empty = np.flatnonzero(~tokens.prompt_mask.any(axis=1))
    tokens.prompt[empty, -1] = tokenizer.eos_id
    tokens.prompt_mask[empty, -1] = True
    return tokens


def greedy_answers(
    model: Model, options: Options, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """Return the model's own answers, each token the likeliest."""
    blank = [owned.Record("", "", prompt, ".") for prompt in prompts]
    tokens, stop_ids = as_tokens(model, options, blank), model.tokenizer.stop_ids
    decode = greedy(
        model.decoder, model.params, stop_ids, max_new_tokens, layouts=model.layouts
    )
    said = model.over(tokens, options.batch_size, decode)
    return texts_of(model.tokenizer, said)
