"""Steps of a GPU report that go wrong, and one that does not; each one's process imports this module and little else."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time

from cnclip_bench.gpu_report.rows import Fact, PassedOver, Report, Setup


def good(setup: Setup, report: Report) -> None:
    report(Fact("seconds", f"{setup.seconds}"))


def raises(setup: Setup, report: Report) -> None:
    report(Fact("before", "it"))
    raise ValueError("no room\nleft: " + "free some, " * 60)


def lacks(setup: Setup, report: Report) -> None:
    raise PassedOver("no such backend here")


def crashes(setup: Setup, report: Report) -> None:
    report(Fact("before", "it"))
    print("the last word", flush=True)
    ctypes.string_at(0)


def hangs(setup: Setup, report: Report) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        report(Fact("child", str(child.pid)))
        time.sleep(60)
    finally:  # as a server's context manager
        print("stopped in order", flush=True)


def quits(setup: Setup, report: Report) -> None:
    os._exit(3)
