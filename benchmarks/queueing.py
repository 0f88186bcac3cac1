"""How long requests take at a server that batches: a discrete-event simulation of one step of Triton's.

    python benchmarks/queueing.py --rate 800 --instances 2 --max-batch-size 16 --first-ms 1.1 --row-ms 0.3

Requests of one row arrive at random (Poisson). An instance that is free takes all that wait, `max_batch_size` at most,
in the order of their arrival, as Triton's dynamic batcher does without a queue delay.
"""

from __future__ import annotations

import argparse
import heapq
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class LinearService:
    """The time of a batch grows by the row.

    Attributes:
        first_s: of a batch of one, in seconds.
        row_s: of each further row, in seconds.
    """

    first_s: float
    row_s: float

    def __call__(self, rows: int) -> float:
        """The seconds that a batch takes."""
        return self.first_s + (rows - 1) * self.row_s

    def capacity(self, max_batch_size: int, instances: int) -> float:
        """The rows a second that instances do with full batches."""
        return instances * max_batch_size / self(max_batch_size)


def poisson_arrivals(rate: float, count: int, rng: np.random.Generator) -> FloatArray:
    """The times, in seconds, at which requests arrive that know nothing of each other.

    Args:
        rate: requests a second on average.
        count: how many.
        rng: the source of randomness.
    """
    return np.cumsum(rng.exponential(1 / rate, count))


def simulate(
    arrivals: FloatArray, service: Callable[[int], float], *, max_batch_size: int = 1, instances: int = 1
) -> FloatArray:
    """Serves requests.

    Args:
        arrivals: when each arrives, in seconds, ascending.
        service: the seconds that a batch of so many rows takes; called once for each batch.
        max_batch_size: most rows of a batch.
        instances: how many batches are executed at a time.

    Returns:
        The latency of each request, in seconds, from its arrival to its batch's end.
    """
    times: list[float] = arrivals.tolist()  # a number of an array takes five times as long to read
    ends: list[float] = []
    free = [0.0] * instances
    while (first := len(ends)) < len(times):
        start = max(heapq.heappop(free), times[first])
        rows = bisect_right(times, start, first, min(first + max_batch_size, len(times))) - first
        end = start + service(rows)
        ends += [end] * rows
        heapq.heappush(free, end)
    return np.array(ends) - arrivals


def percentiles(latencies: FloatArray) -> list[float]:
    """The latencies, in milliseconds, that `PERCENTILES` of the requests stay below."""
    return [float(value) * 1e3 for value in np.percentile(latencies, PERCENTILES)]


def main() -> None:
    """Prints percentiles of latency for loads from a tenth of what the server can do to nearly all."""
    parser = argparse.ArgumentParser(description="Latency of a batching server under random load.")
    parser.add_argument("--rate", type=float, help="requests a second; default: several shares of what it can do")
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--max-batch-size", type=int, default=16)
    parser.add_argument("--first-ms", type=float, required=True, help="of a batch of one")
    parser.add_argument("--row-ms", type=float, required=True, help="of each further row")
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    service = LinearService(arguments.first_ms / 1e3, arguments.row_ms / 1e3)
    capacity = service.capacity(arguments.max_batch_size, arguments.instances)
    rates = [arguments.rate] if arguments.rate else [capacity * share for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)]
    print(f"it can do {capacity:,.0f}/s\n\n| requests/s | load | p50 ms | p95 ms | p99 ms |\n|---|---|---|---|---|")
    for rate in rates:
        arrivals = poisson_arrivals(rate, arguments.requests, np.random.default_rng(arguments.seed))
        latencies = simulate(arrivals, service, max_batch_size=arguments.max_batch_size, instances=arguments.instances)
        cells = [f"{rate:,.0f}", f"{rate / capacity:.0%}", *(f"{value:.1f}" for value in percentiles(latencies))]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
