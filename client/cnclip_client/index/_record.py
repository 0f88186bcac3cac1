"""What an index says of itself: `index.json` in its folder, which makes the folder one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from cnclip_client._exceptions import BadFile
from cnclip_client._vocabulary import Kind
from cnclip_client.features import Origin
from cnclip_client.index._measure import Measured
from cnclip_client.index._parts import Part

__all__ = ["ANEW", "RECORD", "Record", "is_index"]

_T = TypeVar("_T")

RECORD = "index.json"
_FORMAT = 1
ANEW = "make the index anew with --overwrite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What an index is.

    Attributes:
        kind: Whether it is of images or of texts.
        rows: How many.
        size: D, the features' length.
        factory: What faiss's `index_factory` made it of.
        normalize: Whether features were divided by their length when they were read.
        origin: What made the features, where their files tell.
        parts: The files that are in it, in the rows' order.
        trained_rows: How many rows there were when it was made.
        memory_bytes_a_row: What searching takes of memory, a row.
        disk_bytes_a_row: What the folder takes of the disk, a row.
        measured: How good it is.
        seconds: What the last call took that made it or added to it.
        files: The files beside this one: their sizes, and the CRC-32 of each 64 MiB.
        made_by: Versions of what made it.
        format: Of the folder.
    """

    kind: Kind
    rows: int
    size: int
    factory: str
    normalize: bool
    origin: Origin | None
    parts: tuple[Part, ...]
    trained_rows: int
    memory_bytes_a_row: float
    disk_bytes_a_row: float
    measured: Measured
    seconds: float
    files: Mapping[str, tuple[int, tuple[int, ...]]]
    made_by: Mapping[str, str]
    format: int = _FORMAT

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Reads the record of an index.

        Raises:
            BadFile: The folder is no index, or its record is damaged.
            OSError: It cannot be read.
        """
        path = folder / RECORD
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadFile("no index; `cnclip index` makes one", path=str(folder)) from error
        except (ValueError, RecursionError) as error:
            raise BadFile(f"no JSON ({error}); {ANEW}", path=str(path)) from error
        if isinstance(found, dict) and type(found.get("format")) is int and found["format"] > _FORMAT:
            raise BadFile(
                f"of format {found['format']}, which this version does not know; install a newer one", path=str(path)
            )
        try:
            return cls._of(found)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BadFile(f"not the record of an index ({error}); {ANEW}", path=str(path)) from error

    @classmethod
    def _of(cls, found: dict[str, Any]) -> Record:
        values = {one.name: found[one.name] for one in fields(cls)}
        origin = found["origin"]
        values["origin"] = None if origin is None else _typed(Origin, origin)
        values["parts"] = tuple(_typed(Part, one) for one in found["parts"])
        values["measured"] = _typed(Measured, found["measured"])
        values["files"] = {name: (int(size), tuple(map(int, sums))) for name, (size, sums) in found["files"].items()}
        record = _typed(cls, values)
        if record.kind not in get_args(Kind) or min(record.rows, record.size, record.trained_rows) < 1:
            raise ValueError("its kind, rows or size are none")
        if sum(part.rows for part in record.parts) != record.rows:
            raise ValueError("its parts have not as many rows")
        return record

    def require_origin(self, place: Path, path: Path, origin: Origin) -> None:
        """Sees that features are of the checkpoint that the index at a place is of, where both are known.

        Raises:
            BadFile: They are of another.
        """
        if self.origin is not None and self.origin.checkpoint_sha256 != origin.checkpoint_sha256:
            raise BadFile(
                f"its features are of {origin}, and the index {place} is of {self.origin}: they cannot be compared; "
                "extract them with that one, or make an index of this one's",
                path=str(path),
            )

    def as_json(self) -> str:
        """Returns what is written."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def _typed(cls: type[_T], values: Any) -> _T:
    """Makes a dataclass whose plain fields are of the types that they should be. Raises TypeError."""
    made = cls(**values)
    for name, wanted in get_type_hints(cls).items():
        value = getattr(made, name)
        if wanted in (int, float, str, bool) and type(value) not in ((int, float) if wanted is float else (wanted,)):
            raise TypeError(f"its {name} is {value!r}")
    return made


def is_index(folder: Path) -> bool:
    """Whether a folder is an index, sound or not."""
    return (folder / RECORD).is_file()
