"""Items with ids in, features with ids out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cnclip_client._blocks import Block
from cnclip_client._client import Client
from cnclip_client._exceptions import TooManyFailures
from cnclip_client._info import ModelInfo
from cnclip_client._texts import preprocess_text
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.extraction._loading import loading_ahead
from cnclip_client.extraction._options import ExtractOptions
from cnclip_client.sources import Item

__all__ = ["Encoded", "Engine", "Failure", "encode_items", "encoding_of"]

# So many items of a run of which none can be read: what is wrong is not they, but the folder that a list's paths are
# taken from, a disk that is not mounted, a right to a store that is missing.
_NO_ITEMS_FAULT = 1000


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that has no feature.

    Attributes:
        id: Its id.
        reason: Why.
    """

    id: Id
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The outcome of some items that follow each other.

    Attributes:
        items: All of them, in the source's order; images without their bytes.
        ids: Those that were encoded, k of them.
        features: float32 or float16 [k, D].
        failures: The others.
        failed: The place of each failure among the items, rising.
    """

    items: tuple[Item, ...]
    ids: tuple[Id, ...]
    features: NDArray[np.floating[Any]]
    failures: tuple[Failure, ...]
    failed: tuple[int, ...] = ()

    def split(self, count: int) -> tuple[Encoded, Encoded]:
        """Returns the outcome of the first `count` items, and that of the others."""
        failures = sum(place < count for place in self.failed)
        ids = count - failures
        return (
            Encoded(
                self.items[:count],
                self.ids[:ids],
                self.features[:ids],
                self.failures[:failures],
                self.failed[:failures],
            ),
            Encoded(
                self.items[count:],
                self.ids[ids:],
                self.features[ids:],
                self.failures[failures:],
                tuple(place - count for place in self.failed[failures:]),
            ),
        )


class Engine(Protocol):
    """Where a job's items are encoded, if not by the client of this process."""

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
        preprocess: bool,
    ) -> Iterator[Encoded]:
        """Yields the outcome of items, in their order, as `encode_items` does.

        Raises:
            ModelChanged: The features would be of another model than the expected one.
        """


def encode_items(
    client: Client,
    kind: Kind,
    items: Iterable[Item],
    *,
    normalize: bool = True,
    dtype: str = "float32",
    batch_size: int | None = None,
    refusal: Callable[[Id], str] | None = None,
    preprocess: bool = True,
) -> Iterator[Encoded]:
    """Yields the outcome of items, block by block, in their order.

    Memory stays bounded for any number of items. Files of images are read ahead by a few threads.

    Args:
        client: Of the model to use.
        kind: Whether the items are images or texts.
        items: Such as a source's `items()`.
        normalize: Whether each feature is divided by its length.
        dtype: `float32` or `float16`; a feature that does not fit fails.
        batch_size: Items a request; by default the client's.
        refusal: Tells why an id is not wanted, or nothing if it is.
        preprocess: Whether texts are prepared with `preprocess_text`, as cn_clip's `eval/extract_features.py` does.

    Raises:
        CnclipError: The server, or a store, could not be had; everything before has come out.
        OSError: No image can be read at present, as where a disk is not mounted any more; likewise.
    """
    pending: deque[Item] = deque()

    def values(source: Iterable[Item]) -> Iterator[str | bytes | None]:
        for item in source:
            failure = item.failure or (refusal(item.id) if refusal else "")
            kept = item
            if failure != item.failure or isinstance(item.value, bytes):
                kept = Item(item.id, item.value if isinstance(item.value, str) else None, failure)
            pending.append(kept)
            # None is what no client takes: the item fails in its place, and its own reason is given below.
            value = None if failure else item.value
            yield preprocess_text(value) if preprocess and kind == "text" and isinstance(value, str) else value

    # Texts are cheap to read; handing them from thread to thread would cost more.
    with loading_ahead(items, client.limits) if kind == "image" else nullcontext(iter(items)) as source:
        run = client.iter_images if kind == "image" else client.iter_texts
        for block in run(values(source), normalize=normalize, batch_size=batch_size):  # type: ignore[arg-type]
            taken = tuple(pending.popleft() for _ in range(block.stop - block.start))
            yield _encoded(block, taken, dtype)


def encoding_of(
    client: Client, engine: Engine | None, kind: Kind, options: ExtractOptions, refusal: Callable[[Id], str]
) -> Callable[[Iterator[Item]], Iterator[Encoded]]:
    """Returns what encodes a job's items: the client in this process, or an engine that is held to its model."""
    encode = partial(encode_items, client) if engine is None else partial(engine.encode, expected=client.info_of(kind))
    encode = partial(
        encode,
        kind,
        normalize=options.normalize,
        dtype=options.dtype,
        batch_size=options.batch_size,
        refusal=refusal,
        preprocess=options.preprocess,
    )
    return encode if options.max_errors is not None else lambda items: _once_one_is_read(partial(encode, items))


def _once_one_is_read(outcomes: Callable[[], Iterator[Encoded]]) -> Iterator[Encoded]:
    """Yields outcomes from when an item could be read, whatever came of it: until then none is noted as failed.

    Raises:
        TooManyFailures: The first thousand could not be.
    """
    held: list[Encoded] = []
    failures = 0
    one_is_read = False
    for encoded in outcomes():  # held by no name: an error that is kept would keep it
        held.append(encoded)
        failures += len(encoded.failures)
        one_is_read = one_is_read or not all(item.failure for item in encoded.items)
        if one_is_read:
            yield from held
            held.clear()
        elif failures >= _NO_ITEMS_FAULT:
            last = encoded.failures[-1]
            raise TooManyFailures(failures=failures, max_errors=None, last=f"{last.id}: {last.reason}")
    yield from held


def _encoded(block: Block, items: tuple[Item, ...], dtype: str) -> Encoded:
    with np.errstate(over="ignore"):
        features = block.features.astype(dtype, copy=False)
    finite = np.isfinite(features).all(axis=1)
    too_large = dict.fromkeys(block.indices[~finite].tolist(), f"its feature does not fit into {dtype}")
    reasons = {**block.failures, **too_large}
    kept = (block.indices[finite] - block.start).tolist()
    return Encoded(
        items=items,
        ids=tuple(items[place].id for place in kept),
        features=features[finite],
        failures=tuple(
            Failure(items[row - block.start].id, items[row - block.start].failure or reasons[row])
            for row in sorted(reasons)
        ),
        failed=tuple(row - block.start for row in sorted(reasons)),
    )
