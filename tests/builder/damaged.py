"""Files as broken downloads, full disks and bad memory leave them: cut at every eighth, and with bytes turned."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cnclip_builder.errors import BuildError


def cut(whole: bytes) -> Iterator[bytes]:
    """The file cut at every eighth, the empty one first."""
    for eighth in range(8):
        yield whole[: len(whole) * eighth // 8]


def turned(whole: bytes, seed: int, places: Sequence[int] = (), times: int = 20) -> Iterator[bytes]:
    """The file with one bit of one byte turned: at each of the places, and at as many others as said."""
    chosen = random.Random(seed)
    for place in [*places, *(chosen.randrange(len(whole)) for _ in range(times))]:
        changed = bytearray(whole)
        changed[place] ^= 1 << chosen.randrange(8)
        yield bytes(changed)


def complaint_of(read: Callable[[], Any]) -> str | None:
    """What a reader says of a file in its error; None if it takes it. Any other error than a BuildError goes through."""
    try:
        read()
    except BuildError as error:
        return str(error)
    return None


def require_one_line_about(path: Path, complaint: str) -> None:
    """The file is named, and the rest is a sentence that a command can print as its one line."""
    assert path.name in complaint, complaint
    assert "\n" not in complaint, complaint
    assert ":" in complaint, complaint
