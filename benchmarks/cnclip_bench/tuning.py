"""Finds settings that serve faster, by coordinate descent: one setting is varied at a time, the best found so far kept.

Machines are noisy, so two settings are only ever compared side by side: both are served, loads alternate between them,
and one is better if the ratios of the rounds say so beyond their scatter. What was picked out of many for being the
best is partly luck, so the winner is measured against the start once more, and that ratio is the one reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cnclip_bench.load import Sustained
from cnclip_bench.serving_settings import Settings

__all__ = ["Comparison", "Goal", "Outcome", "Served", "coordinates", "tune"]

_PASSES = 2
_LEAST_ROUNDS = 3
# That prepare images or texts.
_MOST_PROCESSES = 16
# Standard errors by which a mean must differ from another to count.
_SURE = 2.0


class Served(Protocol):
    """What is served with some settings."""

    def __call__(self) -> Sustained:
        """Puts it under load once."""


Serve = Callable[[Settings], AbstractContextManager[Served]]


@dataclass(frozen=True)
class Goal:
    """What is better.

    Attributes:
        min_gain: How much faster settings must be, as a ratio less 1, to be worth changing.
        max_latency_ms: What the 95th percentile of requests may take; None for any time.
    """

    min_gain: float
    max_latency_ms: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two settings side by side.

    Attributes:
        settings: The challenger.
        ratios: Its rate over the other's, of each round.
        items_per_s: Of the other and the challenger, medians of the rounds.
        p95_ms: Of the other's requests and the challenger's.
        problem: Why it was not compared, if it was not.
    """

    settings: Settings
    ratios: tuple[float, ...] = ()
    items_per_s: tuple[float, float] = (math.nan, math.nan)
    p95_ms: tuple[float, float] = (math.nan, math.nan)
    problem: str = ""

    @property
    def gain(self) -> float:
        """The geometric mean of the ratios, less 1."""
        return math.exp(float(np.log(self.ratios).mean())) - 1

    @property
    def bounds(self) -> tuple[float, float]:
        """The ratio less 1 that is surely reached, and the one that surely is not."""
        logs = np.log(self.ratios)
        sure = _SURE * float(logs.std(ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
        return math.exp(min(float(logs.mean()) - sure, 700)) - 1, math.exp(min(float(logs.mean()) + sure, 700)) - 1

    def wins(self, goal: Goal) -> bool:
        """Whether the challenger is better."""
        if self.problem:
            return False
        before, after = self.p95_ms
        if goal.max_latency_ms is not None and max(before, after) > goal.max_latency_ms:
            # As long as the bound is broken, latency is what counts.
            return after < before * (1 - goal.min_gain)
        return self.gain >= goal.min_gain and self.bounds[0] > 0


@dataclass(frozen=True)
class Outcome:
    """What a search came to.

    Attributes:
        start: The settings that it began with.
        best: Those that it ends with; the start's own where nothing was better.
        trials: All comparisons, in their order.
        confirmation: The winner against the start, measured anew; None where there is no winner.
    """

    start: Settings
    best: Settings
    trials: tuple[Comparison, ...]
    confirmation: Comparison | None


def coordinates(start: Settings, cores: int) -> list[list[dict[str, int]]]:
    """What is tried, setting by setting: each alternative is the values that it changes.

    Instances and threads go together: copies of an encoder that each take all cores are in each other's way, and
    processes that decode images divide the cores among them. A single one may also leave cores to an encoder.
    """
    powers = [2**power for power in range(8)]
    if start.encoder_threads is None:
        encoders = [{"encoder_instances": count} for count in (1, 2, 3, 4)]
    else:
        counts = [count for count in powers if count <= cores]
        encoders = [{"encoder_instances": n, "encoder_threads": 0 if n == 1 else cores // n} for n in counts]
    preparations = [{"preparation_instances": count} for count in powers if count <= min(cores, _MOST_PROCESSES)]
    if start.preparation_threads is not None:
        preparations = [{**one, "preparation_threads": 0} for one in preparations]
        fewer = [count for count in powers if count < cores]
        preparations += [{"preparation_instances": 1, "preparation_threads": threads} for threads in fewer]
    sizes = [size for size in powers if start.max_batch_size / 4 <= size <= start.max_batch_size * 4]
    preferred = start.preferred_batch_size and [size for size in powers if size <= start.max_batch_size]
    return [
        encoders,
        # One that is preferred decides what batches there are, and the most is a bound and no setting.
        [{"preferred_batch_size": size} for size in preferred or ()] or [{"max_batch_size": size} for size in sizes],
        [{"encoder_queue_delay_microseconds": delay} for delay in (0, 1000, 5000)],
        preparations,
    ]


def tune(
    serve: Serve,
    start: Settings,
    alternatives: list[list[dict[str, int]]],
    goal: Goal,
    rounds: int,
    report: Callable[[Comparison, bool], None],
) -> Outcome:
    """Searches for better settings.

    Args:
        serve: Serves with some settings; raises ValueError or RuntimeError where they can't be served.
        start: What to begin with.
        alternatives: What to try, from `coordinates`.
        goal: What is better.
        rounds: How often two are compared at most; a clear loser is dropped after three.
        report: Is told each comparison and whether the challenger won.

    Raises:
        RuntimeError: The start can't be served.
    """
    best, trials, tried = start, [], {start}
    with ExitStack() as serving:
        holder = serving.enter_context(ExitStack())
        served = holder.enter_context(serve(best))
        for _ in range(_PASSES):
            before = best
            for values in (values for alternative in alternatives for values in alternative):
                challenger = replace(best, **values)
                if challenger in tried:
                    continue
                tried.add(challenger)
                with ExitStack() as candidate:
                    comparison, its_served = _challenge(candidate, serve, challenger, served, goal, rounds)
                    trials.append(comparison)
                    won = comparison.wins(goal)
                    report(comparison, won)
                    if won and its_served is not None:
                        holder.close()
                        best, served, holder = challenger, its_served, candidate.pop_all()
                        serving.push(holder)
            if best == before:
                break
        confirmation = None
        if best != start:
            with serve(start) as first:
                confirmation = compare(best, first, served, goal, rounds)
    confirmed = confirmation is not None and confirmation.wins(goal)
    return Outcome(start, best if confirmed else start, tuple(trials), confirmation)


def compare(settings: Settings, holder: Served, challenger: Served, goal: Goal, rounds: int) -> Comparison:
    """Compares two that are served, in turns, after one round of each that does not count."""
    holder(), challenger()
    pairs: list[tuple[Sustained, Sustained]] = []
    for turn in range(rounds):
        if turn % 2 == 0:
            first = holder()
            pairs.append((first, challenger()))
        else:
            second = challenger()
            pairs.append((holder(), second))
        comparison = _summed_up(settings, pairs)
        if len(pairs) >= _LEAST_ROUNDS and goal.max_latency_ms is None and comparison.bounds[1] < goal.min_gain:
            break
    return comparison


def _challenge(
    opened: ExitStack, serve: Serve, settings: Settings, holder: Served, goal: Goal, rounds: int
) -> tuple[Comparison, Served | None]:
    try:
        challenger = opened.enter_context(serve(settings))
    except (ValueError, RuntimeError) as error:
        return Comparison(settings, problem=str(error)), None
    return compare(settings, holder, challenger, goal, rounds), challenger


def _summed_up(settings: Settings, pairs: list[tuple[Sustained, Sustained]]) -> Comparison:
    def medians(of: Callable[[list[Sustained]], float]) -> tuple[float, float]:
        first, second = zip(*pairs, strict=True)
        return of(list(first)), of(list(second))

    return Comparison(
        settings,
        tuple(second.items_per_s / first.items_per_s for first, second in pairs),
        medians(lambda ones: float(np.median([one.items_per_s for one in ones]))),
        medians(lambda ones: 1000 * float(np.percentile([wait for one in ones for wait in one.waits_s], 95))),
    )
