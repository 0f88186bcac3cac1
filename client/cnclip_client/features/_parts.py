"""A folder of features in parts, as a job writes it: what its files are called, and which of them are to be read.

| file | holds |
|---|---|
| `job.json` | what the job is, and how its items are shared out among parts |
| `part-00000.parquet` (`.npy`, `.jsonl`) | features of the first items of the source, and so on |
| `part-00000.parquet.job.json` | that this part is whole: its counts, and whether the source ends with it |
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import BadFile

__all__ = ["FOLDER_RECORD", "is_parts_folder", "part_files", "part_name", "part_records", "record_name"]

FOLDER_RECORD = "job.json"
_RECORD = re.compile(r"part-([0-9]{5,})\.(parquet|npy|jsonl)\.job\.json")


def part_name(number: int, format: str) -> str:
    """Returns what the file of a part is called; the names' order is that of the parts as long as they are 100,000."""
    return f"part-{number:05d}.{format}"


def record_name(name: str) -> str:
    """Returns what the record beside an output is called."""
    return f"{name}.job.json"


def part_records(names: Iterable[str], format: str) -> list[int]:
    """Returns the numbers, rising, of the parts that have a record among some names: those that are whole."""
    found = (_RECORD.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in found if match and match[2] == format)


def is_parts_folder(path: Path) -> bool:
    """Whether a folder is one that a job has written parts to."""
    known = _read(path / FOLDER_RECORD) if path.is_dir() else None
    return known is not None and isinstance(known.get("parts"), dict)


def part_files(folder: Path) -> list[Path]:
    """Returns the parts' files, in the source's order.

    Raises:
        BadFile: The job has not come to its end, or a file is gone or damaged.
        OSError: The folder cannot be read.
    """
    record = _read(folder / FOLDER_RECORD) or {}
    known = record.get("parts")
    format = known.get("format") if isinstance(known, dict) else None
    if format not in ("parquet", "npy", "jsonl"):
        raise BadFile("does not say what parts there are; extract them anew", path=str(folder / FOLDER_RECORD))
    numbers = part_records((path.name for path in folder.iterdir()), format)
    missing = next((number for number, found in enumerate(numbers) if number != found), len(numbers))
    if missing == len(numbers):
        last = _read(folder / record_name(part_name(missing - 1, format))) if numbers else None
        if last is not None and last.get("last") is True:
            files = [folder / part_name(number, format) for number in numbers]
            for file in files:
                if not file.is_file():
                    raise BadFile("is gone; run its job again, which makes it anew", path=str(file))
            return files
    raise BadFile(
        f"its job has not come to its end: {part_name(missing, format)} is not whole yet; run the same command again "
        "to go on with it",
        path=str(folder),
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
