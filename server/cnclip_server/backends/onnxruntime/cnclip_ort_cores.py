"""How many cores the container lets this process use.

ONNX Runtime makes a thread for every core that it sees. Where a control group grants less time (`docker run --cpus`, a
CPU limit of Kubernetes), they take turns, and all of them are stopped once the time is used up.

Runs inside the Python backend's stub: only the standard library is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def granted_cores() -> int | None:
    """The cores' worth of time that the control groups grant, rounded down; None if that is all that there are."""
    seen = len(os.sched_getaffinity(0))
    try:
        lines = _OWN_GROUPS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    granted = float("inf")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            root = _CGROUPS / "cpu" if controllers else _CGROUPS
            inside = root / path.lstrip("/")
            for group in (inside, *inside.parents):
                granted = min(granted, _quota(group))
                if group == root:
                    break
    return max(1, int(granted)) if granted < seen else None


def _quota(group: Path) -> float:
    """How many cores' time a control group may use, by version 2 or 1; infinite where nothing says so."""
    try:
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (group / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return float("inf")
    return float("inf") if quota in ("max", "-1") else int(quota) / int(period)
