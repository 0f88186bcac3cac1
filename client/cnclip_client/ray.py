"""Features on a Ray cluster, with a client in each actor.

    import ray
    from cnclip_client import Client
    from cnclip_client.ray import FeatureExtractor

    connect = lambda: Client("triton-a:8001,triton-b:8001", model="vit-b-16")
    ray.data.read_parquet("images/").map_batches(
        FeatureExtractor,
        fn_constructor_kwargs={"connect": connect, "kind": "image", "column": "bytes", "drop": ["bytes"]},
        batch_format="pyarrow",
        concurrency=4,
        num_cpus=0.25,
    ).write_parquet("features/")

`RayEngine` is what `cnclip extract --engine ray` gives to `extraction.extract`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnclip_client._exceptions import CnclipError, ServerError
from cnclip_client._extras import require
from cnclip_client._flow.error_last import ErrorLast
from cnclip_client._flow.preparation import PREPARERS_VARIABLE
from cnclip_client._info import ModelInfo
from cnclip_client._remote import is_remote
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.extraction._encoding import Encoded
from cnclip_client.extraction._rows import Connect, RowEncoder
from cnclip_client.sources import Item

__all__ = ["FeatureExtractor", "RayEngine"]

_log = logging.getLogger(__name__)

# What an actor is sent at once: enough for a client to keep its servers busy, little enough to be done again.
_CHUNK_ITEMS = 512
_CHUNK_BYTES = 16 * 1024 * 1024
# Chunks sent to an actor, one of them waiting; and, as a multiple of all these, chunks read and not yet given out.
_CHUNKS_AN_ACTOR = 2
_WINDOWS = 2
# Actors that may die over the same items before a job ends. Nodes come and go, but not five at one chunk.
_MOST_DEATHS = 5


class FeatureExtractor:
    """For `ray.data.Dataset.map_batches` with `batch_format="pyarrow"`: adds the columns `feature` and `error`.

    `feature` is a list of float32, null where `error` says why. A batch is done as a whole, so one that is
    done again, after its actor died, gives its rows once.
    """

    def __init__(
        self,
        connect: Connect,
        kind: Kind,
        *,
        column: str,
        drop: Sequence[str] = (),
        normalize: bool = True,
        batch_size: int | None = None,
        expected: ModelInfo | None = None,
    ) -> None:
        """Prepares it; the client is made at the first batch.

        Args:
            connect: Makes the actor's client.
            kind: Whether the rows are images or texts.
            column: Of texts, made lower case as by `cnclip extract`; or of encoded images or their paths.
            drop: Columns to leave out of the result, such as the images.
            normalize: Whether each feature is divided by its length.
            batch_size: Items a request; by default the client's.
            expected: The model that all actors are held to, such as `Client.info`; without it each is held to the one
                that it finds.

        Raises:
            MissingExtra: pyarrow is not installed.
        """
        self._pa = require("pyarrow", extra="ray")
        self._column = column
        self._drop = list(drop)
        self._rows = RowEncoder(connect, kind, normalize=normalize, batch_size=batch_size, expected=expected)

    def __call__(self, table: Any) -> Any:
        """Returns a pyarrow table with its features.

        Raises:
            TypeError: It is no pyarrow table.
            KeyError: It has no such column.
            CnclipError: The server could not be had, or serves another model.
        """
        pa = self._pa
        if not isinstance(table, pa.Table):
            raise TypeError(
                f"expected a pyarrow table, got {type(table).__name__}; map_batches(batch_format='pyarrow')"
            )
        features, reasons = self._rows.column(table.column(self._column).to_pylist())
        good = np.array([reason is None for reason in reasons], np.bool_)
        # Not of a fixed size: parquet's readers take a null for a list of none, and refuse it.
        ends = np.concatenate([[0], np.cumsum(good * features.shape[1])]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(features[good].ravel()), mask=pa.array(~good))
        table = table.drop_columns(self._drop) if self._drop else table
        return table.append_column("feature", lists).append_column("error", pa.array(reasons, pa.string()))


class RayEngine:
    """Does a job's encoding on a Ray cluster; the job itself, its files and their order stay with the caller.

    Actors read images that are files themselves, so all nodes must see them under the same paths. Where an actor dies,
    another takes its place, on another node if need be, and does again what it was sent; each is told in the log. A
    job ends once five have died over the same items.
    """

    def __init__(self, connect: Connect, actors: int | None = None) -> None:
        """Prepares it.

        Args:
            connect: Makes an actor's client.
            actors: How many; by default one for each node.

        Raises:
            MissingExtra: Ray is not installed.
        """
        # Ray reports its use to its makers by default; of a cluster that is started here nothing is reported.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = require("ray", extra="ray")
        self._connect = connect
        self._actors = actors

    def encode(
        self,
        kind: Kind,
        items: Iterator[Item],
        *,
        expected: ModelInfo,
        normalize: bool,
        dtype: str,
        batch_size: int | None,
        refusal: Callable[[Id], str],
        preprocess: bool = True,
    ) -> Iterator[Encoded]:
        """Yields the outcome of items, block by block, in their order; as `encode_items` otherwise.

        It uses the cluster that the process is connected to, or else that of RAY_ADDRESS, or else starts one on this
        machine for as long as it takes.
        """
        ray = self._ray
        started = not ray.is_initialized()
        if started:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        encoder = RowEncoder(
            self._connect,
            kind,
            normalize=normalize,
            batch_size=batch_size,
            expected=expected,
            preprocess=preprocess,
        )
        # Ray would start an actor again by itself, but without a word, and for ever.
        remote = ray.remote(max_restarts=0, max_task_retries=0, num_cpus=1, scheduling_strategy="SPREAD")(_Actor)
        count = self._actors or sum(node["Alive"] for node in ray.nodes())
        # Where clients prepare images, the actors divide the cores.
        preparers = max(1, int(ray.cluster_resources().get("CPU", 1)) // count)
        try:
            run = _Run(ray, lambda: remote.remote(encoder, dtype, preparers), count)
            yield from run.outcomes(_chunks(kind, items, refusal))
        finally:
            if started:
                ray.shutdown()


@dataclass(slots=True, eq=False)
class _Work:
    """What an actor is sent at once.

    Attributes:
        chunk: The items.
        actor: The actor that has it.
        place: That one's number.
        deaths: How many actors died at it.
        outcome: What came of it, once that is known.
    """

    chunk: list[Item]
    actor: Any = None
    place: int = 0
    deaths: int = 0
    outcome: list[Encoded] | Exception | None = None


class _Run:
    """One job's chunks and its actors; for one thread.

    Args:
        ray: The module.
        start: Starts an actor.
        count: How many there are at a time.
    """

    def __init__(self, ray: Any, start: Callable[[], Any], count: int) -> None:
        self._ray = ray
        self._start = start
        self._actors = [start() for _ in range(count)]
        self._sent: dict[Any, _Work] = {}  # not known to be done, oldest first
        self._window: deque[_Work] = deque()  # read, and not given out yet
        self._most = count * _CHUNKS_AN_ACTOR
        self._ended = False  # whether there are no more to read

    def outcomes(self, chunks: Iterator[list[Item]]) -> Iterator[Encoded]:
        """Yields what comes of the chunks, in their order."""
        window = self._window
        try:
            while window or not self._ended:
                if self._sent:
                    # Waits only where there is nothing to send, and no head to give.
                    self._collect(wait=not self._may_read() and window[0].outcome is None)
                if window and (outcome := window[0].outcome) is not None:
                    window.popleft()
                    if isinstance(outcome, Exception):
                        raise outcome
                    yield from outcome
                if self._may_read():
                    self._read(chunks)
        finally:
            for actor in self._actors:
                self._ray.kill(actor)

    def _may_read(self) -> bool:
        return not self._ended and len(self._sent) < self._most and len(self._window) < _WINDOWS * self._most

    def _read(self, chunks: Iterator[list[Item]]) -> None:
        try:
            chunk = next(chunks, None)
        except Exception as error:  # raised once all that came before is out
            self._ended = True
            self._window.append(_Work([], outcome=error))
            return
        if chunk is None:
            self._ended = True
        else:
            self._window.append(_Work(chunk))
            self._send(self._window[-1])

    def _send(self, work: _Work) -> None:
        load = Counter(one.place for one in self._sent.values())
        work.place = min(range(len(self._actors)), key=lambda number: load[number])
        work.actor = self._actors[work.place]
        self._sent[work.actor.encode.remote(work.chunk)] = work

    def _collect(self, *, wait: bool) -> None:
        """Takes what is done, if anything is, and sends again what was lost with an actor."""
        done, _ = self._ray.wait(list(self._sent), num_returns=1, timeout=None if wait else 0)
        for ref in done:
            work = self._sent[ref]
            died = self._take(ref, work)
            if died is not None and work.actor is self._actors[work.place]:
                self._replace(work.place, died)
            del self._sent[ref]
            if died is not None and work.deaths < _MOST_DEATHS:
                self._send(work)
            elif died is not None:
                work.outcome = _crashing(work.chunk, died)

    def _replace(self, place: int, died: Exception) -> None:
        """Puts another actor in the place of one that died."""
        dead = self._actors[place]
        # What it was at: the oldest of what it had; the others only waited there.
        culprit = next(work for work in self._sent.values() if work.actor is dead)
        culprit.deaths += 1
        _log.warning("a Ray actor died (%s); another takes its place", _told(died))
        self._ray.kill(dead)
        self._actors[place] = self._start()

    def _take(self, ref: Any, work: _Work) -> Exception | None:
        """Gives work its outcome, or returns how its actor died or its result was lost: it is to be done again."""
        errors = self._ray.exceptions
        try:
            work.outcome = self._ray.get(ref)
        except errors.RayTaskError as error:
            known = isinstance(error.cause, (CnclipError, OSError))  # such as of a disk that is not mounted any more
            work.outcome = error.cause if known else _failed(error.cause)
            work.outcome.__cause__ = error
        except (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.ObjectLostError,
        ) as error:
            return error  # type: ignore[no-any-return]
        except errors.RayError as error:
            work.outcome = _failed(error)
            work.outcome.__cause__ = error
        return None


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no reason'}"


def _crashing(chunk: list[Item], error: Exception) -> ServerError:
    failure = ServerError(
        f"{_MOST_DEATHS} Ray actors died one after the other over the same {len(chunk)} items, {chunk[0].id!r} to "
        f"{chunk[-1].id!r} ({_told(error)}); see the cluster's logs, and try these items without Ray",
        model="",
        status="RAY",
        detail=str(error),
    )
    failure.__cause__ = error
    return failure


def _failed(error: Exception) -> ServerError:
    return ServerError(
        f"the Ray cluster failed the work ({_told(error)}); see its logs, and that cn-clip-triton is installed on "
        "every node",
        model="",
        status="RAY",
        detail=str(error),
    )


class _Actor:
    def __init__(self, encoder: RowEncoder, dtype: str, preparers: int) -> None:
        os.environ.setdefault(PREPARERS_VARIABLE, str(preparers))
        self._encoder = encoder
        self._dtype = dtype

    def encode(self, chunk: list[Item]) -> list[Encoded]:
        return list(self._encoder.items(chunk, self._dtype))


def _chunks(kind: Kind, items: Iterator[Item], refusal: Callable[[Id], str]) -> Iterator[list[Item]]:
    """Yields what actors are sent at once. A path says the same on every node only if it is a whole one."""
    chunk: list[Item] = []
    size = 0
    source = ErrorLast(items)
    for item in source:
        value, failure = item.value, item.failure or refusal(item.id)
        if failure:
            value = value if kind == "text" else None
        elif kind == "image" and isinstance(value, str) and not is_remote(value):
            value = os.path.abspath(value)  # noqa: PTH100 - Path would resolve nothing, but cost more
        chunk.append(Item(item.id, value, failure))
        size += len(value or b"")
        if len(chunk) == _CHUNK_ITEMS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
    source.raise_error()
