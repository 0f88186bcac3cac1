"""Reads the files that `cnclip extract` and cn_clip's own extract scripts write, block by block.

| file | holds |
|---|---|
| `NAME.jsonl` | a line for each item: `{"image_id": ID, "feature": [...]}`, for texts `text_id` |
| `NAME.parquet`, or a folder of such files | columns `image_id` or `text_id` and `feature`, a list of D floats |
| `NAME.npy` | float32 or float16 [N, D], with a JSON id a line in `NAME.ids.jsonl` beside it |
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client.features._features import Features, id_array

__all__ = ["read_features"]

_LOG = logging.getLogger(__name__)
_BLOCK_BYTES = 32 * 1024 * 1024
# float16 keeps a length of 1 to three digits.
_UNIT_TOLERANCE = 1e-2
_FORMATS = "a .jsonl, .parquet or .npy file, or a folder of .parquet files"


def read_features(
    path: str | PathLike[str],
    kind: Literal["image", "text"],
    *,
    normalize: bool = False,
    block_bytes: int = _BLOCK_BYTES,
) -> Iterator[Features]:
    """Yields a file's features in its order; memory is bounded by the size of a block, not of the file.

    They come as they were written, because cn_clip's scripts compare them so; a warning is logged where one's
    length is not 1, as scores are then no cosines.

    Args:
        path: A .jsonl, .parquet or .npy file or a folder of .parquet files, which are read by name.
        kind: Whose features are wanted; it names the column of ids.
        normalize: Whether to divide each feature by its length.
        block_bytes: The most bytes of features in a block, a single feature aside.

    Raises:
        BadFile: The file is none of these, or a line or row is not as it should be; the message names it.
        MissingExtra: A .parquet file, and pyarrow is not installed.
        OSError: The file cannot be read.
    """
    path = Path(path)
    warned = False
    size: int | None = None
    for ids, rows in _reader(path)(path, kind, block_bytes):
        try:
            block = Features(ids, rows)
        except ValueError as error:
            raise BadFile(f"{error}; extract it anew", path=str(path)) from error
        if size not in (None, rows.shape[1]):
            raise BadFile(f"features of {size} and of {rows.shape[1]} numbers; they are of two models", path=str(path))
        size = rows.shape[1]
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
        if normalize:
            if not lengths.all():
                raise BadFile(f"the feature of {ids[int(lengths.argmin())]!r} is all zeros", path=str(path))
            block = Features(ids, (rows / lengths[:, None]).astype(np.float32))
        elif not warned and (abs(lengths - 1) > _UNIT_TOLERANCE).any():
            warned = True
            row = int(abs(lengths - 1).argmax())
            _LOG.warning(
                "%s: the feature of %r has length %.3g, not 1, so scores are no cosines; normalize it when reading "
                "(--normalize) unless that is meant",
                *(path, ids[row], lengths[row]),
            )
        yield block


def _reader(path: Path) -> Any:
    if path.is_dir() or path.suffix == ".parquet":
        return _read_parquet
    try:
        return {".jsonl": _read_jsonl, ".npy": _read_npy}[path.suffix]
    except KeyError:
        raise BadFile(f"no file of features; give {_FORMATS}", path=str(path)) from None


def _read_jsonl(path: Path, kind: str, block_bytes: int) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
    ids: list[Any] = []
    rows: NDArray[np.float32] | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            one, feature = _parse_line(path, number, line, kind)
            if rows is None:
                rows = np.empty((_rows_in(block_bytes, len(feature)), len(feature)), dtype=np.float32)
            if len(feature) != rows.shape[1]:
                raise BadFile(
                    f"line {number}: a feature of {len(feature)} numbers after ones of {rows.shape[1]}; "
                    "they are of two models, or the line is torn",
                    path=str(path),
                )
            rows[len(ids)] = feature
            ids.append(one)
            if len(ids) == len(rows):
                yield id_array(ids), rows
                # Whoever got the block keeps it.
                ids, rows = [], np.empty_like(rows)
    if ids and rows is not None:
        yield id_array(ids), rows[: len(ids)]


def _parse_line(path: Path, number: int, line: bytes, kind: str) -> tuple[Any, NDArray[np.float32]]:
    try:
        item = json.loads(line)
        one, feature = item[f"{kind}_id"], np.array(item["feature"], dtype=np.float32)
    except KeyError as error:
        other = "text" if kind == "image" else "image"
        hint = f"; it holds features of {other}s" if f"{other}_id" in item else "; it is no file of features"
        raise BadFile(f"line {number} has no {error}{hint}", path=str(path)) from error
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise BadFile(f"line {number} is no feature ({reason}); extract it anew", path=str(path)) from error
    if feature.ndim != 1 or not feature.size:
        raise BadFile(f"line {number}: its feature is no list of numbers; extract it anew", path=str(path))
    _check_id(path, f"line {number}", one)
    return one, feature


def _check_id(path: Path, where: str, one: object) -> None:
    if not isinstance(one, int | str) or isinstance(one, bool):
        raise BadFile(f"{where}: the id {one!r} is neither an integer nor a string", path=str(path))


def _read_npy(path: Path, kind: str, block_bytes: int) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
    names = path.with_suffix(".ids.jsonl")
    if not names.is_file():
        raise BadFile(f"its ids are missing; put them, a JSON id a line, into {names.name} beside it", path=str(path))
    shape = _open_npy(path).shape
    start = 0
    with names.open("rb") as lines:
        while ids := list(islice(lines, _rows_in(block_bytes, shape[1]))):
            # Opened anew for each block, so that the mapping does not hold the pages of those before.
            rows = _open_npy(path)[start : start + len(ids)].astype(np.float32)
            if len(rows) == len(ids):
                yield id_array([_parse_id(names, start + row, line) for row, line in enumerate(ids, 1)]), rows
            start += len(ids)
    if start != shape[0]:
        raise BadFile(f"{shape[0]} features, and {start} ids in {names.name}; extract it anew", path=str(path))


def _open_npy(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadFile(f"no .npy file of numbers ({error}); extract it anew", path=str(path)) from error
    if array.ndim != 2 or array.dtype not in (np.float32, np.float16):
        raise BadFile(f"{array.dtype} {list(array.shape)}, not float32 or float16 [N, D]", path=str(path))
    return array  # type: ignore[no-any-return]


def _parse_id(path: Path, number: int, line: bytes) -> Any:
    try:
        one = json.loads(line)
    except ValueError as error:
        raise BadFile(f"line {number} is no JSON value; extract it anew", path=str(path)) from error
    _check_id(path, f"line {number}", one)
    return one


def _read_parquet(path: Path, kind: str, block_bytes: int) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
    pa, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise BadFile(f"no .parquet file in it; give {_FORMATS}", path=str(path))
    for file in files:
        try:
            # Without pre-buffering, which would hold the columns of a whole row group.
            with parquet.ParquetFile(file, pre_buffer=False) as opened:
                schema = opened.schema_arrow
                missing = [name for name in (f"{kind}_id", "feature") if name not in schema.names]
                if missing:
                    raise BadFile(f"no column {' or '.join(missing)} among {', '.join(schema.names)}", path=str(file))
                listed = schema.field("feature").type
                size = listed.list_size if pa.types.is_fixed_size_list(listed) else 1024
                for batch in opened.iter_batches(_rows_in(block_bytes, size), columns=[f"{kind}_id", "feature"]):
                    if batch.num_rows:
                        yield _batch(file, batch.column(f"{kind}_id"), batch.column("feature"))
        except pa.ArrowInvalid as error:
            raise BadFile(f"no parquet file ({error}); extract it anew", path=str(file)) from error


def _batch(path: Path, ids: Any, features: Any) -> tuple[NDArray[Any], NDArray[np.float32]]:
    values = features.flatten() if hasattr(features, "flatten") else None
    if values is None or ids.null_count or features.null_count or values.null_count:
        raise BadFile("a null, or a feature that is no list; extract it anew", path=str(path))
    if len(values) % len(ids) or not (features.value_lengths().to_numpy() == len(values) // len(ids)).all():
        raise BadFile("features of different lengths; they are of two models", path=str(path))
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind != "f":
        raise BadFile(f"features of {numbers.dtype}, not of floats", path=str(path))
    held = ids.to_pylist()
    for one in held:
        _check_id(path, "a row", one)
    return id_array(held), numbers.reshape(len(ids), -1).astype(np.float32)


def _rows_in(block_bytes: int, size: int) -> int:
    return max(1, block_bytes // (4 * max(1, size)))
