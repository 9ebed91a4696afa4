"""The interface of an unlearning method, and what every method may read."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from dareu_jax.attribution import Kernel
from dareu_jax.config import RunConfig
from dareu_jax.data.batches import TokenBatch
from dareu_jax.models import Decoder
from dareu_jax.parallel import Layouts
from dareu_jax.registry import METHODS
from dareu_jax.training.throughput import Stopwatch
from dareu_jax.unlearning.renamed import Names

Array = jax.Array
Batches = dict[str, list[TokenBatch]]


class Need(NamedTuple):
    """Batches a method wants at each step: how large, how many, set by which key.

    ``at_once`` are the rows that a gradient step reads at a time; None: all.
    """

    batch_size: int
    batches: int
    key: str
    at_once: int | None = None


class RewardIndex(NamedTuple):
    """What the stage ``reward`` leaves, and those named after it.

    Attributes:
      kernel, index: the attribution function; columns are owners.
      rebuild: ``parameters -> index``, the index at other parameters of the model.
    """

    kernel: Kernel
    index: Any
    rebuild: Callable[[Any], Any]


class Prior(NamedTuple):
    """What the stages ``prior`` and ``base`` leave: a model that never saw the owners.

    It is the counterfactual prior, or the imported model before its fine-tuning.
    """

    model: Decoder
    params: Any


@dataclasses.dataclass(frozen=True)
class MethodInputs:
    """What a method reads and never changes.

    Attributes:
      model: the decoder of policy and reference alike.
      reference: parameters of the original model.
      forget_columns: columns of the owners that withdraw.
      forget_owner: ``[n]`` int32, column of the owner of each forget record.
      response_tokens: T, slots of the longest response; batches may have fewer.
      stop_ids: the tokens that end a text.
      gold_length: mean tokens of the forget records' own responses, as far as an
        answer may go.
      stages: what the method said that it reads, by name: a `RewardIndex` for
        ``reward`` and those named after it, a `Prior` for ``prior`` and ``base``.
      retain_records: how many records stay.
      frozen: the part of the reference that is not trained, ``{}`` when all is: the
        model's parameters are ``join(frozen, trainable)``.
      names: words of the owners' own in the forget prompts, see `Names`.
      layouts: where parameters are in an update and in a rollout.
      watch: times the phases of a step, when it is told to.
    """

    model: Decoder
    reference: Any
    forget_columns: tuple[int, ...]
    forget_owner: Array
    response_tokens: int
    stop_ids: tuple[int, ...]
    gold_length: float
    stages: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    retain_records: int = 1
    frozen: Any = dataclasses.field(default_factory=dict)
    names: Names | None = None
    layouts: Layouts = dataclasses.field(default_factory=Layouts)
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)


@dataclasses.dataclass(frozen=True)
class Method:
    """Pure functions that turn the original's parameters into unlearned ones.

    Attributes:
      steps: how many steps make the whole run.
      init: ``(params, *, key) -> state``; all trainable state is one pytree.
      step: ``(state, batch, step, *, key) -> (state, metrics of float32 scalars)``;
        ``step`` counts from 0 and is a number of Python.
      params_of: ``state -> decoder parameters``, frozen ones included.
      headline: the metric shown while it runs.
    """

    steps: int
    init: Callable[..., Any]
    step: Callable[..., tuple[Any, dict[str, Array]]]
    params_of: Callable[[Any], Any]
    headline: str


def forget_and_retain(name: str) -> Callable[[RunConfig], dict[str, Need]]:
    """Return ``needs``: a forget and a retain batch of ``<name>.batch_size`` rows."""

    def needs(cfg: RunConfig) -> dict[str, Need]:
        own = cfg.options(name)
        part = getattr(own, "microbatch_size", None)
        need = Need(own.batch_size, 1, f"{name}.batch_size", part)
        return {"forget": need, "retain": need}

    return needs


def needs_of(name: str, cfg: RunConfig) -> dict[str, Need]:
    """Return the batches that a step wants, by split; ``cfg``: see `method_config`."""
    return dict(METHODS.get(name).needs(cfg))


def reads_of(name: str, cfg: RunConfig) -> frozenset[str]:
    """Return the stages that method ``name`` reads beside the original.

    These are some of ``prior``, ``base``, and ``reward`` or one named after it, see
    `reward_stage`.
    """
    return frozenset(METHODS.get(name).reads(cfg))
