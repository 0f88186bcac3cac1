"""What this machine, or the container around this process, lets it use: cores and memory.

It is copied beside the `model.py` of the preprocessing, and beside the stand-in for the onnxruntime backend, as one
file: so it imports the standard library alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_memory", "refused_threads", "seen_cores", "usable_cores", "usable_memory"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")

# A control group's files by version 2 and 1, and what their `memory.stat` calls the part of files that is soon dropped.
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def seen_cores() -> int:
    """The cores that this process may run on, by its affinity; all of them where a system knows none."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores() -> int:
    """Of those, as many as its control groups let it keep busy; one at least."""
    return max(1, int(min([float(seen_cores()), *map(_quota, _groups("cpu"))])))


def usable_memory() -> int:
    """The machine's memory in bytes, or its container's where that is less; 0 where nothing says so."""
    return min([*_meminfo("MemTotal"), *(limit for limit, _ in _memory())], default=0)


def available_memory() -> int:
    """Bytes that may still be taken, of the machine's memory and of its container's; 0 where nothing says so."""
    return max(0, min([*_meminfo("MemAvailable"), *(limit - used for limit, used in _memory())], default=0))


def refused_threads() -> int:
    """How many threads and processes its control groups have refused so far, as more than they may have."""
    # A newer kernel's `pids.events` counts also what the limits of all groups below it refuse, and those are others'.
    events = (_read(group / "pids.events.local") or _read(group / "pids.events") for group in _groups("pids"))
    return sum(int(found[1]) for one in events if (found := re.search(r"^max (\d+)$", one, re.MULTILINE)))


def _groups(controller: str) -> Iterator[Path]:
    """This process's control groups and those around them, by version 2 or 1."""
    for line in _read(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = _CGROUPS / controller if controllers else _CGROUPS
            inside = root / path.lstrip("/")
            for group in (inside, *inside.parents):
                yield group
                if group == root:
                    break


def _quota(group: Path) -> float:
    """How many cores' time a control group may use, by version 2 or 1; infinite where nothing says so."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not period:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else float("inf")


def _memory() -> Iterator[tuple[int, int]]:
    """The limits of its control groups, and how much is taken that is not given back when it is wanted; in bytes."""
    for group in _groups("memory"):
        for most, taken, dropped in _MEMORY_FILES:
            if (limit := _read(group / most)).isdecimal():
                found = re.search(rf"^{dropped} (\d+)$", _read(group / "memory.stat"), re.MULTILINE)
                yield int(limit), int(_read(group / taken) or 0) - (int(found[1]) if found else 0)


def _meminfo(name: str) -> list[int]:
    """A line of the kernel's, in bytes, if it is there."""
    found = re.search(rf"^{name}:\s+(\d+) kB", _read(_MEMINFO), re.MULTILINE)
    return [int(found[1]) * 1024] if found else []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
