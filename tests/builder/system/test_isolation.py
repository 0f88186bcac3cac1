"""A build that is killed takes its stages with it; a stage without memory is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.system.isolation import stage_process

SCRIPT = """
import time
from cnclip_builder.system import isolation

isolation._IMPORTED = []  # what stages import is of no account here

if __name__ == "__main__":
    import os
    with isolation.stage_process() as process:
        print(process.run(os.getpid), flush=True)
        time.sleep(600)
"""


def is_there(pid: int) -> bool:
    """Whether a process is there that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_build_leaves_no_stage_behind(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as build:
        assert build.stdout is not None
        stage = int(build.stdout.readline())
        assert is_there(stage)
        build.send_signal(signal.SIGKILL)
        build.wait()
        until = time.monotonic() + 120
        while is_there(stage) and time.monotonic() < until:
            time.sleep(0.05)
        assert not is_there(stage)


def test_a_stage_without_memory_is_one_line() -> None:
    with stage_process() as process:
        with pytest.raises(MissingRequirementError, match="stage bytes found no memory: an architecture needs about"):
            process.run(bytes, 1 << 60)
        assert process.run(bytes, 2) == b"\0\0"
