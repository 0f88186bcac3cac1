"""Holds the simulation of queueing.py to a real server: the text ensemble under random load.

    python benchmarks/queueing_measured.py build/demo/repository --model demo

The server's time for a batch is measured first, one request at a time, then requests of one text arrive at random for a
while at several loads, whether or not earlier ones have been answered. The simulation gets the very same arrivals, and
service times that vary as the measured ones of single texts did.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from cnclip_server import TritonServer
from queueing import FloatArray, LinearService, percentiles, poisson_arrivals, simulate

SIZES = (1, 2, 4, 8, 16)
REPEATS = 300


def texts(rows: int) -> list[Any]:
    """The input of a request of so many texts."""
    tensor = triton.InferInput("TEXT", [rows, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([["一只游隼停在木桩上，望着远处的草地".encode()]] * rows, dtype=object))
    return [tensor]


def measure_service(client: Any, model: str) -> tuple[LinearService, FloatArray]:
    """Measures requests of several sizes, one at a time.

    Returns:
        The line through the medians, and the times of single texts as multiples of their median.
    """
    medians, variation = [], np.ones(1)
    for rows in SIZES:
        request = texts(rows)
        client.infer(model, request)  # the first of a shape takes longer, and the very first connects
        taken = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            client.infer(model, request)
            taken.append(time.perf_counter() - start)
        medians.append(np.median(taken))
        if rows == 1:
            variation = np.array(taken) / np.median(taken)
    row_s, zero_s = np.polyfit(SIZES, medians, 1)
    return LinearService(float(zero_s + row_s), float(row_s)), variation


def measure_latencies(client: Any, model: str, arrivals: FloatArray) -> FloatArray:
    """Sends a request at each of the times, and gives their latencies, counted from when each was due."""
    latencies = np.full(len(arrivals), np.nan)
    left = threading.Semaphore(0)
    request = texts(1)
    start = time.perf_counter() + 0.1

    def answered(index: int, error: Any) -> None:
        if error is None:
            latencies[index] = time.perf_counter() - start - arrivals[index]
        left.release()

    for index, due in enumerate(arrivals):
        time.sleep(max(0.0, start + due - time.perf_counter()))
        client.async_infer(model, request, lambda result, error, index=index: answered(index, error))
    for _ in arrivals:
        left.acquire()
    if np.isnan(latencies).any():
        raise SystemExit(f"{np.isnan(latencies).sum()} requests failed; look at the server's log")
    return latencies


def main() -> None:
    """Prints both side by side."""
    parser = argparse.ArgumentParser(description="Measured and simulated latencies of the text ensemble.")
    parser.add_argument("repository", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.2, 0.4, 0.6], help="of one request at a time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = f"{arguments.model}-text"
    with (
        TritonServer(arguments.repository, grpc_port=0, http_port=0, metrics_port=0) as server,
        triton.InferenceServerClient(server.grpc_url) as client,
    ):
        service, variation = measure_service(client, model)
        print(f"a batch takes {service.first_s * 1e3:.2f} ms, and {service.row_s * 1e3:.2f} ms for each further row\n")
        print("| requests/s | | p50 ms | p95 ms | p99 ms |\n|---|---|---|---|---|")
        for load in arguments.loads:
            rate = load / service.first_s
            rng = np.random.default_rng(arguments.seed)
            arrivals = poisson_arrivals(rate, int(rate * arguments.seconds), rng)
            measured = measure_latencies(client, model, arrivals)
            simulated = simulate(
                arrivals, lambda rows, rng=rng: service(rows) * rng.choice(variation), max_batch_size=16
            )
            for name, latencies in (("measured", measured), ("simulated", simulated)):
                cells = [f"{rate:,.0f}", name, *(f"{value:.1f}" for value in percentiles(latencies))]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
