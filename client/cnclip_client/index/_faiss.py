"""faiss's indexes: made, trained, filled, written, read, and searched with what there is to turn."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client.retrieval._topk import pair_products

__all__ = ["EXTRA", "Searcher", "add", "make", "read", "reserve", "train", "write"]

EXTRA = "index"
# More sharpen nothing: faiss's own tests end here.
_TRAINING_ROUNDS = 10


def make(factory: str, size: int) -> Any:
    """Returns a new index of inner products.

    Args:
        factory: What faiss's `index_factory` is to make.
        size: D, the features' length.

    Raises:
        ValueError: faiss knows no such index, or not for this length.
    """
    faiss = require("faiss", extra=EXTRA)
    try:
        index = faiss.index_factory(size, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot make {factory!r} for features of {size} numbers ({_reason(error)}); see its page on the "
            "index factory, or leave out --factory"
        ) from error
    if "IDMap" in factory:
        raise ValueError(f"{factory!r} keeps ids of its own, which are kept beside the index; leave out IDMap")
    ivf = _ivf(index)
    if ivf is not None:
        ivf.cp.niter = _TRAINING_ROUNDS
        # What is too few is said by an error and by the recall, not by lines of C++.
        ivf.cp.min_points_per_centroid = 1
        if hasattr(ivf, "pq"):
            ivf.pq.cp.min_points_per_centroid = 1
    return index


def train(index: Any, sample: NDArray[np.float32], factory: str) -> None:
    """Trains an index.

    Raises:
        ValueError: The sample is too small for it.
    """
    clusters = re.search(r"IVF(\d+)", factory)
    if clusters and len(sample) < int(clusters[1]):
        raise ValueError(
            f"{factory!r} has {clusters[1]} clusters, more than the {len(sample)} features to find them in (39 for "
            f"each is good); give fewer, such as IVF{max(1, len(sample) // 39)}, or leave out --factory"
        )
    try:
        index.train(sample)
    except RuntimeError as error:
        raise ValueError(
            f"faiss cannot train {factory!r} on {len(sample)} features ({_reason(error)}); give another --factory, or "
            "leave it out"
        ) from error


def reserve(index: Any, rows: int) -> None:
    """Makes room for all rows at once, where that can be told to faiss: else its lists grow by doubling."""
    faiss = require("faiss", extra=EXTRA)
    whole = faiss.downcast_index(index)
    storage = faiss.downcast_index(whole.storage) if hasattr(whole, "storage") else whole
    room = [(storage.codes, rows * storage.code_size)] if hasattr(storage, "codes") else []
    if hasattr(whole, "hnsw"):
        # Those of the lowest layer, and of the few rows that are in higher ones.
        room.append((whole.hnsw.neighbors, rows * (whole.hnsw.nb_neighbors(0) * 33 // 32)))
    for numbers, wanted in room:
        held = numbers.size()
        if wanted > held:
            numbers.resize(wanted)
            numbers.resize(held)


def add(index: Any, rows: NDArray[np.float32]) -> None:
    """Adds rows to a trained index.

    Raises:
        ValueError: It takes none.
    """
    try:
        index.add(np.ascontiguousarray(rows))
    except RuntimeError as error:
        raise ValueError(f"faiss adds nothing to this index ({_reason(error)}); give another --factory") from error


def write(index: Any, path: Path) -> None:
    """Writes an index to a file.

    Raises:
        OSError: It cannot be written.
    """
    faiss = require("faiss", extra=EXTRA)
    try:
        faiss.write_index(index, os.fspath(path))
    except RuntimeError as error:
        raise OSError(
            errno.EIO, f"faiss could not write it ({_reason(error)}); is the disk full?", str(path)
        ) from error


def read(path: Path, *, mapped: bool, fix: str) -> Any:
    """Reads an index.

    Args:
        path: The file.
        mapped: Whether what is searched stays in the file where its disk allows that, and comes to memory as it is
            needed; nothing can be added to such an index.
        fix: What to do about a damaged one.

    Raises:
        BadFile: It is none, or damaged.
        MissingExtra: faiss is not installed.
    """
    faiss = require("faiss", extra=EXTRA)
    try:
        return faiss.read_index(os.fspath(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0) if mapped else 0)
    except (RuntimeError, MemoryError) as error:
        if mapped and "could not mmap()" in str(error):  # as on FUSE's disks that cache nothing
            return read(path, mapped=False, fix=fix)
        raise BadFile(
            f"no index that faiss {faiss.__version__} reads ({_reason(error)}); {fix}", path=str(path)
        ) from error


class Searcher:
    """Searches an index, and where features are kept beside it scores anew what it proposes.

    Attributes:
        parameters: What is turned, as faiss's `ParameterSpace` reads it: `nprobe=16`; and ours, `rescore=100`, how many
            are scored anew for the best 10.
    """

    def __init__(self, index: Any, features: NDArray[np.floating[Any]] | None = None) -> None:
        self._faiss = require("faiss", extra=EXTRA)
        self._index = index
        self._features = features
        self._rescore = 0
        self.parameters = ""

    def rescoring(self, for_ten: int) -> str:
        """Returns the parameter by which so many proposals are scored anew for the best 10; empty if there is none."""
        if self._features is not None:
            return f"rescore={for_ten}"
        return f"k_factor_rf={for_ten / 10:g}" if isinstance(self._index, self._faiss.IndexRefine) else ""

    @property
    def turned(self) -> str:
        """Returns faiss's name of what is turned for better recall; empty if there is nothing."""
        if _ivf(self._index) is not None:
            return "nprobe"
        inner = self._index
        while isinstance(inner, self._faiss.IndexPreTransform | self._faiss.IndexRefine):
            inner = inner.index if isinstance(inner, self._faiss.IndexPreTransform) else inner.base_index
            inner = self._faiss.downcast_index(inner)
        return "efSearch" if hasattr(inner, "hnsw") else ""

    @property
    def clusters(self) -> int:
        """How many clusters there are; 0 if none."""
        ivf = _ivf(self._index)
        return 0 if ivf is None else int(ivf.nlist)

    def turn(self, parameters: str) -> None:
        """Sets what is turned.

        Raises:
            ValueError: There is no such thing to turn.
        """
        theirs = []
        rescore = 0
        for one in filter(None, parameters.split(",")):
            name, _, value = one.partition("=")
            if name == "rescore" and value.isdecimal():
                rescore = int(value)
            else:
                theirs.append(one)
        if rescore and self._features is None:
            raise ValueError("rescore needs the features beside the index, which were not kept; leave it out")
        try:
            if theirs:
                self._faiss.ParameterSpace().set_index_parameters(self._index, ",".join(theirs))
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the index has nothing to turn for {parameters!r} ({_reason(error)})") from error
        self._rescore = rescore
        self.parameters = parameters

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns the best k: scores, float32 [n, k], best first, and rows, int64 [n, k], -1 where there are fewer."""
        wanted = max(k, -(-self._rescore * k // 10)) if self._rescore else k
        scores, rows = self._index.search(np.ascontiguousarray(queries), min(wanted, max(k, self._index.ntotal)))
        if not self._rescore or self._features is None:
            return scores, rows
        query, column = np.nonzero(rows >= 0)
        anew = np.full_like(scores, -np.inf)
        anew[query, column] = pair_products(queries, self._features, query, rows[query, column])
        order = np.lexsort((rows, -anew), axis=1)[:, :k]
        return np.take_along_axis(anew, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _ivf(index: Any) -> Any:
    faiss = require("faiss", extra=EXTRA)
    found = faiss.try_extract_index_ivf(index)
    return None if found is None else faiss.downcast_index(found)


def _reason(error: BaseException) -> str:
    """Returns faiss's own words, without where in its source they were said."""
    words = re.sub(r"Error in .* at \S+:\d+: (Error: )?", "", " ".join(str(error).split()))
    return words[:200] or type(error).__name__
