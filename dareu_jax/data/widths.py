"""Widths of batches: few pairs (P, T), chosen from the lengths that texts have.

Every pair is a compiled program more and padding less. Pairs are nested: each next one
is at least as wide in prompts and in responses, so a batch has one smallest pair.
"""

import numpy as np

MULTIPLE = 8
"""Of the tokens of a width."""
MOST = 5
"""Widths of one stream of batches."""
WORTH = 2**15
"""Slots that a further width has to save: about what its compilation costs."""
CELLS = 1024
"""Pairs that are looked at; where there are more, their multiple is doubled."""
Widths = tuple[tuple[int, int], ...]
"""Pairs ``(P, T)``, the narrowest first; the last one holds every text."""


def rounded_up(size: int, multiple: int) -> int:
    """Return the smallest multiple that is not below a size."""
    return -(-size // multiple) * multiple


def fit_widths(
    lengths: np.ndarray,
    limits: tuple[int, int],
    *,
    batch_size: int = 1,
    passes: float = 1.0,
    among: Widths | None = None,
    most: int = MOST,
    worth: int = WORTH,
) -> Widths:
    """Return the nested widths that leave the fewest slots empty, at most ``most``.

    Args:
      lengths: ``[N, 2]`` tokens of prompts and of responses; limits: of both, the
        widths of the arrays that hold them.
      batch_size: rows of a batch, whose longest decides.
      passes: how often all N are read. A further width saves ``worth`` slots in them.
      among: widths to choose from; none: all multiples of `MULTIPLE`.
    """
    cells = _every(lengths, limits) if among is None else _given(lengths, limits, among)
    held = _held(lengths, limits, cells)
    rows = held // batch_size * batch_size
    rows[-1] = rounded_up(len(lengths), batch_size)
    slots, chains = fewest_slots(cells, rows, most)
    saved = -np.diff(slots) * passes
    return chains[int(np.argmin(np.append(saved >= max(worth, 1), False)))]


def _held(
    lengths: np.ndarray, limits: tuple[int, int], cells: np.ndarray
) -> np.ndarray:
    """Return how many texts each cell ``[C]`` holds, from those of like length."""
    prompt, response = np.minimum(-(-lengths // MULTIPLE) * MULTIPLE, limits).T
    side = limits[1] + 1
    kinds, count = np.unique(prompt * side + response, return_counts=True)
    pairs = np.stack(np.divmod(kinds, side), axis=1)
    return count @ (pairs[:, None] <= cells).all(axis=2)


def fewest_slots(
    cells: np.ndarray, rows: np.ndarray, most: int
) -> tuple[np.ndarray, list[Widths]]:
    """Return the fewest slots ``[most]`` with 1, 2, ... nested widths, and these.

    f_1(c) = n(c) |c|;  f_k(c) = min over c' in c of f_k-1(c') + (n(c) - n(c')) |c|,
    with |(P, T)| = P + T and n(c) the rows that c holds.

    Args:
      cells: ``[C, 2]`` widths to choose from, the last of which holds all.
      rows: ``[C]`` how many rows each holds.
    """
    size = cells.sum(axis=1)
    inside = (cells[:, None] <= cells).all(axis=2)
    more = (rows - rows[:, None]) * size
    best, before = [rows * size], [np.zeros(len(cells), int)]
    for _ in range(1, most):
        each = np.where(inside, best[-1][:, None] + more, np.iinfo(np.int64).max)
        before.append(each.argmin(axis=0))
        best.append(each.min(axis=0))
    chains = []
    for count in range(most):
        path = [len(cells) - 1]
        for step in range(count, 0, -1):
            path.append(int(before[step][path[-1]]))
        pairs = {(int(p), int(t)) for p, t in cells[path]}
        chains.append(tuple(sorted(pairs)))
    return np.asarray([x[-1] for x in best]), chains


def _every(lengths: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    """Return multiples ``[C, 2]`` up to the longest, at most `CELLS` of them."""
    multiple = MULTIPLE
    while True:
        sides = [
            np.unique(np.minimum(np.maximum(rounded_up(x, multiple), multiple), limit))
            for x, limit in zip(lengths.T, limits, strict=True)
        ]
        if len(sides[0]) * len(sides[1]) <= CELLS:
            grid = np.meshgrid(*sides, indexing="ij")
            return np.stack(grid, axis=-1).reshape(-1, 2)
        multiple *= 2


def _given(lengths: np.ndarray, limits: tuple[int, int], among: Widths) -> np.ndarray:
    """Return nested widths to choose from, up to the first that holds all."""
    nested = within(among, limits)
    return np.asarray(nested[: levels(lengths, nested).max() + 1])


def within(widths: Widths, limits: tuple[int, int]) -> Widths:
    """Return nested widths cut to ``limits``, which are the last of them."""
    pairs = {(min(p, limits[0]), min(t, limits[1])) for p, t in (*widths, limits)}
    return tuple(sorted(pairs))


def levels(lengths: np.ndarray, widths: Widths) -> np.ndarray:
    """Return the place ``[N]`` of the narrowest of ``widths`` that holds each text."""
    holds = (lengths[:, None] <= np.asarray(widths)).all(axis=2)
    return np.argmax(holds, axis=1)
