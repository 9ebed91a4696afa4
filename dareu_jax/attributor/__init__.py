"""Attribution without unlearning: answers and records in, owners and scores out."""

from dareu_jax.attributor.attributor import Attributor, Named
from dareu_jax.attributor.build import attribute
from dareu_jax.attributor.command import Asked, attributed
from dareu_jax.attributor.model import Model, Options, load_model
from dareu_jax.attributor.output import (
    Attributed,
    check_out,
    print_attributed,
    write,
)
from dareu_jax.attributor.store import Spec, load, read_spec, save
from dareu_jax.corpus.shared import SharedRecord
from dareu_jax.corpus.sources.jsonl import read_owned, read_queries

__all__ = [
    "Asked",
    "Attributed",
    "Attributor",
    "Model",
    "Named",
    "Options",
    "SharedRecord",
    "Spec",
    "attribute",
    "attributed",
    "check_out",
    "load",
    "load_model",
    "print_attributed",
    "read_owned",
    "read_queries",
    "read_spec",
    "save",
    "write",
]
