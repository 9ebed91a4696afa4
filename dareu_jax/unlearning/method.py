"""The interface of an unlearning method, and what every method may read."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dareu_jax.attribution import Kernel
from dareu_jax.corpus.batches import TokenBatch
from dareu_jax.models import Decoder
from dareu_jax.parallel import Layouts, Stopwatch

Array = jax.Array
Batches = dict[str, list[TokenBatch]]


class Need(NamedTuple):
    """Batches a method wants at each step: how large, how many, set by which key."""

    batch_size: int
    batches: int
    key: str


@dataclasses.dataclass(frozen=True)
class World:
    """What a method reads and never changes.

    A method is made before anything is trained, to ask what it needs: until its
    ``init``, the parameters, kernel, index and prior may be None.

    Attributes:
      model: the decoder of policy and reference alike.
      reference: parameters of the original model.
      frozen: the part of them that is not trained, ``{}`` when all is: the model's
        parameters are ``join(frozen, trainable)``.
      kernel, index: the attribution function; columns are owners.
      rebuild: ``parameters -> index``, the index at other parameters of the model, for
        a reward that is refreshed.
      forget_columns: columns of the owners that withdraw.
      forget_owner: ``[n]`` int32, column of the owner of each forget record.
      prior_model, prior: the counterfactual prior, for a method that reads it.
      max_new_tokens: T of rollouts; stop_ids: the tokens that end a text.
      gold_length: mean tokens of the forget records' own responses.
      layouts: where parameters are in an update and in a rollout.
      watch: times the phases of a step, when it is told to.
    """

    model: Decoder
    reference: Any
    kernel: Kernel | None
    index: Any
    forget_columns: tuple[int, ...]
    forget_owner: Array
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    gold_length: float
    prior_model: Decoder | None = None
    prior: Any = None
    frozen: Any = dataclasses.field(default_factory=dict)
    rebuild: Callable[[Any], Any] | None = None
    layouts: Layouts = dataclasses.field(default_factory=Layouts)
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)


@dataclasses.dataclass(frozen=True)
class Method:
    """Pure functions that turn the original's parameters into unlearned ones.

    Attributes:
      needs: batches per step by split, ``forget`` and ``retain``.
      steps: how many steps make the whole run.
      init: ``(params, *, key) -> state``; all trainable state is one pytree.
      step: ``(state, batch, *, key) -> (state, metrics of float32 scalars)``.
      params_of: ``state -> decoder parameters``, frozen ones included.
      headline: the metric shown while it runs.
      reads_prior: whether it reads the counterfactual prior.
    """

    needs: dict[str, Need]
    steps: int
    init: Callable[..., Any]
    step: Callable[..., tuple[Any, dict[str, Array]]]
    params_of: Callable[[Any], Any]
    headline: str
    reads_prior: bool = False
