"""The JSON lines of cn_clip's `eval/extract_features.py`."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._float32 import lists_of
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.features._features import Rows, rows_in
from cnclip_client.features._ids import id_line, require_id
from cnclip_client.features._sink import Sink

__all__ = ["JsonlSink", "read_jsonl"]

# Python's own 8 KiB hold one line of 512 numbers, so that each would be two reads and a copy.
_BUFFER_BYTES = 128 * 1024


class JsonlSink(Sink):
    """`{"image_id": 7, "feature": [0.25, ...]}`; it grows into the result itself."""

    def __init__(self, output: Path, kind: Kind, size: int) -> None:
        self.begins: Mapping[str, bytes] = {"features": b""}
        self.outputs: Mapping[str, Path] = {"features": output}
        self._line = b'{"' + kind.encode() + b'_id": %b, "feature": [%b]}\n'

    def encode(self, ids: Sequence[Id], features: NDArray[np.floating[Any]]) -> Mapping[str, bytes]:
        line = self._line
        rows = zip(ids, lists_of(features), strict=True)
        return {"features": b"".join([line % (id_line(one), feature) for one, feature in rows])}

    def assemble(self, folder: Path, rows: int) -> None:
        pass


def read_jsonl(path: Path, kind: str, block_bytes: int) -> Iterator[Rows]:
    """Yields what a file of lines holds, as every reader does. Raises BadFile, OSError."""
    ids: list[Any] = []
    rows: NDArray[np.float32] | None = None
    key = f"{kind}_id"
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        for number, line in enumerate(file, start=1):
            one, feature = _quickly_parsed(line, key) or _parse_line(path, number, line, kind)
            if rows is None:
                rows = np.empty((rows_in(block_bytes, len(feature)), len(feature)), dtype=np.float32)
            if len(feature) != rows.shape[1]:
                raise BadFile(
                    f"line {number}: a feature of {len(feature)} numbers after ones of {rows.shape[1]}; "
                    "they are of two models, or the line is torn",
                    path=str(path),
                )
            rows[len(ids)] = feature
            ids.append(one)
            if len(ids) == len(rows):
                yield ids, rows
                # Whoever got the block keeps it.
                ids, rows = [], np.empty_like(rows)
    if ids and rows is not None:
        yield ids, rows[: len(ids)]


def _quickly_parsed(line: bytes, key: str) -> tuple[int | str, NDArray[np.float64]] | None:
    """Returns what is in a line as nearly all of them are, [D]; None of any other, which `_parse_line` judges.

    orjson rounds a number to the nearest float64, as json does, in a tenth of the time. Where the two differ it takes
    less; only integers past 64 bits come as floats, which no id may be.
    """
    try:
        item = orjson.loads(line)
        one, numbers = item[key], item["feature"]
        # A third of the time of np.array(numbers).
        feature = np.frombuffer(struct.pack(f"{len(numbers)}d", *numbers))
    except (ValueError, TypeError, KeyError, struct.error):
        return None
    return (one, feature) if type(one) in (int, str) and feature.size else None


def _parse_line(path: Path, number: int, line: bytes, kind: str) -> tuple[Any, NDArray[np.float32]]:
    try:
        item = json.loads(line)
        one, feature = item[f"{kind}_id"], np.array(item["feature"], dtype=np.float32)
    except KeyError as error:
        other = "text" if kind == "image" else "image"
        hint = f"; it holds features of {other}s" if f"{other}_id" in item else "; it is no file of features"
        raise BadFile(f"line {number} has no {error}{hint}", path=str(path)) from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise BadFile(f"line {number} is no feature ({reason}); extract it anew", path=str(path)) from error
    if feature.ndim != 1 or not feature.size:
        raise BadFile(f"line {number}: its feature is no list of numbers; extract it anew", path=str(path))
    require_id(path, f"line {number}", one)
    return one, feature
