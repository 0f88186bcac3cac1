"""Parquet: what data pipelines and vector databases read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client._parquet import opened_parquet, parquet_files
from cnclip_client._replacing import replacing
from cnclip_client._vocabulary import Id, Kind
from cnclip_client.features._features import Rows, rows_in
from cnclip_client.features._ids import id_line, ids_of, require_id
from cnclip_client.features._origin import PARQUET_KEY
from cnclip_client.features._sink import Dtype, Sink, little_endian

__all__ = ["ParquetSink", "have_string_ids", "read_parquet"]

_LOG = logging.getLogger(__name__)
_ROW_GROUP = 16 * 1024
_INT64 = range(-(2**63), 2**63)


class ParquetSink(Sink):
    """A column of ids and one of fixed-size lists, in row groups of 16,384.

    A parquet file cannot be added to once its writer is gone. So features grow as plain numbers, and are copied at the
    end, which takes the disk space twice for as long.
    """

    def __init__(
        self, output: Path, kind: Kind, size: int, dtype: Dtype, origin: Mapping[str, Any] | None = None
    ) -> None:
        require("pyarrow.parquet", extra="parquet")  # before hours of work
        self.begins: Mapping[str, bytes] = {"features": b"", "ids": b""}
        self.outputs: Mapping[str, Path] = {"parquet": output}
        self._kind = kind
        self._size = size
        self._dtype = dtype
        self._metadata = {PARQUET_KEY: json.dumps(origin)} if origin else None

    def refusal(self, one: Id) -> str:
        if isinstance(one, str):
            try:
                one.encode()
            except UnicodeEncodeError:
                return "its id is not UTF-8, which parquet cannot hold; .jsonl can"
        return ""

    def id_bytes(self, one: Id) -> bytes:
        return str(one).encode()  # if some are strings, 7 and "7" are one

    def encode(self, ids: Sequence[Id], features: NDArray[np.floating[Any]]) -> Mapping[str, bytes]:
        lines = b"".join([id_line(one) + b"\n" for one in ids])
        return {"features": features.astype(little_endian(self._dtype), copy=False).tobytes(), "ids": lines}

    def assemble(self, folder: Path, rows: int) -> None:
        pa, parquet = require("pyarrow", extra="parquet"), require("pyarrow.parquet", extra="parquet")
        types = {"float32": pa.float32(), "float16": pa.float16()}
        ids = pa.int64() if self._all_integers(folder / "ids") else pa.string()
        schema = pa.schema(
            [
                pa.field(f"{self._kind}_id", ids, nullable=False),
                pa.field("feature", pa.list_(pa.field("element", types[self._dtype]), self._size), nullable=False),
            ],
            metadata=self._metadata,
        )
        # Features neither repeat nor compress.
        options = {"compression": "none", "use_dictionary": False, "write_statistics": [f"{self._kind}_id"]}
        with (
            replacing(folder / "parquet", alone=True) as file,
            parquet.ParquetWriter(file, schema, **options) as writer,
        ):
            for group in self._groups(folder, schema):
                writer.write_table(group, row_group_size=_ROW_GROUP)

    def _all_integers(self, path: Path) -> bool:
        integers = strings = False
        with path.open("rb") as lines:
            while held := ids_of(list(islice(lines, _ROW_GROUP))):
                fit = [isinstance(one, int) and one in _INT64 for one in held]
                integers, strings = integers or any(fit), strings or not all(fit)
        if integers and strings:
            _LOG.warning("not all ids are integers of 64 bits with a sign; in parquet's one column all become strings")
        return not strings

    def _groups(self, folder: Path, schema: Any) -> Iterator[Any]:
        pa = require("pyarrow", extra="parquet")
        descr = little_endian(self._dtype)
        row_bytes = np.dtype(descr).itemsize * self._size
        with (folder / "ids").open("rb") as lines, (folder / "features").open("rb") as file:
            while held := ids_of(list(islice(lines, _ROW_GROUP))):
                numbers = np.frombuffer(file.read(row_bytes * len(held)), descr)
                ids = held if schema.field(0).type == pa.int64() else [str(one) for one in held]
                lists = pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=schema.field(1).type)
                yield pa.Table.from_arrays([pa.array(ids, schema.field(0).type), lists], schema=schema)


def read_parquet(path: Path, kind: str, block_bytes: int) -> Iterator[Rows]:
    """Yields what a file or a folder of them holds, as every reader does. Raises BadFile, MissingExtra, OSError."""
    types = require("pyarrow", extra="parquet").types
    for file in parquet_files(path):
        with opened_parquet(file) as opened:
            schema = opened.schema_arrow
            missing = [name for name in (f"{kind}_id", "feature") if name not in schema.names]
            if missing:
                raise BadFile(f"no column {' or '.join(missing)} among {', '.join(schema.names)}", path=str(file))
            listed = schema.field("feature").type
            size = listed.list_size if types.is_fixed_size_list(listed) else 1024
            for batch in opened.iter_batches(rows_in(block_bytes, size), columns=[f"{kind}_id", "feature"]):
                if batch.num_rows:
                    yield _batch(file, batch.column(f"{kind}_id"), batch.column("feature"))


def have_string_ids(files: Sequence[Path], kind: str) -> bool:
    """Whether the ids of a folder's parts are strings, since those of one part are; in the others they may be integers.

    Raises BadFile, MissingExtra, OSError.
    """
    return files[0].suffix == ".parquet" and not all(_has_integer_ids(file, kind) for file in files)


def _has_integer_ids(file: Path, kind: str) -> bool:
    """Whether a file's ids are integers, or it holds none."""
    types = require("pyarrow", extra="parquet").types
    with opened_parquet(file) as opened:
        schema = opened.schema_arrow
        column = schema.get_field_index(f"{kind}_id")
        return not opened.metadata.num_rows or column < 0 or bool(types.is_integer(schema.field(column).type))


def _batch(path: Path, ids: Any, features: Any) -> Rows:
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
        require_id(path, "a row", one)
    return held, numbers.reshape(len(ids), -1).astype(np.float32)
