"""A closed loop: so many requests under way at every moment, each replaced when it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median

from cnclip_bench.stats import Latency, in_turns

__all__ = ["Level", "Sustained", "measure_levels", "run_load"]

Request = Callable[[], object]

_LEAST_CYCLES = 2


@dataclass(frozen=True)
class Sustained:
    """What was kept up.

    Attributes:
        items_per_s: Of all threads together.
        waits_s: How long each request took, as its sender waited for it.
    """

    items_per_s: float
    waits_s: list[float]


@dataclass(frozen=True)
class Level:
    """What a server does under so many requests at once.

    Attributes:
        concurrency: Requests under way.
        batch_size: Items a request.
        items_per_s: The median of the rounds.
        rounds_items_per_s: Of each round.
        latency: Of the requests of all rounds.
    """

    concurrency: int
    batch_size: int
    items_per_s: float
    rounds_items_per_s: tuple[float, ...]
    latency: Latency


def run_load(request: Request, concurrency: int, seconds: float, items: int = 1) -> Sustained:
    """Keeps requests under way, from as many threads, and measures the steady state.

    The first answer of each thread does not count, nor do those after the time is over, when fewer and fewer are under
    way. It goes on beyond its time until each thread has had two that count. A thread's rate is that of its whole
    cycles: answers come in strokes, a batch at a time, and a window that cuts through them would count too many.

    Args:
        request: Sends one and waits for its answer.
        concurrency: How many at once.
        seconds: For how long.
        items: In a request.

    Raises:
        Exception: The first that a request raised; all threads have ended.
    """
    answered: list[list[float]] = [[] for _ in range(concurrency)]
    errors: list[BaseException] = []
    began, ended = time.perf_counter(), threading.Event()

    def work(mine: list[float]) -> None:
        try:
            while not ended.is_set():
                request()
                mine.append(time.perf_counter())
        except BaseException as error:
            errors.append(error)
            ended.set()

    threads = [threading.Thread(target=work, args=(mine,)) for mine in answered]
    for thread in threads:
        thread.start()
    try:
        while not ended.wait(0.01):
            enough = all(len(mine) > _LEAST_CYCLES for mine in answered)
            if enough and time.perf_counter() - began >= seconds:
                break
        counted = [list(mine) for mine in answered]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    # Each sends again as soon as it is answered, so a cycle is a request.
    waits = [after - before for mine in counted for before, after in pairwise(mine)]
    return Sustained(items * sum((len(mine) - 1) / (mine[-1] - mine[0]) for mine in counted), waits)


def measure_levels(
    request_of: Callable[[int], Request], levels: Sequence[tuple[int, int]], seconds: float, rounds: int
) -> list[Level]:
    """Measures several loads in turns.

    Args:
        request_of: Makes a request of so many items.
        levels: Requests at once and items a request, of each load.
        seconds: How long each is kept up in a round.
        rounds: How often.
    """

    def load(concurrency: int, batch_size: int) -> Sustained:
        return run_load(request_of(batch_size), concurrency, seconds, batch_size)

    found = []
    for (concurrency, batch_size), sustained in in_turns(
        {level: partial(load, *level) for level in levels}, rounds
    ).items():
        rates = tuple(one.items_per_s for one in sustained)
        waits = [wait for one in sustained for wait in one.waits_s]
        latency = Latency.of(f"{concurrency} x {batch_size}", waits)
        found.append(Level(concurrency, batch_size, median(rates), rates, latency))
    return found
