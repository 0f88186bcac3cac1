"""What is searched: features in memory, or in a temporary file where there are too many."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._vocabulary import Id
from cnclip_client.features import Features
from cnclip_client.features._ids import join_ids

__all__ = ["Gallery", "RepeatedId"]

_MEMORY_BYTES = 1024**3
_BLOCK_BYTES = 256 * 1024 * 1024


class RepeatedId(ValueError):
    """An id that comes twice among what is to be searched.

    Attributes:
        id: The id.
        rows: Where it comes first and then, from 0.
        count: How many rows have an id that came before.
    """

    def __init__(self, id: Id, rows: tuple[int, int], count: int, places: str = "") -> None:
        places = places or f"rows {rows[0] + 1} and {rows[1] + 1}"
        super().__init__(
            f"the id {id!r} comes more than once; in {places}, and in all {count} with an id that came before: "
            "each needs one feature, so extract them anew with --repeated-ids first, or with ids that differ"
        )
        self.id = id
        self.rows = rows
        self.count = count


class Gallery:
    """The features that queries are compared with; a context manager, for the sake of its temporary file.

        with Gallery(read_features("images.parquet", "image")) as gallery:
            for hits in search(read_features("texts.parquet", "text"), gallery):
                ...

    Only their ids are held in memory for sure, 8 bytes each if they are integers.

    Args:
        blocks: The features; read to their end at once.
        memory_bytes: Features past this go to a temporary file of 4 D bytes each.
        directory: Where that file is made; by default where Python makes such files (`TMPDIR`).

    Raises:
        ValueError: There are none, an id comes twice (`RepeatedId`), or features differ in length.
    """

    def __init__(
        self,
        blocks: Iterable[Features],
        *,
        memory_bytes: int = _MEMORY_BYTES,
        directory: str | PathLike[str] | None = None,
    ) -> None:
        self._file: Any = None
        self._held: list[NDArray[np.float32]] = []
        ids: list[NDArray[Any]] = []
        held_bytes = 0
        try:
            for block in blocks:
                if not len(block):
                    continue  # such as what is left of a block of which nothing is wanted
                if ids and block.features.shape[1] != self.embedding_size:
                    size = block.features.shape[1]
                    raise ValueError(f"features of {self.embedding_size} and of {size} numbers; they are of two models")
                self.embedding_size: int = block.features.shape[1]
                ids.append(block.ids)
                self._held.append(block.features)
                held_bytes += block.features.nbytes
                if held_bytes > memory_bytes:
                    self._spill(directory)
            if not ids:
                raise ValueError("there are no features to search; extract some first")
            self.ids: NDArray[Any] = join_ids(ids)
            _require_distinct(self.ids)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self.ids)

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def in_memory(self) -> bool:
        """Whether all of it is held in memory."""
        return self._file is None

    def close(self) -> None:
        """Frees the features and removes the temporary file."""
        self._held.clear()
        if self._file is not None:
            self._file.close()

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields all rows in their order, as float32 [rows, D] blocks."""
        if self._file is None:
            yield from self._held
            return
        rows = max(1, _BLOCK_BYTES // (4 * self.embedding_size))
        for start in range(0, len(self), rows):
            block = np.empty((min(rows, len(self) - start), self.embedding_size), dtype=np.float32)
            self._file.seek(4 * self.embedding_size * start)
            self._file.readinto(block.data)
            yield block

    def _spill(self, directory: str | PathLike[str] | None) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=directory, prefix="cnclip-gallery-")  # noqa: SIM115 - see close()
        for features in self._held:
            self._file.write(np.ascontiguousarray(features).data)
        self._held.clear()


def _require_distinct(ids: NDArray[Any]) -> None:
    # In the order of their rows among equals, so that the first one's is named first.
    held = ids if ids.dtype == np.int64 else np.array([repr(one) for one in ids.tolist()], dtype=object)
    order = np.argsort(held, kind="stable")
    ordered = held[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        rows = int(order[twice[0]]), int(order[twice[0] + 1])
        raise RepeatedId(ids[rows[0] : rows[0] + 1].tolist()[0], rows, len(twice))
