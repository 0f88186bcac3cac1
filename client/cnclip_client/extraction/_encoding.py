"""Items with ids in, features with ids out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cnclip_client._blame import identity_of, is_still
from cnclip_client._blocks import Block
from cnclip_client._client import Client
from cnclip_client._exceptions import BadFile, StoreError, TooManyFailures
from cnclip_client._flow.items import Unsendable, image_bytes
from cnclip_client._flow.prefetch import Prefetch
from cnclip_client._info import ModelInfo
from cnclip_client._remote import RemotePath, is_remote, is_unanswered
from cnclip_client._texts import preprocess_text
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.extraction._options import ExtractOptions
from cnclip_client.sources import Item

__all__ = ["Encoded", "Engine", "Failure", "encode_items", "encoding_of"]

# So many items of a run of which none can be read: what is wrong is not they, but the folder that a list's paths are
# taken from, a disk that is not mounted, a right to a store that is missing.
_NO_ITEMS_FAULT = 1000

_LONGEST_PATH = 1024


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

    with _loaded(client, kind, items) as source:
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


def _loaded(client: Client, kind: Kind, items: Iterable[Item]) -> AbstractContextManager[Iterator[Item]]:
    if kind == "text":
        # Cheap to read; handing them from thread to thread would cost more.
        return nullcontext(iter(items))

    last = _Read()

    def load(item: Item) -> Item:
        nonlocal last
        if not isinstance(item.value, str):
            return item
        try:
            data = image_bytes(item.value, client.limits.item_bytes)
        except Unsendable as error:
            _require_still_there(lambda: last, error.__cause__)
            # Of a column of paths the id tells nothing of which file it was.
            is_named = item.value.endswith(str(item.id)) or is_remote(item.value)
            reason = str(error) if is_named else f"{_shown(item.value)}: {error}"
            if isinstance(error.__cause__, FileNotFoundError) and not Path(item.value).is_absolute():
                reason += f"; relative paths are taken from {Path.cwd()}"
            return Item(item.id, None, reason)
        last = _Read.of(item.value)
        return Item(item.id, data)

    return Prefetch(iter(items), load, lambda item: len(item.value or b""), threads=client.limits.readers)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What was read last, by whichever thread.

    Attributes:
        path: It; empty before anything was.
        folder: The folder that it was in, if that is here.
        identity: What that folder was.
    """

    path: str = ""
    folder: str = ""
    identity: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, path: str) -> _Read:
        """Returns that of a file that has just been read. Raises OSError if its disk is gone again."""
        if is_remote(path):
            return cls(path)
        folder = os.path.dirname(path) or "."  # noqa: PTH120 - of each image
        return cls(path, folder, identity_of(folder))


def _require_still_there(read_last: Callable[[], _Read], problem: BaseException | None) -> None:
    """Raises what is wrong with a file if it is with the last that was read, too: that is the fault of no item.

    A disk is not mounted any more, a right to a bucket was lost, or the network. What is gone from a folder that is
    still there was removed, unless a link to it was left. What one host of the web answers says nothing of another,
    and that two do not answer nothing of the network while others do. An object that S3 forbids may as well be missing.
    """
    last = read_last()
    if isinstance(problem, FileNotFoundError) and last.folder:
        if os.path.exists(last.path):  # noqa: PTH110
            return
        if os.path.islink(last.path) or not is_still(last.folder, last.identity):  # noqa: PTH114
            words = f"{problem.strerror}, nor is {last.path}, which was read before; see that its disk is mounted"
            raise FileNotFoundError(problem.errno, f"{words}, and run it again", problem.filename) from problem
    elif isinstance(problem, StoreError) and is_remote(last.path):
        of_web = last.path.startswith(("http://", "https://"))
        if of_web and not is_unanswered(problem):
            return
        try:
            RemotePath(last.path).read(1)
        except StoreError as also:
            if not of_web or (is_unanswered(also) and read_last() is last):
                raise problem from None
        except BadFile:
            pass


def _shown(path: str) -> str:
    """Returns a path, or how it begins where it is none: a column of base64 would be written out once more."""
    return path if len(path) <= _LONGEST_PATH else f"{path[:80]}..."


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
