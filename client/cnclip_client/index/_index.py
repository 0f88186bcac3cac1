"""An index that was made: opened, and searched as exact search is."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client._vocabulary import Id
from cnclip_client.features import Features, origin_of
from cnclip_client.features._features import rebatch
from cnclip_client.features._origin import warn_of_unknown
from cnclip_client.index._checksums import require_unchanged
from cnclip_client.index._faiss import EXTRA, Searcher, read
from cnclip_client.index._ids import Ids, mapped_array, open_ids
from cnclip_client.index._record import ANEW, Record
from cnclip_client.retrieval import Hits

__all__ = ["FEATURES", "INDEX", "Index", "open_searcher", "require_files"]

INDEX, FEATURES = "index.faiss", "features.npy"
_QUERIES = 1024


class Index:
    """An approximate index of features, open; a context manager.

        with Index.open("photos.index") as index:
            for hits in index.search(read_features("texts.parquet", "text"), k=10):
                ...

    It may be searched from several threads, which take turns: faiss uses all cores for each.

    Attributes:
        record: What it is, and how good.
    """

    def __init__(self, record: Record, searcher: Searcher, ids: Ids, path: Path) -> None:
        self.record = record
        self._searcher = searcher
        self._ids = ids
        self._path = path
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | PathLike[str], *, thorough: bool = True) -> Index:
        """Opens an index.

        What is searched stays in its files, and comes to memory as it is needed; several processes share it.

        Args:
            path: Its folder.
            thorough: Whether to read all of it first, to see that nothing is damaged: faiss does not look, and may
                crash.

        Raises:
            BadFile: It is none, or damaged.
            MissingExtra: faiss is not installed.
            OSError: It cannot be read.
        """
        path = Path(path)
        require("faiss", extra=EXTRA)  # before minutes of reading
        record = Record.read(path)
        require_files(path, record, thorough=thorough)
        ids = open_ids(path, record.rows)
        try:
            searcher = open_searcher(path, record.rows, record.size)
            searcher.turn(record.measured.parameters)
        except BaseException:
            ids.close()
            raise
        return cls(record, searcher, ids, path)

    def __len__(self) -> int:
        return self.record.rows

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of its files."""
        self._ids.close()

    @property
    def parameters(self) -> str:
        """What it is turned to: faiss's names (`nprobe=32`, `efSearch=64`), and `rescore=100`.

        More of either finds more and takes longer. It was tuned when it was made.
        """
        return self._searcher.parameters

    @parameters.setter
    def parameters(self, parameters: str) -> None:
        with self._lock:
            self._searcher.turn(parameters)

    def require_checkpoint_of(self, queries: str | PathLike[str]) -> None:
        """Sees that features are of the index's checkpoint; where that is not known a warning is logged.

        Args:
            queries: A file or folder that `read_features` takes.

        Raises:
            BadFile: They are of another.
            MissingExtra: They are parquet, and pyarrow is not installed.
            OSError: They cannot be read.
        """
        origin = origin_of(queries)
        unknown = [str(one) for one, of in ((self._path, self.record.origin), (queries, origin)) if of is None]
        warn_of_unknown(unknown)
        if origin is not None:
            self.record.require_origin(self._path, Path(queries), origin)

    def search(self, queries: Features | Iterable[Features], *, k: int = 10) -> Iterator[Hits]:
        """Yields the hits of each query, in the queries' order; memory is bounded for any number of them.

        A query may have fewer than k hits, where the clusters that are looked at hold fewer.

        Args:
            queries: Features, in blocks of any size.
            k: How many to find for each.

        Raises:
            ValueError: k is less than 1, or the features are of another length than the index's.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        return self._search([queries] if isinstance(queries, Features) else queries, min(k, len(self)))

    def neighbours(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns the best k rows of each of some queries, where `search` tells their ids.

        Args:
            queries: float32 [n, D], few enough to hold what is found.
            k: How many to find for each.

        Returns:
            Scores, float32 [n, k], the best first, and rows, int64 [n, k], -1 where there are fewer.
        """
        with self._lock:
            return self._searcher.search(queries, k)

    def ids_of(self, rows: Sequence[int]) -> list[Id]:
        """Returns the ids of some rows."""
        with self._lock:
            return self._ids.take(rows)

    def _search(self, queries: Iterable[Features], k: int) -> Iterator[Hits]:
        for block in rebatch(queries, _QUERIES):
            size = block.features.shape[1]
            if size != self.record.size:
                made = f" of {self.record.origin}" if self.record.origin else ""
                raise ValueError(
                    f"queries of {size} numbers, and {self._path} is an index of features of {self.record.size}{made}; "
                    "they are of two models: extract both with one, and make the index of those"
                )
            with self._lock:
                scores, rows = self._searcher.search(block.features, k)
                found = self._ids.take(rows[rows >= 0].tolist())
            yield from _hits(block.ids.tolist(), scores, rows, found)


def _hits(
    queries: list[int | str], scores: NDArray[np.float32], rows: NDArray[np.int64], found: list[int | str]
) -> Iterator[Hits]:
    start = 0
    for query, row_scores, row in zip(queries, scores, rows, strict=True):
        held = row >= 0
        stop = start + int(held.sum())
        yield Hits(query, tuple(found[start:stop]), row_scores[held])
        start = stop


def require_files(path: Path, record: Record, *, thorough: bool) -> None:
    """Sees that an index's files are what was written. Raises BadFile, OSError."""
    for name, (size, sums) in record.files.items():
        require_unchanged(path / name, size, sums, ANEW, thorough=thorough)


def open_searcher(path: Path, rows: int, size: int) -> Searcher:
    """Opens an index's own files, those of its ids aside. Raises BadFile, OSError."""
    index = read(path / INDEX, mapped=True, fix=ANEW)
    if (index.ntotal, index.d) != (rows, size):
        raise BadFile(
            f"{index.ntotal} rows of {index.d} numbers, and its record says {rows} of {size}; {ANEW}",
            path=str(path / INDEX),
        )
    kept = path / FEATURES
    if not kept.exists():
        return Searcher(index)
    features = mapped_array(kept, np.dtype("<f2"), (rows, size), "features")
    return Searcher(index, features)
