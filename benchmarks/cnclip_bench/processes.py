"""What a process and all below it hold and take, from /proc."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Peak", "family", "processor_seconds", "proportional_mib", "watching"]

# Reading a large process takes some 20 ms of a core.
_INTERVAL_S = 0.2


@dataclass
class Peak:
    """The most that was seen.

    Attributes:
        mib: Of all processes together.
    """

    mib: float = 0.0


def family(pid: int) -> list[int]:
    """A process and all below it; those that end meanwhile are left out."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        try:
            children = [
                int(child)
                for task in Path(f"/proc/{one}/task").iterdir()
                for child in (task / "children").read_text().split()
            ]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append(one)
        waiting += children
    return found


def proportional_mib(pid: int) -> float:
    """Proportional set size of a process and all below it, in MiB: pages that several share are counted once."""
    total = 0
    for one in family(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def processor_seconds(pid: int) -> float:
    """What a process and all below it took so far, of all processors; those that have ended are left out."""
    ticks = 0
    for one in family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def watching(pid: int) -> Iterator[Peak]:
    """Looks at a process and all below it five times a second; gives the peak, which grows meanwhile."""
    peak, ended = Peak(), threading.Event()

    def look() -> None:
        while not ended.wait(_INTERVAL_S):
            peak.mib = max(peak.mib, proportional_mib(pid))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak.mib = max(peak.mib, proportional_mib(pid))
