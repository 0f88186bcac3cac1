"""The simulation against what queueing theory says in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.benchmarks.loading import load

queueing = load("queueing")

COUNT = 100_000
# One run at a load of 0.8 scatters by some 2.5 %, so the mean of eight by 0.9 %: the tolerance is three to four of that.
SEEDS = range(8)
TOLERANCE = 0.03


def arrivals(rate: float, seed: int = 0) -> np.ndarray:
    return queueing.poisson_arrivals(rate, COUNT, np.random.default_rng(seed))


def exponential(seed: int) -> Callable[[int], float]:
    service = np.random.default_rng(1000 + seed)
    return lambda rows: float(service.exponential())


def test_m_d_1() -> None:
    """Pollaczek-Khinchine: the mean wait is load / (2 (1 - load)) services."""
    load = 0.8
    latencies = [queueing.simulate(arrivals(load, seed), lambda rows: 1.0) for seed in SEEDS]
    assert np.mean(latencies) == pytest.approx(1 + load / (2 * (1 - load)), rel=TOLERANCE)
    assert np.min(latencies) >= 1 - 1e-6


def test_m_m_1() -> None:
    """Latencies are exponential with mean 1 / (1 - load)."""
    load = 0.7
    latencies = [queueing.simulate(arrivals(load, seed), exponential(seed)) for seed in SEEDS]
    assert np.mean(latencies) == pytest.approx(1 / (1 - load), rel=TOLERANCE)
    for share in (0.5, 0.95, 0.99):
        assert np.quantile(latencies, share) == pytest.approx(-math.log(1 - share) / (1 - load), rel=0.05)


def test_m_m_c() -> None:
    """Erlang C."""
    load, instances = 0.8, 4
    offered = load * instances
    last = offered**instances / math.factorial(instances) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(instances)) + last)
    latencies = [queueing.simulate(arrivals(offered, seed), exponential(seed), instances=instances) for seed in SEEDS]
    assert np.mean(latencies) == pytest.approx(1 + waits / (instances - offered), rel=TOLERANCE)


def test_batches() -> None:
    """Two wait while the first is served, and are served together; a batch takes no more than it may."""
    service = queueing.LinearService(first_s=1.0, row_s=0.5)
    times = np.array([0.0, 0.2, 0.4, 10.0])
    assert queueing.simulate(times, service, max_batch_size=4) == pytest.approx([1.0, 2.3, 2.1, 1.0])
    assert queueing.simulate(times, service, max_batch_size=1) == pytest.approx([1.0, 1.8, 2.6, 1.0])
    assert queueing.simulate(np.zeros(3), service, max_batch_size=2, instances=2) == pytest.approx([1.5, 1.5, 1.0])


def test_full_batches_reach_the_capacity() -> None:
    service = queueing.LinearService(first_s=1e-3, row_s=1e-4)
    rate = 10 * service.capacity(16, 2)
    times = arrivals(rate)
    ends = times + queueing.simulate(times, service, max_batch_size=16, instances=2)
    assert COUNT / ends.max() == pytest.approx(service.capacity(16, 2), rel=0.01)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert np.array_equal(arrivals(3.0), arrivals(3.0))
    assert np.diff(arrivals(3.0)).mean() == pytest.approx(1 / 3, rel=0.01)
