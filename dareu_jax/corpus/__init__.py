"""Who owns which text: records, sources, splits by owner, tokenised batches."""

from dareu_jax.corpus.batches import (
    TEMPLATE,
    BatchStream,
    GroupedStream,
    TokenBatch,
    fit_lengths,
    owner_labels,
    sequential,
    take,
    tokenise,
    tokenise_whole,
    trim_prompts,
)
from dareu_jax.corpus.builder import adopt, load_corpus
from dareu_jax.corpus.records import (
    NOBODY,
    Corpus,
    Record,
    Split,
    check_batch,
    merge_others,
    shared_records,
    split_by_owner,
)
from dareu_jax.corpus.tokenizer import Tokenizer, load_tokenizer, read_tokenizer

__all__ = [
    "NOBODY",
    "TEMPLATE",
    "BatchStream",
    "Corpus",
    "GroupedStream",
    "Record",
    "Split",
    "TokenBatch",
    "Tokenizer",
    "adopt",
    "check_batch",
    "fit_lengths",
    "load_corpus",
    "load_tokenizer",
    "merge_others",
    "owner_labels",
    "read_tokenizer",
    "sequential",
    "shared_records",
    "split_by_owner",
    "take",
    "tokenise",
    "tokenise_whole",
    "trim_prompts",
]
