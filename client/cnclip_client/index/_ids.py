"""The ids of an index's rows, on the disk: a hundred million of them need no memory where they are looked up.

Integers are in `ids.npy`, int64 [N]. Where one is not, all are in `ids.jsonl`, a JSON value a line as beside features
in a .npy, with `ids.offsets.npy`, int64 [N + 1], where each line begins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._vocabulary import Id
from cnclip_client.features._ids import id_line
from cnclip_client.features._npy import map_npy

__all__ = ["ID_FILES", "Ids", "IdsWriter", "mapped_array", "open_ids", "repeated_rows"]

_INTEGERS, _LINES, _OFFSETS = "ids.npy", "ids.jsonl", "ids.offsets.npy"
ID_FILES = (_INTEGERS, _LINES, _OFFSETS)
_COPIED_ROWS = 1 << 16


class Ids(Protocol):
    """Ids by their rows."""

    def __len__(self) -> int: ...

    def close(self) -> None: ...

    def take(self, rows: Sequence[int]) -> list[Id]:
        """Returns the ids of some rows."""

    def keys(self) -> NDArray[np.int64]:
        """Returns int64 [N], in memory: equal for equal ids, and different for nearly all different ones."""


def open_ids(folder: Path, rows: int) -> Ids:
    """Opens the ids in a folder.

    Raises:
        BadFile: They are not as many, or damaged.
        OSError: They cannot be read.
    """
    return _Lines(folder, rows) if (folder / _LINES).exists() else _Integers(folder / _INTEGERS, rows)


def repeated_rows(ids: Ids) -> tuple[int, int, int] | None:
    """Returns two rows with the same id, and how many rows repeat an earlier one's; None if no id comes twice."""
    keys = ids.keys()
    keys.sort()
    doubtful = np.unique(keys[1:][keys[1:] == keys[:-1]])
    if not len(doubtful):
        return None
    rows = np.flatnonzero(np.isin(ids.keys(), doubtful)).tolist()
    first: dict[tuple[type, Id], int] = {}
    again = []
    for row, one in zip(rows, ids.take(rows), strict=True):
        if first.setdefault((type(one), one), row) != row:
            again.append((row, first[type(one), one]))
    return (again[0][1], again[0][0], len(again)) if again else None


class _Integers:
    def __init__(self, path: Path, rows: int) -> None:
        self._table = mapped_array(path, np.dtype("<i8"), (rows,), "ids")

    def __len__(self) -> int:
        return len(self._table)

    def close(self) -> None:
        pass

    def take(self, rows: Sequence[int]) -> list[Id]:
        found: list[Id] = self._table[np.asarray(rows, dtype=np.int64)].tolist()
        return found

    def keys(self) -> NDArray[np.int64]:
        return np.array(self._table)


class _Lines:
    def __init__(self, folder: Path, rows: int) -> None:
        self._offsets = mapped_array(folder / _OFFSETS, np.dtype("<i8"), (rows + 1,), "ids")
        self._file = (folder / _LINES).open("rb")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def close(self) -> None:
        self._file.close()

    def take(self, rows: Sequence[int]) -> list[Id]:
        found = []
        for offset in self._offsets[np.asarray(rows, dtype=np.int64)].tolist():
            self._file.seek(offset)
            found.append(json.loads(self._file.readline()))
        return found

    def keys(self) -> NDArray[np.int64]:
        keys = np.empty(len(self), dtype=np.int64)
        self._file.seek(0)
        for row, line in enumerate(self._file):
            keys[row] = int.from_bytes(hashlib.blake2b(line, digest_size=8).digest(), "little", signed=True)
        return keys


def mapped_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    """Maps a .npy file of an index's. Raises BadFile if it holds anything else, OSError."""
    fix = "make the index anew with --overwrite"
    table = map_npy(path, what, fix)
    if table.dtype != dtype or table.shape != shape:
        raise BadFile(f"not {dtype} {list(shape)}; {fix}", path=str(path))
    return table


class IdsWriter:
    """Writes ids into a folder, after those of another one; a context manager.

    Args:
        folder: Where to.
        before: Ids that come first, if there are any.
    """

    def __init__(self, folder: Path, before: Ids | None = None) -> None:
        self._folder = folder
        self._raw: IO[bytes] = (folder / "ids.partial").open("w+b")
        self._lines: IO[bytes] | None = None
        self.rows = 0
        for start in range(0, len(before or ()), _COPIED_ROWS):
            rows = range(start, min(start + _COPIED_ROWS, len(before or ())))
            self.append(before.take(rows) if before else [])

    def __enter__(self) -> IdsWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._raw.close()
        if self._lines is not None:
            self._lines.close()

    def append(self, ids: Sequence[Any]) -> None:
        """Adds ids."""
        if self._lines is None:
            try:
                if not all(type(one) is int for one in ids):
                    raise OverflowError
                self._raw.write(np.array(ids, dtype="<i8").tobytes())
            except OverflowError:
                self._become_lines()
        if self._lines is not None:
            self._append_lines(ids)
        self.rows += len(ids)

    def finish(self) -> None:
        """Makes the files whole, as `open_ids` wants them."""
        # What is written here: the integers themselves, or where lines begin and the last one ends.
        if self._lines is not None:
            self._lines.flush()
            self._raw.write(np.array([self._lines.tell()], dtype="<i8").tobytes())
        header = {"descr": "<i8", "fortran_order": False, "shape": (self._raw.tell() // 8,)}
        self._raw.seek(0)
        with (self._folder / (_INTEGERS if self._lines is None else _OFFSETS)).open("wb") as table:
            np.lib.format.write_array_header_1_0(table, header)  # type: ignore[no-untyped-call]
            shutil.copyfileobj(self._raw, table)
        (self._folder / "ids.partial").unlink()

    def _become_lines(self) -> None:
        self._raw.seek(0)
        self._lines = (self._folder / _LINES).open("wb")
        whole, self._raw = self._raw, (self._folder / "offsets.partial").open("w+b")
        with whole:
            while held := whole.read(8 * _COPIED_ROWS):
                self._append_lines(np.frombuffer(held, dtype="<i8").tolist())
        (self._folder / "offsets.partial").replace(self._folder / "ids.partial")

    def _append_lines(self, ids: Sequence[Any]) -> None:
        if self._lines is not None:
            lines = [id_line(one) + b"\n" for one in ids]
            ends = self._lines.tell() + np.cumsum([0, *map(len, lines)])
            self._raw.write(ends[:-1].astype("<i8").tobytes())
            self._lines.write(b"".join(lines))
