"""What a series of timings comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

__all__ = ["Latency", "in_turns", "median_ratio", "rates_of", "served_ratios", "timed_in_turns"]

_Key = TypeVar("_Key")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Latency:
    """How long one thing took, as Chinese-CLIP's `speed_benchmark.py` sums it up, in milliseconds.

    Attributes:
        name: What was timed.
        rounds: How often.
        mean_ms, sd_ms, min_ms, max_ms, median_ms, p95_ms, p99_ms: Of all rounds; the standard deviation is the
            sample's.
    """

    name: str
    rounds: int
    mean_ms: float
    sd_ms: float
    min_ms: float
    max_ms: float
    median_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, name: str, seconds: Sequence[float]) -> Latency:
        """Sums up.

        Args:
            name: What was timed.
            seconds: How long each round took.

        Raises:
            ValueError: There is no round.
        """
        if not len(seconds):
            raise ValueError(f"{name} was not timed: give at least one round")
        ms = np.asarray(seconds) * 1000
        sd = float(ms.std(ddof=1)) if len(ms) > 1 else 0.0
        median, p95, p99 = np.percentile(ms, [50, 95, 99]).tolist()
        return cls(name, len(ms), float(ms.mean()), sd, float(ms.min()), float(ms.max()), median, p95, p99)


def in_turns(jobs: Mapping[_Key, Callable[[], _Found]], rounds: int) -> dict[_Key, list[_Found]]:
    """Does jobs in turns, so many rounds, and gives what each of them came to in each round."""
    found: dict[_Key, list[_Found]] = {key: [] for key in jobs}
    for turn in range(rounds):
        # Every other round backwards, so that none always follows the same one.
        for key in jobs if turn % 2 == 0 else reversed(list(jobs)):
            found[key].append(jobs[key]())
    return found


def timed_in_turns(
    jobs: Mapping[str, Callable[[], object]], rounds: int, timer: Callable[[], float]
) -> dict[str, list[float]]:
    """Times jobs in turns, after one round of each that does not count.

    Args:
        jobs: What to do, by name.
        rounds: How often each.
        timer: Gives seconds, such as `time.perf_counter`.

    Returns:
        The seconds of each job's rounds.
    """
    for job in jobs.values():
        job()

    def timed(job: Callable[[], object]) -> float:
        began = timer()
        job()
        return timer() - began

    return in_turns({name: partial(timed, job) for name, job in jobs.items()}, rounds)


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the ratios of two series that were measured in turns, round by round."""
    return float(np.median(np.asarray(over) / np.asarray(under)))


def rates_of(timings: Mapping[str, Sequence[float]], items: int) -> dict[str, list[float]]:
    """How many items a second each way's rounds of so many seconds did."""
    return {way: [items / seconds for seconds in rounds] for way, rounds in timings.items()}


def served_ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """How many times each other way's rate `served` is."""
    return {way: median_ratio(rates["served"], rate) for way, rate in rates.items() if way != "served"}
