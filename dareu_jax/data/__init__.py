"""Who owns which text: records, sources, splits by owner, tokenised batches."""

from dareu_jax.data.batches import (
    BatchStream,
    TokenBatch,
    fit_lengths,
    fitted_widths,
    lengths_of,
    owner_labels,
    sequential,
    steps_per_epoch,
    take,
    tokenise,
    tokenise_whole,
)
from dareu_jax.data.dataset import adopt, load_corpus
from dareu_jax.data.records import (
    NOBODY,
    Corpus,
    Record,
    Split,
    merge_others,
    shared_records,
    split_by_owner,
)
from dareu_jax.data.tokenizer import Tokenizer, load_tokenizer, read_tokenizer
from dareu_jax.data.widths import Widths, fit_widths
from dareu_jax.data.wording import CHAT, Wording, wording_of
