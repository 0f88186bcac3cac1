"""Runs work on several encoders side by side, where there are cores and memory for all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cnclip_machine import available_memory, usable_cores

T = TypeVar("T")

_PROCESS_BYTES = 10**9
"""What torch takes in a process besides weights."""


def threads_of_each(encoders: int, fp32_bytes: int) -> int:
    """How many threads the work on each encoder may have.

    Args:
        encoders: how many there are.
        fp32_bytes: size of their weights. A process takes up to twice that of its own, and 1 GB beside.

    Returns:
        The cores divided among encoders that may be worked on side by side: with threads for all cores each, they
        would fight for them. 0, which stands for all cores, where they have to be worked on one after the other.
    """
    cores = usable_cores()
    if encoders < 2 or cores < encoders or available_memory() < 2 * fp32_bytes + encoders * _PROCESS_BYTES:
        return 0
    return cores // encoders


def run_jobs(jobs: Sequence[Callable[[], T]], *, side_by_side: bool) -> list[T]:
    """Calls functions, which wait for processes, and gives what they return, in order.

    Raises:
        Exception: what the first of them raised that did; side by side, the others have ended by then.
    """
    if not side_by_side:
        return [job() for job in jobs]
    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        return [done.result() for done in [pool.submit(job) for job in jobs]]
