"""Runs one tritonserver and leaves nothing of it behind, whichever way it or its parent ends.

A script, not a module: `python -I -S _guard.py FOLDER SHM_PREFIX LOG LOG_LIMIT COMMAND...`, with only the standard
library, so that it is up in some 30 ms. It starts COMMAND, writes its process id to stdout and waits for it to end, or
for its own stdin: a number there is the parent's order to stop the command within so many seconds, and the end
of it means that the parent is gone, even by SIGKILL. Then the command gets SIGTERM and, when it takes too long,
SIGKILL: not at once, because a killed tritonserver leaves an empty /tmp/python_env_XXXXXX behind. In the end the
guard kills what remains of the command's process group (the Python backend's stubs), deletes FOLDER and the
shared memory whose names begin with SHM_PREFIX, and exits with the command's status. Meanwhile it moves what its own
stderr, the file LOG, holds to LOG.1 whenever that is more than LOG_LIMIT bytes.

A process of its own rather than PR_SET_PDEATHSIG in the parent: that needs a preexec_fn, which may deadlock
in a process with threads, it fires when the *thread* that started the server ends, and it cleans nothing up.
Here, in a process with one thread, it is safe, and covers the death of the guard itself.
"""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
# For a parent that died; longer than what tritonserver grants its last requests (--exit-timeout-secs).
_GRACE_S = 10.0
_LOG_INTERVAL_S = 2.0
_OPEN_FILES = 65_536
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory


def main(folder: str, shm_prefix: str, log: str, log_limit: int, command: list[str]) -> int:
    """Runs the command to its end and cleans up.

    Returns:
        The command's exit status, negative if a signal ended it.
    """
    libc = ctypes.CDLL(None)
    _raise_open_files()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        with contextlib.suppress(BrokenPipeError):
            os.write(sys.stdout.fileno(), f"{process.pid}\n".encode())
        threading.Thread(target=_stop_when_orphaned, args=(process,), daemon=True).start()
        if log_limit:
            threading.Thread(target=_bound_log, args=(Path(log), log_limit), daemon=True).start()
        status = process.wait()
        _kill_group(process.pid)
    finally:
        for leftover in _SHARED_MEMORY.glob(f"{shm_prefix}*"):
            leftover.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    return status


def _stop_when_orphaned(process: subprocess.Popen[bytes]) -> None:
    """Waits for stdin to give a number of seconds, or to close; then SIGTERM, and SIGKILL after that time."""
    seconds = os.read(sys.stdin.fileno(), 64)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    time.sleep(float(seconds) if seconds else _GRACE_S)
    _kill_group(process.pid)


def _raise_open_files() -> None:
    """Lets the command open as many files as it may: each client is one, and many a shell's own limit is 1024."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _bound_log(log: Path, limit: int) -> None:
    """Moves the log away whenever it has grown too large.

    Copied and cut off, not renamed: the command holds it open, and writes at its end whatever that is.
    """
    while True:
        time.sleep(_LOG_INTERVAL_S)
        with contextlib.suppress(OSError):  # no room for a copy: then there is none
            if os.fstat(sys.stderr.fileno()).st_size > limit:
                try:
                    shutil.copyfile(log, f"{log}.1")
                finally:
                    os.ftruncate(sys.stderr.fileno(), 0)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    _status = main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5:])
    # os._exit: the waiting thread must not hold the interpreter up.
    os._exit(_status if _status >= 0 else 128 - _status)
