"""Whether a file still holds what was written, seen before a library is let at it that trusts what it reads."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cnclip_machine import usable_cores

from cnclip_client._exceptions import BadFile

__all__ = ["checksums", "require_unchanged"]

_CHUNK_BYTES = 64 * 1024 * 1024
_STEP_BYTES = 1024 * 1024


def checksums(path: Path) -> list[int]:
    """Returns the CRC-32 of each 64 MiB of a file, taken on all cores.

    Raises:
        OSError: It cannot be read.
    """
    starts = range(0, path.stat().st_size, _CHUNK_BYTES)
    with ThreadPoolExecutor(usable_cores()) as threads:
        return list(threads.map(lambda start: _checksum(path, start), starts))


def require_unchanged(path: Path, size: int, known: Sequence[int], fix: str, *, thorough: bool) -> None:
    """Sees that a file is as long as it was, and with `thorough` that it holds the same.

    Raises:
        BadFile: It is not, or is gone; the message ends in `fix`.
        OSError: It cannot be read.
    """
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise BadFile(f"is gone; {fix}", path=str(path)) from error
    if found != size:
        raise BadFile(f"has {found} bytes of the {size} that were written; {fix}", path=str(path))
    if thorough and checksums(path) != list(known):
        raise BadFile(f"does not hold what was written, so the disk or a copy has damaged it; {fix}", path=str(path))


def _checksum(path: Path, start: int) -> int:
    checksum, left = 0, _CHUNK_BYTES
    with path.open("rb") as file:
        file.seek(start)
        while left and (data := file.read(min(left, _STEP_BYTES))):
            checksum = zlib.crc32(data, checksum)
            left -= len(data)
    return checksum
