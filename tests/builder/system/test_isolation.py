"""A build that is killed takes its stages with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cnclip_builder.system import isolation

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


def _handles_interrupts() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_control_c_prints_no_traceback_of_what_stages_are_forked_from() -> None:
    """It imports the quiet way first, before seconds of torch; the stages themselves still tidy up."""
    quiet, *_ = isolation._IMPORTED
    code = f"import {quiet}, os, signal\nos.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
    with isolation.stage_process() as process:
        assert process.run(_handles_interrupts)
