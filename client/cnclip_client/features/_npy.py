"""One numpy array, which other programs can map into memory, and the ids of its rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._vocabulary import Id
from cnclip_client.features._sink import Dtype, id_line, little_endian

__all__ = ["NpySink"]

# numpy's format 1.0: magic, version, the length of the rest as uint16, and a dict in ASCII up to the 128th byte.
_HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"


class NpySink:
    """float32 or float16 [N, D]; it grows into the result, and its header is made true at the end."""

    def __init__(self, output: Path, size: int, dtype: Dtype) -> None:
        self._size = size
        self._descr = little_endian(dtype)
        self.begins: Mapping[str, bytes] = {"features": self._header(0), "ids": b""}
        self.outputs: Mapping[str, Path] = {"ids": output.with_suffix(".ids.jsonl"), "features": output}

    def refusal(self, one: Id) -> str:
        return ""

    def encode(self, ids: Sequence[Id], features: NDArray[np.floating[Any]]) -> Mapping[str, bytes]:
        lines = b"".join([id_line(one) + b"\n" for one in ids])
        return {"features": features.astype(self._descr, copy=False).tobytes(), "ids": lines}

    def assemble(self, folder: Path, rows: int) -> None:
        path = folder / "features"
        if path.exists():  # else it was put in its place already
            with path.open("r+b") as file:
                file.write(self._header(rows))
                file.flush()
                os.fsync(file.fileno())

    def _header(self, rows: int) -> bytes:
        known = {"descr": self._descr, "fortran_order": False, "shape": (rows, self._size)}
        start = _MAGIC + (_HEADER_BYTES - len(_MAGIC) - 2).to_bytes(2, "little") + repr(known).encode()
        return start.ljust(_HEADER_BYTES - 1) + b"\n"
