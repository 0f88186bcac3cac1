"""How many requests are kept under way: found on simulated servers, and held on a fake one."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from cnclip_client import Client, Limits
from cnclip_client._flow.concurrency import Concurrency, Found

ROWS = 8


class Simulation:
    """A run against a server whose rate depends on how many requests are under way.

    Args:
        rate: Requests under way -> requests a second.
        noise: Spread of each answer's time, as a share of it.
        most: The run's bound.
    """

    def __init__(self, rate: Callable[[int], float], noise: float = 0.0, most: int = 64, seed: int = 0) -> None:
        self.rate = rate
        self.now_s = 0.0
        self.seen: list[tuple[float, int]] = []
        self.answers = 0
        self._noise = noise
        self._random = random.Random(seed)
        self.concurrency = Concurrency(most, clock=lambda: self.now_s)

    def run(self, seconds: float, source_rate: float = float("inf")) -> None:
        """Answers come one by one; `source_rate` is how many requests a second the items are enough for."""
        under_way: list[float] = []
        end = self.now_s + seconds
        ready = self.now_s
        while self.now_s < end:
            while len(under_way) < self.concurrency.limit and ready <= self.now_s:
                # Little's law: with n under way each takes n / rate.
                n = len(under_way) + 1
                took = n / self.rate(n) * self._random.uniform(1 - self._noise, 1 + self._noise)
                heapq.heappush(under_way, self.now_s + took)
                ready = max(ready, self.now_s - 1 / source_rate) + 1 / source_rate
            if under_way and (under_way[0] <= ready or len(under_way) >= self.concurrency.limit):
                self.now_s = max(self.now_s, heapq.heappop(under_way))
                self.concurrency.answered(ROWS, len(under_way) + 1)
                self.answers += 1
                self.seen.append((self.now_s, self.concurrency.limit))
            else:
                self.now_s = ready

    def call(self, requests: int, again_after_s: float = 1.0) -> float:
        """A call of so many requests, as one of a program that makes many; returns the seconds that it took."""
        self.concurrency.resume()
        under_way: list[float] = []
        begin, sent = self.now_s, 0
        while sent < requests or under_way:
            while sent < requests and len(under_way) < self.concurrency.limit:
                n = len(under_way) + 1
                took = n / self.rate(n) * self._random.uniform(1 - self._noise, 1 + self._noise)
                heapq.heappush(under_way, self.now_s + took)
                sent += 1
            if sent == requests:
                self.concurrency.pause()
            self.now_s = max(self.now_s, heapq.heappop(under_way))
            self.concurrency.answered(ROWS, len(under_way) + 1)
            self.seen.append((self.now_s, self.concurrency.limit))
        took, self.now_s = self.now_s - begin, self.now_s + again_after_s
        return took

    def usual(self, since_s: float) -> float:
        """The limit most of the time."""
        limits = sorted(limit for moment, limit in self.seen if moment >= since_s)
        return limits[len(limits) // 2]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("enough", [4, 8, 16, 64])
def test_as_many_as_the_server_has_use_for(enough: int, seed: int) -> None:
    run = Simulation(lambda n: 20.0 * min(n, enough), noise=0.2, seed=seed)
    run.run(120)
    assert enough <= run.usual(since_s=60) <= 2 * enough
    # Most of what could be had was had, the trials included.
    assert run.answers >= 0.8 * 20 * enough * 120


def test_a_server_that_more_requests_slow_down_is_given_few() -> None:
    run = Simulation(lambda n: 400.0 / n, noise=0.1)
    run.run(60)
    assert run.usual(since_s=10) == 4


def test_the_bound_holds() -> None:
    run = Simulation(lambda n: 20.0 * n, most=5)
    run.run(60)
    assert max(limit for _, limit in run.seen) == 5
    assert run.usual(since_s=30) == 5
    one = Simulation(lambda n: 20.0 * n, most=1)
    one.run(20)
    assert {limit for _, limit in one.seen} == {1}


def test_a_server_that_grows_or_shrinks_is_followed() -> None:
    run = Simulation(lambda n: 50.0 * min(n, 2), noise=0.05)
    run.run(60)
    assert run.usual(since_s=30) <= 4
    run.rate = lambda n: 50.0 * min(n, 16)
    run.run(120)
    assert run.usual(since_s=140) >= 16
    run.rate = lambda n: 50.0 * min(n, 2)
    run.run(240)
    assert run.usual(since_s=360) <= 4


def test_a_slow_source_changes_nothing() -> None:
    run = Simulation(lambda n: 100.0 * n)
    run.run(60, source_rate=30.0)
    assert {limit for _, limit in run.seen} == {4}


def test_a_full_queue_halves_it_once() -> None:
    run = Simulation(lambda n: 20.0 * n)
    run.run(60)
    before = run.concurrency.limit
    # A proxy whose server restarts refuses all that was under way.
    for _ in range(before):
        run.concurrency.overloaded(run.now_s - 0.1)
    assert run.concurrency.limit == before // 2
    for _ in range(10):
        run.now_s += 0.1
        run.concurrency.overloaded(run.now_s)
    assert run.concurrency.limit == 1
    run.run(60)
    assert run.concurrency.limit > 16


def test_what_came_before_a_failure_counts_for_nothing() -> None:
    now = [0.0]
    concurrency = Concurrency(64, clock=lambda: now[0])
    for _ in range(1000):
        now[0] += 0.1
        concurrency.answered(ROWS, 4)
        concurrency.disturbed()
    assert concurrency.limit == 4


def test_a_run_grows_where_it_pays(triton: Any) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.05)
    with Client(triton.url, model="vit-b-16", limits=Limits(in_flight=12)) as client:
        client.encode_texts(["a"] * 300, batch_size=1)
        assert triton.most_at_once > 4
        triton.forget()
        triton.before_infer = lambda attempt, items: time.sleep(0.05)
        client.encode_texts(["a"] * 24, batch_size=1)
        assert triton.most_at_once > 4  # what was found is kept for the next call
    triton.forget()
    triton.before_infer = lambda attempt, items: time.sleep(0.05)
    with Client(triton.url, model="vit-b-16", limits=Limits(in_flight=12)) as client:
        client.encode_texts(["a"] * 8, batch_size=1)
        assert triton.most_at_once <= 4


@pytest.mark.parametrize("seed", range(3))
def test_short_calls_come_to_what_one_long_run_finds(seed: int) -> None:
    """Calls of 64 requests, which a server with use for 16 at once could answer in 0.2 s each."""
    run = Simulation(lambda n: 20.0 * min(n, 16), noise=0.2, seed=seed)
    first = run.call(64)
    for _ in range(100):
        run.call(64)
    last = [run.call(64) for _ in range(20)]
    assert sorted(last)[10] < 0.6 * first
    assert 16 <= run.usual(since_s=run.now_s - 20) <= 32


def test_a_short_call_measures_nothing_of_its_end_or_of_the_time_between() -> None:
    run = Simulation(lambda n: 400.0 / n, noise=0.1)
    for pause_s in (0.0, 100.0) * 40:
        run.call(64, again_after_s=pause_s)
    assert {limit for _, limit in run.seen[-64 * 10 :]} <= {4, 8}
    assert run.usual(since_s=0) == 4


def test_runs_at_the_same_time_have_each_their_own() -> None:
    found = Found()
    with found.kept("a", 64, 1) as one, found.kept("a", 64, 1) as two, found.kept("b", 64, 1) as other:
        assert len({id(one), id(two), id(other)}) == 3
        one.limit, one.measured = 16, 5
        two.limit, two.measured = 8, 2
    with found.kept("a", 64, 1) as again:
        assert again.limit == 16
