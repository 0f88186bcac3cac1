"""A closed loop: so many requests under way at every moment, each replaced when it is answered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cnclip_bench.stats import Latency

__all__ = ["Answer", "Level", "measure_levels", "run_load"]

Request = Callable[[], None]


@dataclass(frozen=True)
class Answer:
    """When one request was sent and answered, in seconds of `time.perf_counter`."""

    sent_s: float
    answered_s: float


@dataclass(frozen=True)
class Level:
    """What a server does under so many requests at once.

    Attributes:
        concurrency: Requests under way.
        batch_size: Items a request.
        items_per_s: The median of the rounds.
        rounds_items_per_s: Of each round.
        latency: Of the requests of all rounds, as the caller waits for them.
    """

    concurrency: int
    batch_size: int
    items_per_s: float
    rounds_items_per_s: tuple[float, ...]
    latency: Latency


def run_load(request: Request, concurrency: int, seconds: float) -> list[Answer]:
    """Keeps requests under way, from as many threads, and gives the answers of the steady state in their order.

    The first answer of each thread does not count, nor do those after the time is over, when fewer and fewer are under
    way. It goes on beyond its time until twice as many as there are threads have been counted.

    Args:
        request: Sends one and waits for its answer.
        concurrency: How many at once.
        seconds: For how long.

    Raises:
        Exception: The first that a request raised; all threads have ended.
    """
    answers: list[list[Answer]] = [[] for _ in range(concurrency)]
    errors: list[BaseException] = []
    began, ended = time.perf_counter(), threading.Event()

    def work(mine: list[Answer]) -> None:
        try:
            while not ended.is_set():
                sent = time.perf_counter()
                request()
                mine.append(Answer(sent, time.perf_counter()))
        except BaseException as error:
            errors.append(error)
            ended.set()

    threads = [threading.Thread(target=work, args=(mine,)) for mine in answers]
    for thread in threads:
        thread.start()
    try:
        while not ended.wait(0.01):
            enough = sum(max(0, len(mine) - 1) for mine in answers) >= 2 * concurrency
            if time.perf_counter() - began >= seconds and enough:
                break
        until = time.perf_counter()
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    counted = [answer for mine in answers for answer in mine[1:] if answer.answered_s <= until]
    return sorted(counted, key=lambda answer: answer.answered_s)


def rate(answers: Sequence[Answer]) -> float:
    """Answers a second: those after the first, over the time since it.

    From answer to answer, and not from any moment to any other: a batch is answered at one stroke, and a window that
    begins just before one and ends just after another would count one too many.

    Raises:
        ValueError: All came at once, or there are fewer than two.
    """
    taken = answers[-1].answered_s - answers[0].answered_s if len(answers) > 1 else 0.0
    if taken <= 0:
        raise ValueError("too few answers to tell a rate; give more --seconds")
    return (len(answers) - 1) / taken


def measure_levels(
    request_of: Callable[[int], Request], levels: Sequence[tuple[int, int]], seconds: float, rounds: int
) -> list[Level]:
    """Measures several loads in turns, every other round backwards.

    Args:
        request_of: Makes a request of so many items.
        levels: Requests at once and items a request, of each load.
        seconds: How long each is kept up in a round.
        rounds: How often.
    """
    rates: dict[tuple[int, int], list[float]] = {level: [] for level in levels}
    waits: dict[tuple[int, int], list[float]] = {level: [] for level in levels}
    for turn in range(rounds):
        for level in levels if turn % 2 == 0 else reversed(levels):
            concurrency, batch_size = level
            answers = run_load(request_of(batch_size), concurrency, seconds)
            rates[level].append(batch_size * rate(answers))
            waits[level] += [answer.answered_s - answer.sent_s for answer in answers]
    return [
        Level(
            concurrency,
            batch_size,
            sorted(rates[concurrency, batch_size])[rounds // 2],
            tuple(rates[concurrency, batch_size]),
            Latency.of(f"{concurrency} x {batch_size}", waits[concurrency, batch_size]),
        )
        for concurrency, batch_size in levels
    ]
