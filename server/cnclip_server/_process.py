"""One tritonserver process under its guard, with its temporary folder and its log."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from cnclip_server._errors import ServerError
from cnclip_server._log import without_keys

__all__ = ["DEFAULT_LOG_LIMIT_BYTES", "GuardedProcess", "how_it_ended", "was_killed"]

logger = logging.getLogger(__name__)

_GUARD = Path(__file__).with_name("_guard.py")
_KILL_TIMEOUT_S = 10.0

DEFAULT_LOG_LIMIT_BYTES = 64 * 2**20
"""How large a log may become: some hundred thousand lines, and as much in the file before."""


_SIGNALLED = 128  # what the guard adds to a signal's number


def was_killed(status: int) -> bool:
    """Whether an exit status of `GuardedProcess.wait` is a signal's: its own crash, or no memory."""
    return status > _SIGNALLED


def how_it_ended(status: int) -> str:
    """An exit status of `GuardedProcess.wait`, in words."""
    try:
        name = signal.Signals(status - _SIGNALLED).name
    except ValueError:
        return f"exit status {status}"
    return f"killed by {name}" + (", as when memory runs out" if name == "SIGKILL" else "")


class GuardedProcess:
    """A command that `_guard.py` runs: it dies with us, and its files go with it.

    Attributes:
        folder: Its temporary files.
        log_path: Where its stdout and stderr go.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        shm_prefix: str,
        environ: Mapping[str, str],
        log_path: Path,
        log_limit_bytes: int,
    ) -> None:
        """Starts the command.

        Args:
            command: The program and its arguments.
            folder: Its temporary files, deleted when it has ended.
            shm_prefix: How the names of its shared memory begin, deleted as well.
            environ: Its environment.
            log_path: Where its stdout and stderr go, after what is there: a restart must not lose why it was one.
            log_limit_bytes: The size at which the log is moved to `.1` and begun anew; 0 for none.

        Raises:
            ServerError: The log cannot be written.
        """
        logger.debug("starting %s", without_keys(" ".join(command)))
        self.log_path = log_path
        self.folder = folder
        try:
            # Our own descriptor: it still reads the log when the guard has deleted the folder.
            self._log: IO[bytes] = log_path.open("a+b")
        except OSError as error:
            raise ServerError(f"cannot write the log to {log_path} ({error}); name another file") from error
        self._log_start = self._log.seek(0, os.SEEK_END)
        self._guard = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                str(_GUARD),
                str(folder),
                shm_prefix,
                str(log_path),
                str(log_limit_bytes),
                *command,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environ,
            bufsize=0,  # Nothing may be left to flush to a guard that has ended.
            start_new_session=True,  # Ctrl-C in a terminal is for us alone; we then stop the server in order.
        )
        self._pid: int | None = None

    def pid(self) -> int | None:
        """The command's process id; None if it could not be started, and the log says why."""
        if self._pid is None and self._guard.stdout is not None and (line := self._guard.stdout.readline()):
            self._pid = int(line)
        return self._pid

    def wait(self, timeout_s: float | None) -> int | None:
        """Waits for the command to end; returns its exit status, or None when the time is over first."""
        try:
            return self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def read_log(self) -> str:
        """Everything that the command has written so far."""
        self._log.seek(self._log_start)
        return self._log.read().decode("utf-8", errors="replace")

    def stop(self, timeout_s: float) -> None:
        """Ends the command and everything that it started, and deletes its files.

        Args:
            timeout_s: How long it has after SIGTERM before SIGKILL, in seconds.
        """
        with self._log, self._guard as guard:
            if guard.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # It has ended already.
                    guard.stdin.write(f"{timeout_s:g}".encode())
            if self.wait(timeout_s + _KILL_TIMEOUT_S) is None:
                guard.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
