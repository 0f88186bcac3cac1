"""Files of lines, however long one is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["about_lines", "bounded_lines"]

_BUFFER_BYTES = 1024 * 1024
_SAMPLE_BYTES = 4 * _BUFFER_BYTES
_BOM = b"\xef\xbb\xbf"


def bounded_lines(path: Path, most_bytes: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yields each line's number from 1, its bytes without its end (LF or CRLF), and whether they are all of it.

    Args:
        path: The file; a byte order mark at its start is left out.
        most_bytes: A longer line is cut off there.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb", buffering=_BUFFER_BYTES) as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        number = 0
        # Two more tell a longer line from one that fits with its end.
        while line := file.readline(most_bytes + 2):
            number += 1
            whole = line.endswith(b"\n") or len(line) < most_bytes + 2
            while not whole and (rest := file.readline(_BUFFER_BYTES)):
                if rest.endswith(b"\n"):
                    break
            yield number, line.removesuffix(b"\n").removesuffix(b"\r"), whole


def about_lines(path: Path) -> int | None:
    """Returns how many lines a file has, guessed from its first MiBs if it is larger."""
    size = path.stat().st_size
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    lines = sample.count(b"\n")
    if len(sample) == size:
        return lines + (not sample.endswith(b"\n") and size > 0)
    return round(size * lines / len(sample)) if lines else None
