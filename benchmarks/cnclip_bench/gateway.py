"""What the HTTP gateway adds: single items through it, and through the client, side by side."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from cnclip_bench.load import Request, run_load
from cnclip_bench.requests import to_ensemble
from cnclip_bench.stats import Latency, in_turns, median_ratio, timed_in_turns

if TYPE_CHECKING:
    from cnclip_builder.tensors import Tower
    from cnclip_client import Client

__all__ = ["WAYS", "Added", "compare", "running", "to_gateway"]

WAYS = ("client", "gateway")
_COMMAND = "from cnclip_console.start.gateway import main; main()"


@dataclass(frozen=True)
class Added:
    """What single items come to through the client and through the gateway.

    Attributes:
        concurrency: Requests at once.
        items_per_s: Of each round, by way, with so many at once.
        ratio: The median of the gateway's rate over the client's, round by round.
        alone: How long one takes with nothing beside it, by way.
        added_median_ms: What the gateway adds to that.
        added_p99_ms: What it adds to the slowest hundredth.
    """

    concurrency: int
    items_per_s: dict[str, list[float]]
    ratio: float
    alone: dict[str, Latency]
    added_median_ms: float
    added_p99_ms: float


@contextmanager
def running(url: str, model: str) -> Iterator[int]:
    """Runs a gateway before a server, and gives its port.

    Raises:
        RuntimeError: It does not start.
    """
    command = [sys.executable, "-c", _COMMAND, "--url", url, "--model", model, "--port", "0"]
    command += ["--time-limit", "600"]  # on few cores a large model has many at once wait for minutes
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("gateway "):
                raise RuntimeError("the gateway did not start: pip install 'cn-clip-triton[gateway]'")
            yield int(line.rpartition(":")[2])
        finally:
            process.terminate()


@contextmanager
def to_gateway(port: int, model: str, tower: Tower, items: Sequence[Any]) -> Iterator[Request]:
    """Gives requests of one item each, over a connection for each thread that is kept until the end.

    A request raises RuntimeError if it is not answered.
    """
    bodies = [
        json.dumps({"model": model, "input": _form(tower, item), "encoding_format": "base64"}).encode()
        for item in items
    ]
    own, turn = threading.local(), count()

    def request() -> None:
        if not hasattr(own, "connection"):
            own.connection = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port)))
        body = bodies[next(turn) % len(bodies)]
        own.connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answer = own.connection.getresponse()
        content = answer.read()
        if answer.status != http.client.OK:
            raise RuntimeError(content.decode(errors="replace"))

    with ExitStack() as stack:
        yield request


def compare(
    port: int,
    client: Client,
    model: str,
    tower: Tower,
    items: Sequence[Any],
    concurrency: int,
    seconds: float,
    rounds: int,
    singles: int,
) -> Added:
    """Measures both ways in turns.

    Args:
        port: The gateway's.
        client: Of the same server.
        model: The slug.
        tower: Whose items they are.
        items: Encoded images or texts.
        concurrency: Requests at once.
        seconds: How long a load is kept up in a round.
        rounds: How often.
        singles: How many requests with nothing beside them.
    """
    with to_gateway(port, model, tower, items) as through_gateway:
        ways = {"client": to_ensemble(client, tower, items, 1), "gateway": through_gateway}
        loads = in_turns({way: partial(run_load, ways[way], concurrency, seconds) for way in WAYS}, rounds)
        alone = {way: Latency.of(way, waits) for way, waits in timed_in_turns(ways, singles, time.perf_counter).items()}
    rates = {way: [one.items_per_s for one in found] for way, found in loads.items()}
    return Added(
        concurrency=concurrency,
        items_per_s=rates,
        ratio=median_ratio(rates["gateway"], rates["client"]),
        alone=alone,
        added_median_ms=alone["gateway"].median_ms - alone["client"].median_ms,
        added_p99_ms=alone["gateway"].p99_ms - alone["client"].p99_ms,
    )


def _form(tower: Tower, item: Any) -> Any:
    return {"image": base64.b64encode(item).decode()} if tower == "image" else item
