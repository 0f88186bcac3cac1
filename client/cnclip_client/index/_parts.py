"""The files of features that an index is of, and how they are known again."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnclip_client._exceptions import BadFile, JobRefused
from cnclip_client._parquet import parquet_files, parquet_metadata
from cnclip_client._vocabulary import Kind
from cnclip_client.features import Features, read_features
from cnclip_client.features._ids import id_array, id_line
from cnclip_client.features._npy import ids_of_npy
from cnclip_client.features._parquet import have_string_ids
from cnclip_client.features._parts import is_parts_folder, part_files

__all__ = ["Digest", "FeatureFile", "Part", "feature_files", "unknown_parts"]

_COUNTED_BYTES = 1 << 20
_BLOCK_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A file of features that is in an index.

    Attributes:
        path: Where it was, absolute.
        bytes: Its size.
        modified_ns: When it was written.
        rows: How many features it has.
        digest: Of its ids and features, which tells it where path or time are others.
        strings: Whether its ids, though integers, count as strings, for another of its folder has strings.
    """

    path: str
    bytes: int
    modified_ns: int
    rows: int
    digest: str
    strings: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFile:
    """A file of features that is to be read.

    Attributes:
        path: The file, absolute.
        kind: What they are features of.
        normalize: Whether each is divided by its length.
        strings: As for `Part`.
    """

    path: Path
    kind: Kind
    normalize: bool
    strings: bool = False

    def blocks(self, block_bytes: int = _BLOCK_BYTES) -> Iterator[Features]:
        """Yields what it holds. Raises as `read_features`."""
        for block in read_features(self.path, self.kind, normalize=self.normalize, block_bytes=block_bytes):
            yield (
                Features(id_array([str(one) for one in block.ids.tolist()]), block.features) if self.strings else block
            )

    def part(self, rows: int, digest: str) -> Part:
        """Returns what is noted of it. Raises OSError."""
        found = self.path.stat()
        return Part(
            path=str(self.path),
            bytes=found.st_size,
            modified_ns=found.st_mtime_ns,
            rows=rows,
            digest=digest,
            strings=self.strings,
        )

    def count(self) -> int:
        """Returns how many features it has, going by what it says of itself.

        Raises:
            BadFile: It is damaged.
            MissingExtra: It is parquet, and pyarrow is not installed.
            OSError: It cannot be read.
        """
        if self.path.suffix == ".parquet":
            return int(parquet_metadata(self.path).num_rows)
        # The lines of JSONL, and of the ids beside a .npy.
        lines = ids_of_npy(self.path) if self.path.suffix == ".npy" else self.path
        if not lines.is_file():
            return 1  # reading it tells what is missing
        count, last = 0, b"\n"
        with lines.open("rb") as file:
            while data := file.read(_COUNTED_BYTES):
                count += data.count(b"\n")
                last = data[-1:]
        return count + (last != b"\n")


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


def feature_files(paths: Iterable[Path], kind: Kind, normalize: bool) -> list[FeatureFile]:
    """Returns the files that some files and folders of features stand for, each once, in their order.

    Raises:
        BadFile: A folder has none, or its job has not come to its end.
        MissingExtra: One is parquet, and pyarrow is not installed.
        OSError: A folder cannot be read.
    """
    found: dict[Path, FeatureFile] = {}
    for path in paths:
        of_parts = is_parts_folder(path)
        files = part_files(path) if of_parts else parquet_files(path)
        if not files:
            raise BadFile(
                "no features in it; give files of features, or folders of .parquet or of parts", path=str(path)
            )
        strings = of_parts and have_string_ids(files, kind)
        for file in files:
            target = file.resolve()
            # Not where the name alone tells what it is: Hugging Face's cache has links to files named by their digests.
            place = target if target.suffix == file.suffix else file.parent.resolve() / file.name
            found.setdefault(target, FeatureFile(path=place, kind=kind, normalize=normalize, strings=strings))
    return list(found.values())


def unknown_parts(files: Iterable[FeatureFile], known: Iterable[Part], index: Path) -> Iterator[FeatureFile]:
    """Yields those of some files that an index does not have yet.

    A file of the same path, size and time is the same; of another that could be, the features are read to see.

    Raises:
        JobRefused: A file of the index holds other features now.
        BadFile: One is damaged.
        OSError: One cannot be read.
    """
    by_path = {part.path: part for part in known}
    by_rows: dict[int, set[str]] = {}
    for one in by_path.values():
        by_rows.setdefault(one.rows, set()).add(one.digest)
    for file in files:
        part = by_path.get(str(file.path))
        if part is not None and file.part(part.rows, part.digest) == part:
            continue
        candidates = by_rows.get(file.count(), set())
        if candidates:
            digest = Digest()
            for block in file.blocks():
                digest.add(block)
            if str(digest) in candidates:
                continue
        if part is not None:
            raise JobRefused(
                f"{file.path} has changed since it was put into the index; make the index anew with --overwrite",
                output=str(index),
            )
        yield file
