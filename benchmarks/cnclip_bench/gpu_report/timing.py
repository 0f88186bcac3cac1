"""How long a run takes: the first, and those after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

__all__ = ["time_runs"]

_LEAST_RUNS = 2
# Clocks rise, and libraries choose kernels.
_NOT_COUNTED = 3


def time_runs(run: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Runs something once, and then again for so many seconds, twice at least.

    Args:
        run: Does it and waits for its result.
        seconds: How long.

    Returns:
        Milliseconds of the first run, and the median of the others without the first three, if there are more.
    """
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) <= _LEAST_RUNS or time.perf_counter() - began < seconds:
        before = time.perf_counter()
        run()
        taken.append(time.perf_counter() - before)
    first, *others = taken
    counted = others[_NOT_COUNTED:] if len(others) > 2 * _NOT_COUNTED else others
    return first * 1000, median(counted) * 1000
