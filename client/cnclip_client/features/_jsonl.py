"""The JSON lines of cn_clip's `eval/extract_features.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._float32 import DIGITS
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.features._sink import id_line

__all__ = ["JsonlSink"]


class JsonlSink:
    """`{"image_id": 7, "feature": [0.25, ...]}`; it grows into the result itself."""

    def __init__(self, output: Path, kind: Kind, size: int) -> None:
        self.begins: Mapping[str, bytes] = {"features": b""}
        self.outputs: Mapping[str, Path] = {"features": output}
        numbers = b", ".join([f"%{DIGITS}".encode()] * size)
        self._line = b'{"' + kind.encode() + b'_id": %b, "feature": [' + numbers + b"]}\n"

    def refusal(self, one: Id) -> str:
        return ""

    def encode(self, ids: Sequence[Id], features: NDArray[np.floating[Any]]) -> Mapping[str, bytes]:
        line = self._line
        rows = zip(ids, features.tolist(), strict=True)
        return {"features": b"".join([line % (id_line(one), *feature) for one, feature in rows])}

    def assemble(self, folder: Path, rows: int) -> None:
        pass
