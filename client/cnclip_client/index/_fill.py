"""Rows put into an index, and beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import JobRefused
from cnclip_client.index._faiss import add, reserve
from cnclip_client.index._look import require_unchanged_since
from cnclip_client.index._measure import Check
from cnclip_client.index._options import Report
from cnclip_client.index._parts import FeatureFile, Part

__all__ = ["FeaturesFile", "fill"]

_HALF = np.dtype("<f2")
_npy: Any = np.lib.format


class FeaturesFile:
    """float16 [N, D] in a .npy file, written from its beginning to its end; a context manager."""

    def __init__(self, path: Path, rows: int, size: int, before: Path | None) -> None:
        """Begins with the rows of another file, if one is given. Raises OSError."""
        self._file: IO[bytes] = path.open("wb")
        try:
            _npy.write_array_header_1_0(self._file, {"descr": _HALF.str, "fortran_order": False, "shape": (rows, size)})
            if before is not None:
                with before.open("rb") as old:
                    _npy.read_magic(old)
                    _npy.read_array_header_1_0(old)
                    shutil.copyfileobj(old, self._file, 1 << 22)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> FeaturesFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, features: NDArray[np.float32]) -> None:
        """Adds rows.

        Raises:
            ValueError: A number is past what float16 holds.
        """
        with np.errstate(over="ignore"):
            halves = features.astype(_HALF)
        if not np.isfinite(halves).all():
            raise ValueError(
                "a feature has numbers past 65504, which float16 cannot hold; --normalize, or --no-rescore"
            )
        self._file.write(halves.tobytes())


def fill(
    index: Any,
    files: Sequence[FeatureFile],
    parts: Sequence[Part],
    first: int,
    check: Check,
    kept: FeaturesFile | None,
    report: Report,
) -> None:
    """Puts files' features into an index.

    Args:
        index: faiss's, trained; it holds `first` rows.
        files: The files.
        parts: What was noted of them before.
        first: The number of their first row.
        check: Compares its queries with them.
        kept: Gets the features as well.
        report: Called after each block.

    Raises:
        BadFile: A file is damaged.
        JobRefused: A file has changed since it was seen.
        OSError: One cannot be read or written.
        ValueError: The index takes none.
    """
    row, total = first, first + sum(part.rows for part in parts)
    reserve(index, total)
    for file, part in zip(files, parts, strict=True):
        require_unchanged_since(file.part(part.rows, part.digest), part)
        for block in file.blocks():
            add(index, block.features)
            check.add(block.features, row)
            if kept is not None:
                kept.append(block.features)
            row += len(block)
            report("indexing", row - first, total - first)
        require_unchanged_since(file.part(part.rows, part.digest), part)
    if row != total:
        raise JobRefused(f"{total} rows were counted and {row} read; run this again", output=parts[-1].path)
