"""A float32 as text, with the nine significant digits that it needs to come back unchanged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["DIGITS", "rounded"]

DIGITS = ".9g"


def rounded(values: NDArray[np.float32]) -> list[float]:
    """Returns numbers, [n], as floats that JSON writes with so many digits and no more."""
    return [float(format(value, DIGITS)) for value in values.tolist()]
