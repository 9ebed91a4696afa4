"""Token batches: few shapes, random access by step, one epoch = every record once."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dareu_jax.data.records import NOBODY, Record
from dareu_jax.data.tokenizer import Tokenizer
from dareu_jax.data.widths import Widths, fit_widths, levels, rounded_up, within
from dareu_jax.data.wording import Wording
from dareu_jax.errors import UserError

Rows = Any
"""An array with the axis B first: numpy on the host, jax on the devices."""
PLAIN = Wording()


class TokenBatch(NamedTuple):
    """B records as tokens: prompts padded left, responses padded right."""

    prompt: Rows  # [B, P] int32
    prompt_mask: Rows  # [B, P] bool, true = counts
    response: Rows  # [B, T] int32, ends in eos unless truncated
    response_mask: Rows  # [B, T] bool, true = counts, eos included
    index: Rows  # [B] int32, row in the records
    own: Rows | None = None  # [B, T] bool, what a kernel looks at, see `own_tokens`


def own_tokens(batch: TokenBatch) -> Rows:
    """Return ``[B, T]`` bool: response tokens that an attribution kernel looks at.

    They are ``own``, as far as the response goes; where that is not given, all.
    """
    mask = batch.response_mask
    return mask if batch.own is None else mask & batch.own


def tokenise(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    wording: Wording = PLAIN,
    *,
    max_prompt: int,
    max_response: int,
    truncate: bool = False,
) -> TokenBatch:
    """Return all N records as one `TokenBatch` of numpy arrays, see `encode`.

    ``truncate`` keeps a prompt's bos and tail and a response's head, without its end,
    for it does not end there; else what is too long is a `UserError`.
    """
    prompts, responses = encode(records, tokenizer, wording)
    if not truncate:
        _check_lengths("prompt", prompts, max_prompt)
        _check_lengths("response", responses, max_response)
    prompts = [_keep_tail(ids, max_prompt, tokenizer) for ids in prompts]
    prompt, prompt_mask = pad(prompts, max_prompt, tokenizer.pad_id, left=True)
    response, response_mask = pad(
        [ids[:max_response] for ids in responses], max_response, tokenizer.pad_id
    )
    index = np.arange(len(records), dtype=np.int32)
    return TokenBatch(prompt, prompt_mask, response, response_mask, index)


def tokenise_whole(
    texts: Sequence[str], tokenizer: Tokenizer, longest: int, multiple: int
) -> tuple[TokenBatch, int]:
    """Return whole texts as one `TokenBatch`, and how many of them were cut.

    The prompt is the first token, bos where the tokenizer adds it; the response is the
    rest, at most ``longest`` tokens without eos, in a width that ``multiple`` divides.
    """
    from dareu_jax.parallel import shared_out

    rows = shared_out(
        lambda own: [tokenizer.with_bos(tokenizer.encode(x)) for x in own], texts
    )
    responses = [ids[1 : longest + 1] for ids in rows]
    width = rounded_up(max(map(len, responses)), multiple)
    prompt = pad([ids[:1] for ids in rows], 1, tokenizer.pad_id, left=True)
    response = pad(responses, width, tokenizer.pad_id)
    index = np.arange(len(rows), dtype=np.int32)
    cut = sum(len(ids) > longest + 1 for ids in rows)
    return TokenBatch(*prompt, *response, index), cut


def fit_lengths(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    wording: Wording = PLAIN,
    multiple: int = 8,
) -> tuple[int, int]:
    """Return the smallest multiples ``(P, T)`` that hold every record uncut."""
    sides = encode(records, tokenizer, wording)
    prompt, response = (max(map(len, side), default=1) for side in sides)
    return rounded_up(prompt, multiple), rounded_up(response, multiple)


def _keep_tail(ids: list[int], width: int, tokenizer: Tokenizer) -> list[int]:
    """Return at most ``width`` tokens of a prompt: its bos, if any, and its end."""
    if len(ids) <= width:
        return ids
    head = ids[:1] if ids[0] == tokenizer.bos_id else []
    return head + ids[len(ids) - width + len(head) :]


def encode(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    wording: Wording,
    *,
    whole_turn: bool = False,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the tokens of every prompt and response; every process does its share.

    The two join to the tokens of the whole text. A response ends in the token that ends
    a turn of the chat template, else in eos. With ``whole_turn`` it is all that a chat
    template writes behind the question, as open-unlearning counts it.
    """
    from dareu_jax.parallel import shared_out

    turn = tokenizer.turn(wording, whole=whole_turn)

    def share(own: Sequence[Record]) -> list[tuple[list[int], list[int]]]:
        prompts = [tokenizer.prompt(r.prompt, wording) for r in own]
        answers = (turn.start + r.response for r in own)
        responses = tokenizer.continuations(answers, turn.lead)
        whole = [[*turn.before, *r, *turn.end] for r in responses]
        return list(zip(prompts, whole))

    pairs = shared_out(share, records)
    return [prompt for prompt, _ in pairs], [response for _, response in pairs]


