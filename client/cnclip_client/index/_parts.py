"""The files of features that an index is of, and how they are known again."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnclip_client._exceptions import BadFile, JobRefused
from cnclip_client._extras import require
from cnclip_client._parquet import parquet_files, told_parquet
from cnclip_client._vocabulary import Kind
from cnclip_client.features import Features, read_features
from cnclip_client.features._ids import id_line
from cnclip_client.features._parts import is_parts_folder, part_files

__all__ = ["Digest", "Part", "count_rows", "feature_files", "part_of", "unknown_parts"]

_COUNTED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file of features that is in an index.

    Attributes:
        path: Where it was, absolute.
        bytes: Its size.
        modified_ns: When it was written.
        rows: How many features it has.
        digest: Of its ids and features, which tells it where path or time are others.
    """

    path: str
    bytes: int
    modified_ns: int
    rows: int
    digest: str


class Digest:
    """What a file's ids and features come to, taken as they are read."""

    def __init__(self) -> None:
        self._ids = self._features = 0
        self.rows = 0

    def add(self, block: Features) -> None:
        """Takes in the next block."""
        self._ids = zlib.crc32(b"\n".join(map(id_line, block.ids.tolist())), self._ids)
        self._features = zlib.crc32(np.ascontiguousarray(block.features).data, self._features)
        self.rows += len(block)

    def __str__(self) -> str:
        return f"{self._ids:08x}{self._features:08x}"


def feature_files(paths: Iterable[Path]) -> list[Path]:
    """Returns the files that some files and folders of features stand for, each once, in their order.

    Raises:
        BadFile: A folder has none, or its job has not come to its end.
        OSError: A folder cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if is_parts_folder(path):
            found += part_files(path)
        elif files := parquet_files(path):
            found += files
        else:
            raise BadFile(
                "no features in it; give files of features, or folders of .parquet or of parts", path=str(path)
            )
    return list(dict.fromkeys(file.resolve() for file in found))


def count_rows(path: Path) -> int:
    """Returns how many features a file has, going by what it says of itself.

    Raises:
        BadFile: It is damaged.
        MissingExtra: It is parquet, and pyarrow is not installed.
        OSError: It cannot be read.
    """
    if path.suffix == ".parquet":
        parquet = require("pyarrow.parquet", extra="parquet")
        with told_parquet(path):
            return int(parquet.read_metadata(path).num_rows)
    # The lines of JSONL, and of the ids beside a .npy.
    lines = path.with_suffix(".ids.jsonl") if path.suffix == ".npy" else path
    if not lines.is_file():
        return 0  # reading it tells what is missing
    count, last = 0, b"\n"
    with lines.open("rb") as file:
        while data := file.read(_COUNTED_BYTES):
            count += data.count(b"\n")
            last = data[-1:]
    return count + (last != b"\n")


def part_of(file: Path, rows: int, digest: str) -> Part:
    """Returns what is noted of a file. Raises OSError."""
    found = file.stat()
    return Part(path=str(file), bytes=found.st_size, modified_ns=found.st_mtime_ns, rows=rows, digest=digest)


def unknown_parts(
    files: Iterable[Path], known: Iterable[Part], kind: Kind, normalize: bool, index: Path
) -> Iterator[Path]:
    """Yields those of some files that an index does not have yet.

    A file of the same path, size and time is the same; of another that could be, the features are read to see.

    Raises:
        JobRefused: A file of the index holds other features now.
    """
    by_path = {part.path: part for part in known}
    by_rows: dict[int, set[str]] = {}
    for one in by_path.values():
        by_rows.setdefault(one.rows, set()).add(one.digest)
    for file in files:
        part = by_path.get(str(file))
        if part is not None and part_of(file, part.rows, part.digest) == part:
            continue
        candidates = by_rows.get(count_rows(file), set())
        if candidates:
            digest = Digest()
            for block in read_features(file, kind, normalize=normalize):
                digest.add(block)
            if str(digest) in candidates:
                continue
        if part is not None:
            raise JobRefused(
                f"{file} has changed since it was put into the index; make the index anew with --overwrite",
                output=str(index),
            )
        yield file
