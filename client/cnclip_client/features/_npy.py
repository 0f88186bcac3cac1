"""One numpy array, which other programs can map into memory, and the ids of its rows."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._replacing import sync_open
from cnclip_client._vocabulary import Id
from cnclip_client.features._features import Rows, rows_in
from cnclip_client.features._ids import id_line, ids_of, require_id
from cnclip_client.features._sink import Dtype, Sink, little_endian

__all__ = ["NpySink", "ids_of_npy", "map_npy", "read_npy"]

# numpy's format 1.0: magic, version, the length of the rest as uint16, and a dict in ASCII up to the 128th byte.
_HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"
_IDS = ".ids.jsonl"


class NpySink(Sink):
    """float32 or float16 [N, D]; it grows into the result, and its header is made true at the end."""

    def __init__(self, output: Path, size: int, dtype: Dtype) -> None:
        self._size = size
        self._descr = little_endian(dtype)
        self.begins: Mapping[str, bytes] = {"features": self._header(0), "ids": b""}
        self.outputs: Mapping[str, Path] = {"ids": output.with_suffix(_IDS), "features": output}

    def encode(self, ids: Sequence[Id], features: NDArray[np.floating[Any]]) -> Mapping[str, bytes]:
        lines = b"".join([id_line(one) + b"\n" for one in ids])
        return {"features": features.astype(self._descr, copy=False).tobytes(), "ids": lines}

    def assemble(self, folder: Path, rows: int) -> None:
        path = folder / "features"
        if path.exists():  # else it was put in its place already
            with path.open("r+b") as file:
                file.write(self._header(rows))
                file.flush()
                sync_open(file.fileno(), path)

    def _header(self, rows: int) -> bytes:
        known = {"descr": self._descr, "fortran_order": False, "shape": (rows, self._size)}
        start = _MAGIC + (_HEADER_BYTES - len(_MAGIC) - 2).to_bytes(2, "little") + repr(known).encode()
        return start.ljust(_HEADER_BYTES - 1) + b"\n"


def ids_of_npy(path: Path) -> Path:
    """Returns where the ids of an array are: beside it, or of a link beside what it leads to, where a job puts them."""
    names = path.with_suffix(_IDS)
    return names if names.exists() or not path.is_symlink() else path.resolve().with_suffix(_IDS)


def read_npy(path: Path, kind: str, block_bytes: int) -> Iterator[Rows]:
    """Yields what an array and the ids beside it hold, as every reader does. Raises BadFile, OSError."""
    names = ids_of_npy(path)
    if not names.is_file():
        beside = path.with_suffix(_IDS).name
        raise BadFile(f"its ids are missing; put them, a JSON id a line, into {beside} beside it", path=str(path))
    shape = _open_npy(path).shape
    start = 0
    with names.open("rb") as lines:
        while ids := list(islice(lines, rows_in(block_bytes, shape[1]))):
            # Opened anew for each block, so that the mapping does not hold the pages of those before.
            rows = _open_npy(path)[start : start + len(ids)].astype(np.float32)
            if len(rows) == len(ids):
                yield _parse_ids(names, start, ids), rows
            start += len(ids)
    if start != shape[0]:
        raise BadFile(f"{shape[0]} features, and {start} ids in {names.name}; extract it anew", path=str(path))


def _open_npy(path: Path) -> NDArray[Any]:
    array = map_npy(path, "numbers", "extract it anew")
    if array.ndim != 2 or array.dtype not in (np.float32, np.float16):
        raise BadFile(f"{array.dtype} {list(array.shape)}, not float32 or float16 [N, D]", path=str(path))
    return array


def map_npy(path: Path, what: str, fix: str) -> NDArray[Any]:
    """Maps the array of a .npy file. Raises BadFile, which says what was to be in it and what mends it, and OSError."""
    try:
        array = _load_mapped(path)
    except OSError:
        raise
    # Of a damaged header numpy raises ValueError, EOFError, TypeError, SyntaxError, TokenError, OverflowError, ...
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise BadFile(f"no .npy file of {what} ({reason}); {fix}", path=str(path)) from error
    if not isinstance(array, np.ndarray):
        raise BadFile(f"an archive of arrays, not one of {what}; {fix}", path=str(path))
    array.flags.writeable = False
    return array


def _load_mapped(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        # FUSE's disks that cache nothing map a file for one process alone. Not always so: memory has to be there for
        # such a mapping, and a file larger than it is refused.
        return np.load(path, mmap_mode="c", allow_pickle=False)


def _parse_ids(path: Path, start: int, lines: list[bytes]) -> list[Any]:
    try:
        found = ids_of(lines)
    except (ValueError, RecursionError):
        found = [_parse_id(path, number, line) for number, line in enumerate(lines, start + 1)]
    for number, one in enumerate(found, start + 1):
        require_id(path, f"line {number}", one)
    return found


def _parse_id(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadFile(f"line {number} is no JSON value; extract it anew", path=str(path)) from error
