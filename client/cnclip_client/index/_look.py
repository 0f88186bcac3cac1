"""A first walk over features, before hours of work: that all can be read, no id comes twice, and a sample of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile, JobRefused
from cnclip_client._vocabulary import Kind
from cnclip_client.features import Features
from cnclip_client.index._ids import Ids, IdsWriter, repeated_rows
from cnclip_client.index._parts import Digest, FeatureFile, Part, feature_files

__all__ = ["Sample", "look", "require_distinct", "require_unchanged_since", "sample_of", "size_of"]


@dataclass(slots=True, eq=False)
class Sample:
    """Some rows of many, taken as they pass.

    Attributes:
        rows: int64 [n], rising: the numbers of those wanted.
        features: float32 [n, D], of them.
    """

    rows: NDArray[np.int64]
    features: NDArray[np.float32]

    @classmethod
    def wanted(cls, count: int, rows: int, size: int, seed: int) -> Sample:
        """Begins one of so many of the rows, the same at each call."""
        chosen = np.random.default_rng(seed).choice(rows, min(count, rows), replace=False)
        return cls(np.sort(chosen).astype(np.int64), np.empty((len(chosen), size), np.float32))

    def take(self, block: NDArray[np.float32], first: int) -> None:
        """Takes what is wanted of the next rows, of which the first has the number `first`."""
        start, stop = np.searchsorted(self.rows, [first, first + len(block)])
        self.features[start:stop] = block[self.rows[start:stop] - first]


def size_of(files: Sequence[FeatureFile]) -> int:
    """Returns the length of the first feature; 0 if there is none. Raises as `read_features`."""
    return next((block.features.shape[1] for file in files for block in file.blocks(block_bytes=1)), 0)


def look(files: Sequence[FeatureFile], size: int, ids: IdsWriter, samples: Sequence[Sample]) -> Iterator[Part]:
    """Reads files to their ends, and yields what is noted of each.

    Args:
        files: Of features.
        size: The length that they must have.
        ids: Gets their ids.
        samples: Get the features that they want.

    Raises:
        BadFile: A file is damaged, or of features of another length.
        JobRefused: One changes meanwhile.
        MissingExtra: One is parquet, and pyarrow is not installed.
        OSError: One cannot be read.
    """
    first = 0
    for file in files:
        before = file.part(0, "")
        digest = Digest()
        for block in file.blocks():
            _require_size(file, block, size, "features")
            digest.add(block)
            ids.append(block.ids.tolist())
            for sample in samples:
                sample.take(block.features, first)
            first += len(block)
        part = file.part(digest.rows, str(digest))
        require_unchanged_since(part, before)
        yield part


def _require_size(file: FeatureFile, block: Features, size: int, what: str) -> None:
    found = block.features.shape[1]
    if found != size:
        raise BadFile(
            f"{what} of {found} numbers, and the index is of {size}: they are of two models, and an index is of one; "
            "leave them out",
            path=str(file.path),
        )


def require_unchanged_since(part: Part, before: Part) -> None:
    """Sees that a file is what it was. Raises JobRefused."""
    if (part.bytes, part.modified_ns) != (before.bytes, before.modified_ns):
        raise JobRefused("changed while it was read; run this again when nobody writes it", output=part.path)


def sample_of(queries: Path, indexed: Kind, normalize: bool, count: int, size: int) -> NDArray[np.float32]:
    """Returns float32 [n, D], some of the features that will ask an index of the other kind.

    Raises:
        ValueError: There are none.
        BadFile: They are of another length; and as `look` raises.
    """
    files = feature_files([queries], "text" if indexed == "image" else "image", normalize)
    rows = sum(file.count() for file in files)
    if not rows:
        raise ValueError(f"there are no features in {queries}; give others as --queries")
    sample = Sample.wanted(count, rows, size, seed=2)
    first = 0
    for file in files:
        for block in file.blocks():
            _require_size(file, block, size, "queries")
            sample.take(block.features, first)
            first += len(block)
    return sample.features


def require_distinct(ids: Ids, parts: Sequence[Part], index: Path) -> None:
    """Sees that no id comes twice.

    Raises:
        BadFile: One does; it tells where.
    """
    found = repeated_rows(ids)
    if found is None:
        return
    *rows, count = found
    ends = list(accumulate(part.rows for part in parts))
    places = []
    for row in rows:
        number = int(np.searchsorted(ends, row, side="right"))
        places.append(f"{parts[number].path} row {row - ends[number] + parts[number].rows + 1}")
    raise BadFile(
        f"the id {ids.take(rows[:1])[0]!r} comes more than once, in {' and '.join(places)}, and in all {count} "
        "with an id that came before: each needs one feature; leave a file out, extract them anew with --repeated-ids "
        "first, or make the index anew with --overwrite if one takes another's place",
        path=str(index),
    )