def _check_lengths(what: str, rows: list[list[int]], limit: int) -> None:
    """Raises `UserError` when any row is longer than `limit`."""
    over = [len(ids) for ids in rows if len(ids) > limit]
    if over:
        raise UserError(
            f"{len(over)} of {len(rows)} {what}s are longer than "
            f"corpus.max_{what}_tokens={limit}, the longest has {max(over)} tokens; "
            f"set corpus.max_{what}_tokens={max(over)} or corpus.truncate=true"
        )


def pad(
    rows: list[list[int]], width: int, pad_id: int, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [N, width] int32 and their mask [N, width] bool."""
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), np.bool_)
    for row, ids in enumerate(rows):
        columns = slice(width - len(ids), width) if left else slice(0, len(ids))
        tokens[row, columns] = ids
        mask[row, columns] = True
    return tokens, mask


def take(tokens: TokenBatch, rows: np.ndarray) -> TokenBatch:
    """Return the given rows of every array of `tokens`."""
    return TokenBatch(*(None if array is None else array[rows] for array in tokens))


def lengths_of(tokens: TokenBatch) -> np.ndarray:
    """Return the tokens ``[N, 2]`` of every prompt and of every response."""
    masks = tokens.prompt_mask, tokens.response_mask
    return np.stack([mask.sum(axis=1) for mask in masks], axis=1)


def limits_of(tokens: TokenBatch) -> tuple[int, int]:
    """Return P and T of the arrays themselves."""
    return tokens.prompt.shape[1], tokens.response.shape[1]


def fitted_widths(tokens: TokenBatch, batch_size: int, **options: Any) -> Widths:
    """Return `fit_widths` for batches of ``tokens``; ``options``: more of its own."""
    lengths, limits = lengths_of(tokens), limits_of(tokens)
    return fit_widths(lengths, limits, batch_size=batch_size, **options)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the steps after which every one of ``count`` records was seen."""
    return -(-count // batch_size)


class BatchStream:
    """Endless shuffled batches with random access: ``stream[step]``.

    In an epoch every record comes once; where the batch size does not divide them, the
    last batch is filled up with records that take turns. Records of like length come
    together: an epoch is shuffled, ordered by the narrowest of ``widths`` that holds a
    record, cut into batches, and these are shuffled. A batch is as wide as its records
    need. Step s depends on the seed and s alone, so a run resumes by asking for its
    next step.

    Args:
      tokens: N records; batch_size: B; seed: of the order.
      owners: ``[N]`` int32 labels, from `owner_labels`.
      widths: of batches, see `fit_widths`; none: that of ``tokens`` alone.
    """

    def __init__(
        self,
        tokens: TokenBatch,
        batch_size: int,
        seed: int,
        owners: np.ndarray | None = None,
        widths: Widths = (),
    ):
        count = len(tokens.index)
        if count == 0 or batch_size < 1:
            raise ValueError(f"cannot batch {count} records by {batch_size}")
        self.tokens, self.batch_size, self.owners = tokens, batch_size, owners
        self.widths = within(widths, limits_of(tokens))
        self._level = levels(lengths_of(tokens), self.widths)
        self._seed = seed
        self._epoch = functools.lru_cache(2)(self._ordered)

    @property
    def steps_per_epoch(self) -> int:
        """Return the steps after which every record was seen at least once."""
        return steps_per_epoch(len(self.tokens.index), self.batch_size)

    def _ordered(self, epoch: int) -> np.ndarray:
        """Return the rows ``[steps_per_epoch, B]`` of one epoch."""
        count, steps = len(self._level), self.steps_per_epoch
        rng = np.random.default_rng([self._seed, epoch])
        whole, more = divmod(steps * self.batch_size, count)
        turns = np.random.default_rng(self._seed).permutation(count)
        filling = turns[(epoch * more + np.arange(more)) % count]
        order = np.append(np.tile(rng.permutation(count), whole), filling)
        order = order[np.argsort(self._level[order], kind="stable")]
        return order.reshape(steps, self.batch_size)[rng.permutation(steps)]

    def rows(self, step: int) -> np.ndarray:
        """Return the rows [B] of `tokens` that make batch `step`."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[at]

    def __getitem__(self, step: int) -> TokenBatch:
        """Return batch `step`, counted from 0."""
        return self.of(self.rows(step))

    def of(self, rows: np.ndarray) -> TokenBatch:
        """Return the given rows of `tokens`, as wide as they need."""
        prompt, response = self.widths[self._level[rows].max()]
        left, own = self.tokens.prompt.shape[1] - prompt, self.tokens.own
        return TokenBatch(
            prompt=self.tokens.prompt[rows, left:],
            prompt_mask=self.tokens.prompt_mask[rows, left:],
            response=self.tokens.response[rows, :response],
            response_mask=self.tokens.response_mask[rows, :response],
            index=self.tokens.index[rows],
            own=None if own is None else own[rows, :response],
        )

    def once(self, step: int) -> tuple[np.ndarray, int]:
        """Return ``(rows [B], valid)`` of a batch of one pass, the shortest first.

        Rows from ``valid`` on repeat records; a caller drops them.
        """
        count, start = len(self._level), step * self.batch_size
        rows = np.arange(start, start + self.batch_size) % count
        return self._shortest_first[rows], min(self.batch_size, count - start)

    @functools.cached_property
    def _shortest_first(self) -> np.ndarray:
        """The rows by width, then by response: answers end at about the same time."""
        prompt, response = lengths_of(self.tokens).T
        return np.lexsort((prompt, response, self._level))


def sequential(tokens: TokenBatch, batch_size: int) -> Iterator[tuple[TokenBatch, int]]:
    """Yield all records in order, once, as ``(batch of batch_size rows, valid)``.

    Rows from ``valid`` on repeat records; a caller drops them.
    """
    count = len(tokens.index)
    for start in range(0, count, batch_size):
        rows = np.arange(start, start + batch_size) % count
        yield take(tokens, rows), min(batch_size, count - start)


def owner_labels(records: Sequence[Record], owners: Sequence[str]) -> np.ndarray:
    """Return [N] int32: each record's place in `owners`; -1 for `NOBODY`."""
    place = {owner: number for number, owner in enumerate(owners)} | {NOBODY: -1}
    unknown = {record.owner for record in records} - place.keys()
    if unknown:
        raise ValueError(f"owners without a label: {sorted(unknown)}")
    return np.asarray([place[record.owner] for record in records], np.int32)


def over_records(
    tokens: TokenBatch,
    batch_size: int,
    place: Callable[[Any], Any],
    score: Callable,
    widths: Widths = (),
) -> Any:
    """Return ``score`` of batches of like length, in the order of the records.

    Args:
      tokens: N records; batch_size: rows that ``place`` puts on the devices.
      score: from a batch to arrays ``[B, ...]``.
      widths: of batches; where they differ in T, no result may have an axis T.
    """
    import jax

    from dareu_jax.parallel import on_host

    stream, parts, order = BatchStream(tokens, batch_size, 0, widths=widths), [], []
    for step in range(stream.steps_per_epoch):
        rows, valid = stream.once(step)
        values = on_host(score(place(stream.of(rows))))
        parts.append(jax.tree.map(lambda x, n=valid: x[:n], values))
        order.append(rows[:valid])
    back = np.argsort(np.concatenate(order))
    return jax.tree.map(lambda *xs: np.concatenate(xs)[back], *parts)
