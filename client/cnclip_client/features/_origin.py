"""Which checkpoint features are of, as far as their files tell: only those of one can be compared."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import BadFile
from cnclip_client._parquet import parquet_files, parquet_metadata
from cnclip_client.features._parts import is_parts_folder, part_files, record_name

__all__ = ["PARQUET_KEY", "Origin", "origin_of", "require_one_checkpoint", "warn_of_unknown"]

_LOG = logging.getLogger(__name__)

PARQUET_KEY = "cnclip"
"""Under which parquet's own metadata hold it, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What made some features.

    Attributes:
        checkpoint_sha256: The checkpoint, hexadecimal.
        model: The slug of the served model.
        arch: cn_clip's name of the architecture.
    """

    checkpoint_sha256: str
    model: str
    arch: str

    def __str__(self) -> str:
        return f"checkpoint {self.checkpoint_sha256[:12]} ({self.model})"


def origin_of(path: str | PathLike[str]) -> Origin | None:
    """Returns what made the features of a file or folder that `read_features` takes; None where nothing tells.

    Parquet tells by itself; of other files `FILE.job.json` beside it does, if it is of a file of this size; of a
    folder of parts each part.

    Args:
        path: The file or folder.

    Raises:
        BadFile: A folder's files are of two checkpoints, or one is damaged.
        MissingExtra: A .parquet file, and pyarrow is not installed.
        OSError: It cannot be read.
    """
    path = Path(path)
    path.stat()  # of one that is not there nobody wonders which checkpoint it is of
    if not path.is_dir():
        # Beside a link, or beside what it leads to, where a job puts it.
        return _of_parquet(path) if path.suffix == ".parquet" else _of_record(path) or _of_record(path.resolve())
    first: tuple[Path, Origin | None] | None = None
    # Of a part its record is believed, which is much smaller than the metadata of a parquet file.
    of_parts = is_parts_folder(path)
    for file in part_files(path) if of_parts else parquet_files(path):
        found = _of_record(file) if of_parts else _of_parquet(file)
        if first is None:
            first = file, found
        elif found != first[1]:
            _refuse(first[0], first[1], file, found)
            if first[1] is not None:
                first = file, None  # one that is not known leaves all of them so
    return first[1] if first else None


def require_one_checkpoint(*paths: str | PathLike[str]) -> None:
    """Sees that some files or folders of features are of one checkpoint; where that is not known a warning is logged.

    Raises:
        BadFile: They are of two; or as `origin_of`.
        MissingExtra: As `origin_of`.
        OSError: One cannot be read.
    """
    known: tuple[Path, Origin] | None = None
    unknown = []
    for path in map(Path, paths):
        found = origin_of(path)
        if found is None:
            unknown.append(str(path))
        elif known is None:
            known = path, found
        else:
            _refuse(*known, path, found)
    warn_of_unknown(unknown)


def warn_of_unknown(paths: Sequence[str]) -> None:
    """Warns that nothing tells which checkpoint the features of some files or folders are of."""
    if paths:
        _LOG.warning(
            "no telling which checkpoint the features of %s are of; see that all that is compared is of one",
            " and ".join(paths),
        )


def _refuse(first: Path, one: Origin | None, second: Path, other: Origin | None) -> None:
    if one is not None and other is not None and one.checkpoint_sha256 != other.checkpoint_sha256:
        raise BadFile(
            f"its features are of {other}, and those of {first} of {one}: they cannot be compared; extract both with "
            "one checkpoint",
            path=str(second),
        )


def _of_record(path: Path) -> Origin | None:
    """Returns what the record beside a file says, if it is of this file, as far as its size tells."""
    try:
        record = json.loads(path.with_name(record_name(path.name)).read_bytes())
        return _parsed(record["job"]) if record["sizes"].get(path.name) == path.stat().st_size else None
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _of_parquet(path: Path) -> Origin | None:
    metadata = parquet_metadata(path).metadata or {}
    try:
        return _parsed(json.loads(metadata[PARQUET_KEY.encode()]))
    except (ValueError, KeyError, RecursionError):
        return None


def _parsed(known: Any) -> Origin | None:
    if not isinstance(known, Mapping):
        return None
    values = {name: known[name] for name in ("checkpoint_sha256", "model", "arch")}
    return Origin(**values) if all(isinstance(value, str) and value for value in values.values()) else None
