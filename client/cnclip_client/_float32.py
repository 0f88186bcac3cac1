"""A float32 as text, with the nine significant digits that it needs to come back unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIGITS", "lists_of", "rounded"]

DIGITS = ".9g"

# So many numbers at once stay in a core's cache while they are worked on.
_CHUNK = 16 * 1024


def _cells(texts: Sequence[bytes]) -> NDArray[np.uint32]:
    """Returns texts as four bytes each, zeros behind the shorter ones."""
    return np.frombuffer(b"".join(text.ljust(4, b"\0") for text in texts), np.uint32)


_THREE = [b"%03d" % number for number in range(1000)]
_DIGITS = _cells([*_THREE, *(three.rstrip(b"0") for three in _THREE)])  # from 1000 on without zeros at their end
_ONES = _cells([b"%d" % one for one in range(10)] + [b"%d." % one for one in range(10)])
_BEFORE = _cells([b", ", b", -"])
# From 1 to below 10, from 0.1 to below 1, ...: what makes a whole number of nine digits, and then one of 12 decimals.
_TO_NINE = 10.0 ** np.arange(8, 13)
_TO_TWELVE = 10.0 ** np.arange(4, -1, -1)


def rounded(values: NDArray[np.float32]) -> list[float]:
    """Returns numbers, [n], as floats that JSON writes with so many digits and no more."""
    return [float(format(value, DIGITS)) for value in values.tolist()]


def lists_of(values: NDArray[np.float32]) -> Iterator[bytes]:
    """Yields each row of finite numbers, [n, D], as text: `0.0625, -1.5e-05`, what `%.9g` writes of each, to the byte.

    Python takes 0.15 microseconds to write a number so; here numpy makes the digits of all at once, in less than half
    of that. It does so from 0.0001 to below 10, where doubles come to the digits of each and every float32: all were
    tried. Other numbers, some of which take an exponent, are left to Python.
    """
    rows = max(1, _CHUNK // values.shape[1])
    for start in range(0, len(values), rows):
        yield from _lists_of(values[start : start + rows])


def _lists_of(values: NDArray[np.float32]) -> list[bytes]:
    numbers = values.astype(np.float64).ravel()
    sizes = np.abs(numbers)
    decade = sum((sizes < one).view(np.int8) for one in (1, 0.1, 0.01, 0.001))
    whole = np.rint(sizes * _TO_NINE.take(decade))
    odd = (sizes < 1e-4) | (sizes >= 10)
    whole[odd] = 0
    twelve = (whole * _TO_TWELVE.take(decade)).astype(np.int64)
    millions, back = _divided(twelve, 1_000_000)
    # In 32 bits a division takes a third of the time.
    millions, back = millions.astype(np.uint32), back.astype(np.uint32)
    (thousands, second), (third, fourth) = _divided(millions, 1000), _divided(back, 1000)
    ones, first = _divided(thousands, 1000)
    # Zeros at the end are left out, and a point with nothing behind it.
    ends = fourth == 0
    cells = np.empty((len(numbers), 6), np.uint32)
    cells[:, 5] = _DIGITS.take(fourth + 1000)
    cells[:, 4] = _DIGITS.take(third + 1000 * ends)
    ends &= third == 0
    cells[:, 3] = _DIGITS.take(second + 1000 * ends)
    ends &= second == 0
    cells[:, 2] = _DIGITS.take(first + 1000 * ends)
    ends &= first == 0
    cells[:, 1] = _ONES.take(ones + 10 * ~ends)
    cells[:, 0] = _BEFORE.take((numbers < 0).view(np.int8))
    if odd.any():
        texts = [b", %.9g" % number for number in numbers[odd].tolist()]
        cells[odd] = np.array(texts, "S24").view(np.uint32).reshape(-1, 6)
    lines = cells.view(np.uint8).reshape(len(values), -1)
    lines[:, :2] = ord("\n"), 0  # in place of a row's first comma
    return lines.tobytes().translate(None, b"\0").split(b"\n")[1:]


def _divided(numbers: NDArray[Any], by: int) -> tuple[NDArray[Any], NDArray[Any]]:
    # numpy's divmod, which minds the sign, takes three times as long.
    whole = numbers // by
    return whole, numbers - whole * by
