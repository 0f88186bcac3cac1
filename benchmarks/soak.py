"""Full load for as long as you like: does memory stay, do latencies, and does every row stay its own?

    python benchmarks/soak.py --minutes 60

Serves the demo model on the embedded tritonserver and asks it for images and texts from several threads at once, one
item in fifty a bad one. Every feature is compared with what the same item gave at the beginning. Each minute's latency
percentiles and the memory of every process go to stdout and into a JSON file. Exit status 1 if a row was another's, if
a good item failed or a bad one did not, or if memory grew by more than `--growth-mib` after the first tenth.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from cnclip_bench.processes import family
from cnclip_client import Client
from cnclip_server import TritonServer

ROOT = Path(__file__).resolve().parents[1]
PAGE_KIB = 4
BAD_IMAGE, BAD_TEXT = b"no image", "a lone surrogate \ud800"


@dataclass
class Minute:
    """What was seen in one stretch of time.

    Attributes:
        ends_s: seconds since the start.
        requests: calls of the client that were answered, of 1 to 16 items each.
        items: items in them.
        p50_ms, p95_ms, p99_ms: how long calls took.
        memory_mib: resident memory, by process.
    """

    ends_s: float
    requests: int
    items: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    memory_mib: dict[str, float]


@dataclass
class Tally:
    """What the threads have seen since it was last taken."""

    latencies_ms: list[float] = field(default_factory=list)
    items: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> int:
    """Runs the soak; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=6, help="clients at once")
    parser.add_argument("--growth-mib", type=float, default=40.0, help="growth of any process that is too much")
    parser.add_argument("--every-s", type=float, default=60.0, help="seconds between two lines")
    parser.add_argument("--repository", type=Path, default=ROOT / "build/demo/repository", help="that of `make demo`")
    parser.add_argument("--json", type=Path, default=ROOT / "build/benchmarks/soak.json", help="where the figures go")
    args = parser.parse_args()
    if not args.repository.is_dir():
        parser.error(f"{args.repository} is not there: run `make demo` first, or name a repository with a model `demo`")
    with TritonServer(args.repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        minutes, wrong = soak(server, args.minutes * 60, args.threads, args.every_s)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"minutes": [asdict(minute) for minute in minutes], "wrong": wrong}, indent=1))
    grown = growth_mib(minutes)
    print(f"\ngrown since the first tenth, MiB: { {name: round(grown[name], 1) for name in sorted(grown)} }")
    print(f"wrong: {dict(wrong) or 'nothing'}")
    return int(bool(wrong) or max(grown.values()) > args.growth_mib)


def soak(server: TritonServer, seconds: float, threads: int, every_s: float) -> tuple[list[Minute], dict[str, int]]:
    """Loads a server; returns what was seen, and what was wrong."""
    images = [path.read_bytes() for path in sorted((ROOT / "examples/demo/images").iterdir())]
    texts = [line.partition("\t")[2] for line in (ROOT / "examples/demo/captions.tsv").read_text("utf-8").splitlines()]
    with Client(server.grpc_url, model="demo") as client:
        expected = {"image": client.encode_images(images), "text": client.encode_texts(texts)}
    tally, stop = Tally(), threading.Event()
    workers = [
        threading.Thread(
            target=work, args=(server.grpc_url, images, texts, expected, random.Random(number), tally, stop)
        )
        for number in range(threads)
    ]
    for worker in workers:
        worker.start()
    minutes: list[Minute] = []
    started = time.monotonic()
    try:
        while (elapsed_s := time.monotonic() - started) < seconds:
            time.sleep(min(every_s, seconds - elapsed_s))
            minutes.append(take(tally, time.monotonic() - started, server.pid))
            print(line(minutes[-1]), flush=True)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    return minutes, dict(tally.wrong)


def work(
    url: str,
    images: list[bytes],
    texts: list[str],
    expected: dict[str, np.ndarray],
    rng: random.Random,
    tally: Tally,
    stop: threading.Event,
) -> None:
    """Asks until it is told to stop, and compares each answer."""
    with Client(url, model="demo") as client:
        while not stop.is_set():
            kind = rng.choice(["image", "text"])
            known, bad = (images, BAD_IMAGE) if kind == "image" else (texts, BAD_TEXT)
            picked = [rng.randrange(len(known)) if rng.random() < 0.98 else -1 for _ in range(rng.randrange(1, 17))]
            items = [bad if index < 0 else known[index] for index in picked]
            encode = client.encode_images if kind == "image" else client.encode_texts
            began = time.perf_counter()
            block = encode(items, errors="collect")  # type: ignore[operator]
            took_ms = (time.perf_counter() - began) * 1000
            wrong = Counter[str]()
            if set(block.failures) != {row for row, index in enumerate(picked) if index < 0}:
                wrong["refusals that are not those of the bad items"] += 1
            cosines = np.einsum("nd,nd->n", block.features, expected[kind][[index for index in picked if index >= 0]])
            wrong["features that are another's"] += int((cosines < 1 - 1e-5).sum())
            with tally.lock:
                tally.latencies_ms.append(took_ms)
                tally.items += len(items)
                tally.wrong += wrong


def take(tally: Tally, ends_s: float, pid: int) -> Minute:
    """Sums up, and begins anew."""
    with tally.lock:
        latencies, items = tally.latencies_ms, tally.items
        tally.latencies_ms, tally.items = [], 0
    p50, p95, p99 = np.percentile(latencies or [np.nan], [50, 95, 99]).tolist()
    memory = {"client": resident_mib("self"), **{name(child): resident_mib(child) for child in family(pid)}}
    return Minute(ends_s, len(latencies), items, p50, p95, p99, memory)


def growth_mib(minutes: list[Minute]) -> dict[str, float]:
    """How much each process has grown since the first tenth of the time, or since the first line."""
    base = minutes[len(minutes) // 10].memory_mib
    return {process: size - base.get(process, 0.0) for process, size in minutes[-1].memory_mib.items()}


def line(minute: Minute) -> str:
    """One line of the table."""
    memory = "  ".join(f"{process} {size:.0f}" for process, size in minute.memory_mib.items())
    return (
        f"{minute.ends_s:6.0f} s  {minute.requests:6d} requests  {minute.items:7d} items  "
        f"p50 {minute.p50_ms:6.1f}  p95 {minute.p95_ms:6.1f}  p99 {minute.p99_ms:6.1f} ms  MiB: {memory}"
    )


def name(pid: int) -> str:
    """The model that a stub serves; else the program."""
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return Path(arguments[1]).parts[-3] if "stub" in arguments[0] else Path(arguments[0]).name


def resident_mib(pid: int | str) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KIB / 1024


if __name__ == "__main__":
    sys.exit(main())
