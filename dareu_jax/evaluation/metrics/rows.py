"""Checks and masked means of values per row, in NumPy; a missing value is an error."""

import numpy as np

from dareu_jax.errors import UserError

Array = np.ndarray


def finite(what: str, values: Array) -> Array:
    """Return ``values`` as float64, none of them NaN or infinite, at least one there.

    Raises:
      UserError: there is none, or one is not finite; its index is named.
    """
    numbers = np.asarray(values, np.float64)
    if not numbers.size:
        raise UserError(f"{what}: there is no value")
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        place = tuple(bad[0].tolist())
        index = place[0] if len(place) == 1 else place
        raise UserError(
            f"{what}: {numbers[place]} at index {index}, {len(bad)} of {numbers.size} "
            "values are not finite; look for a diverged model or bad input"
        )
    return numbers


def tokens_of(what: str, values: Array, mask: Array) -> tuple[Array, Array]:
    """Return float64 values ``[B, T]``, 0 outside the mask, and counts ``[B]``.

    Raises:
      UserError: a row has no token, or a value inside the mask is not finite.
      ValueError: the two are not of one shape ``[B, T]``.
    """
    values, mask = np.asarray(values, np.float64), np.asarray(mask, bool)
    if values.shape != mask.shape or values.ndim != 2:
        raise ValueError(f"{what}: values {values.shape} with a mask {mask.shape}")
    count = mask.sum(axis=1)
    if len(count) and not count.all():
        raise UserError(f"{what}: row {int(np.argmin(count))} has no response token")
    return finite(what, np.where(mask, values, 0.0)), count


def means_of(what: str, values: Array, mask: Array) -> Array:
    """Return 1/T sum_t values_t ``[B]`` inside the mask; raises as `tokens_of`."""
    values, count = tokens_of(what, values, mask)
    return values.sum(axis=1) / count
