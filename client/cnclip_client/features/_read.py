"""Chooses the reader by the name of the file, and sees that what it reads goes together."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import numpy as np

from cnclip_client._exceptions import BadFile
from cnclip_client._parquet import parquet_files
from cnclip_client._vocabulary import Kind
from cnclip_client.features._features import Features, Rows
from cnclip_client.features._ids import id_array
from cnclip_client.features._jsonl import read_jsonl
from cnclip_client.features._npy import read_npy
from cnclip_client.features._parquet import have_string_ids, read_parquet
from cnclip_client.features._parts import is_parts_folder, part_files

__all__ = ["read_features"]

_LOG = logging.getLogger(__name__)
_BLOCK_BYTES = 32 * 1024 * 1024
# float16 keeps a length of 1 to three digits.
_UNIT_TOLERANCE = 1e-2
_FORMATS = "a .jsonl, .parquet or .npy file, a folder of .parquet files, or one that cnclip extract has written"
_READERS = {".jsonl": read_jsonl, ".npy": read_npy, ".parquet": read_parquet}


def read_features(
    path: str | PathLike[str],
    kind: Kind,
    *,
    normalize: bool = False,
    block_bytes: int = _BLOCK_BYTES,
) -> Iterator[Features]:
    """Yields a file's features in its order; memory is bounded by the size of a block, not of the file.

    They come as they were written, because cn_clip's scripts compare them so; a warning is logged where one's
    length is not 1, as scores are then no cosines.

    Args:
        path: A .jsonl, .parquet or .npy file; or a folder that a job has written parts to; or one with .parquet files
            in it and below, which are read by path.
        kind: Whose features are wanted; it names the column of ids.
        normalize: Whether to divide each feature by its length.
        block_bytes: The most bytes of features in a block, a single feature aside.

    Raises:
        BadFile: The file is none of these, or a line or row is not as it should be; the message names it.
        MissingExtra: A .parquet file, and pyarrow is not installed.
        OSError: The file cannot be read.
    """
    if not os.fspath(path):
        raise BadFile(f"no path was given; give {_FORMATS}", path="''")  # it would be the current folder
    path = Path(path)
    warned = False
    size: int | None = None
    for ids, rows in _rows(path, kind, block_bytes):
        try:
            block = Features(id_array(ids), rows)
        except ValueError as error:
            raise BadFile(f"{error}; extract it anew", path=str(path)) from error
        if size not in (None, rows.shape[1]):
            raise BadFile(f"features of {size} and of {rows.shape[1]} numbers; they are of two models", path=str(path))
        size = rows.shape[1]
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
        if normalize:
            if not lengths.all():
                raise BadFile(f"the feature of {ids[int(lengths.argmin())]!r} is all zeros", path=str(path))
            block = Features(block.ids, (rows / lengths[:, None]).astype(np.float32))
        elif not warned and (abs(lengths - 1) > _UNIT_TOLERANCE).any():
            warned = True
            row = int(abs(lengths - 1).argmax())
            _LOG.warning(
                "%s: the feature of %r has length %.3g, not 1, so scores are no cosines; normalize it when reading "
                "(--normalize) unless that is meant",
                *(path, ids[row], lengths[row]),
            )
        yield block


def _rows(path: Path, kind: Kind, block_bytes: int) -> Iterator[Rows]:
    if is_parts_folder(path):
        yield from _rows_of_parts(part_files(path), kind, block_bytes)
        return
    if path.is_dir() and not parquet_files(path):
        raise BadFile(f"no .parquet file in it; give {_FORMATS}", path=str(path))
    reader = read_parquet if path.is_dir() else _READERS.get(path.suffix)
    if reader is None:
        raise BadFile(f"no file of features; give {_FORMATS}", path=str(path))
    yield from reader(path, kind, block_bytes)


def _rows_of_parts(files: list[Path], kind: Kind, block_bytes: int) -> Iterator[Rows]:
    # Each part's column holds integers if all of its own ids are. Where another's holds strings, they come as they
    # would from one file.
    strings = have_string_ids(files, kind)
    for file in files:
        for ids, rows in _READERS[file.suffix](file, kind, block_bytes):
            yield ([str(one) for one in ids] if strings else ids), rows
