"""What it brings to have clients prepare images and texts: items a second, and processors' time on either side."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from cnclip_bench.inputs import count_of, repeated
from cnclip_bench.processes import processor_seconds
from cnclip_bench.requests import encode
from cnclip_bench.stats import in_turns

if TYPE_CHECKING:
    from cnclip_builder.tensors import Tower
    from cnclip_client import Client

    from cnclip_bench.subject import Subject

__all__ = ["BY", "Round", "medians", "side_by_side"]

BY = ("server", "client")
"""Who prepares."""


@dataclass(frozen=True)
class Round:
    """What one round of one way took.

    Attributes:
        items_per_s: Items a second.
        server_ms: Of processors, an item, by tritonserver and all below it: its encoder, and what else it does.
        client_ms: The same of the client and the processes that prepare for it.
    """

    items_per_s: float
    server_ms: float
    client_ms: float


def side_by_side(
    subject: Subject, towers: Sequence[Tower], items: int, rounds: int, preparers: int | None = None
) -> dict[Tower, dict[str, list[Round]]]:
    """Serves a repository, and has its server and a client of it prepare, in turns.

    Args:
        subject: What is served.
        towers: What is encoded.
        items: Images a round, and four times as many texts.
        rounds: How often; one more before them does not count.
        preparers: Processes of the client that prepare images; None for one a core.

    Returns:
        By the tower and by who prepared, the rounds.
    """
    from cnclip_client import Client, Limits
    from cnclip_server import TritonServer

    found = {}
    with ExitStack() as opened:
        server = opened.enter_context(TritonServer(subject.repository, grpc_port=0, http_port=0, metrics_port=0))
        limits = Limits(preparers=preparers)
        vocabulary = subject.arch.vocabulary_file
        clients = {
            by: opened.enter_context(
                Client(server.grpc_url, model=subject.name, limits=limits, prepare=by, vocabulary=vocabulary)  # type: ignore[arg-type]
            )
            for by in BY
        }
        for tower in towers:
            given = repeated(subject.items(tower), count_of(tower, items))
            ways = {by: partial(_round, clients[by], tower, given, server.pid) for by in BY}
            in_turns(ways, 1)  # does not count
            found[tower] = in_turns(ways, rounds)
    return found


def medians(rounds: Mapping[str, Sequence[Round]]) -> tuple[dict[str, Round], Round]:
    """The medians of each way, and those of the client's over the server's in the same round."""
    values = {by: np.array([(one.items_per_s, one.server_ms, one.client_ms) for one in rounds[by]]) for by in BY}
    ratios = values["client"] / np.maximum(values["server"], 1e-9)
    return {by: Round(*np.median(values[by], axis=0).tolist()) for by in BY}, Round(*np.median(ratios, axis=0).tolist())


def _round(client: Client, tower: Tower, given: Sequence[Any], server: int) -> Round:
    def taken() -> tuple[float, float, float]:
        of_server, all_together = processor_seconds(server), processor_seconds(os.getpid())
        return time.perf_counter(), of_server, all_together - of_server  # the server is below this process, too

    before = taken()
    encode(client, tower, given)
    seconds, of_server, of_client = (after - began for began, after in zip(before, taken(), strict=True))
    return Round(len(given) / seconds, 1000 * of_server / len(given), 1000 * of_client / len(given))
