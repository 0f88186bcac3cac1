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
    ).write_parquet("features/")

`RayEngine` is what `cnclip extract --engine ray` gives to `extraction.extract`.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cnclip_client._exceptions import CnclipError, ServerError
from cnclip_client._extras import require
from cnclip_client._info import ModelInfo
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.extraction._encoding import Encoded
from cnclip_client.extraction._rows import Connect, RowEncoder
from cnclip_client.sources import Item

__all__ = ["FeatureExtractor", "RayEngine"]

# What an actor is sent at once: enough for a client to keep its servers busy, little enough to be done again.
_CHUNK_ITEMS = 512
_CHUNK_BYTES = 16 * 1024 * 1024
# Chunks sent to an actor, one of them waiting; and those for which a slower one before them is waited.
_CHUNKS_AN_ACTOR = 2
_WINDOWS = 2


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

    Actors read images that are files themselves, so all nodes must see them under the same paths. An actor that dies
    is started again, on another node if need be, and does again what it was sent.
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
        remote = ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=1, scheduling_strategy="SPREAD")(_Actor)
        count = self._actors or sum(node["Alive"] for node in ray.nodes())
        actors = [remote.remote(encoder, dtype) for _ in range(count)]
        try:
            yield from self._run(actors, _chunks(kind, items, refusal))
        finally:
            for actor in actors:
                ray.kill(actor)
            if started:
                ray.shutdown()

    def _run(self, actors: list[Any], chunks: Iterator[list[Item]]) -> Iterator[Encoded]:
        ray = self._ray
        sent: dict[Any, int] = {}  # not known to be done -> the actor that has it
        window: deque[Any] = deque()
        most = len(actors) * _CHUNKS_AN_ACTOR
        ended = False
        failure: Exception | None = None
        while True:
            if sent:
                # Waits only where there is nothing to send, and no head to give.
                full = ended or len(sent) >= most or len(window) >= _WINDOWS * most
                done, _ = ray.wait(list(sent), num_returns=1, timeout=None if full and window[0] in sent else 0)
                for ref in done:
                    del sent[ref]
            if window and window[0] not in sent:
                yield from self._get(window.popleft())
            if ended and not window:
                if failure is not None:
                    raise failure
                return
            if not ended and len(sent) < most and len(window) < _WINDOWS * most:
                try:
                    chunk = next(chunks, None)
                except Exception as error:  # raised once all that came before is out
                    chunk, failure = None, error
                if chunk is None:
                    ended = True
                else:
                    load = Counter(sent.values())
                    place = min(range(len(actors)), key=lambda number: load[number])
                    ref = actors[place].encode.remote(chunk)
                    sent[ref] = place
                    window.append(ref)

    def _get(self, ref: Any) -> list[Encoded]:
        try:
            return self._ray.get(ref)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, CnclipError):
                raise error.cause from error
            raise _failed(error.cause) from error
        except self._ray.exceptions.RayError as error:
            raise _failed(error) from error


def _failed(error: Exception) -> ServerError:
    told = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
    return ServerError(
        f"the Ray cluster failed the work ({told}); see its logs, and that cn-clip-triton is installed on every node",
        model="",
        status="RAY",
        detail=str(error),
    )


class _Actor:
    def __init__(self, encoder: RowEncoder, dtype: str) -> None:
        self._encoder = encoder
        self._dtype = dtype

    def encode(self, chunk: list[Item]) -> list[Encoded]:
        return list(self._encoder.items(chunk, self._dtype))


def _chunks(kind: Kind, items: Iterator[Item], refusal: Callable[[Id], str]) -> Iterator[list[Item]]:
    """Yields what actors are sent at once. A path says the same on every node only if it is a whole one."""
    chunk: list[Item] = []
    size = 0
    failure_of_source: Exception | None = None
    while True:
        try:
            item = next(items)
        except StopIteration:
            break
        except Exception as error:
            failure_of_source = error
            break
        value, failure = item.value, item.failure or refusal(item.id)
        if failure:
            value = value if kind == "text" else None
        elif kind == "image" and isinstance(value, str):
            value = os.path.abspath(value)  # noqa: PTH100 - Path would resolve nothing, but cost more
        chunk.append(Item(item.id, value, failure))
        size += len(value or b"")
        if len(chunk) == _CHUNK_ITEMS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
    if failure_of_source is not None:
        raise failure_of_source
