"""Runs steps, each in a process of its own and within its time, so that one that crashes or hangs costs only itself."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cnclip_builder.errors import MissingRequirementError

from cnclip_bench.gpu_report.rows import PassedOver, Report, Row, Setup

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["START_METHOD", "Outcome", "Step", "run_step"]

# A step on a GPU begins with nothing in memory.
START_METHOD = "spawn"

_LEAST_S = 1.0
_LONGEST_REASON = 300
_POLL_S = 0.2
# For a process that has said all, or is told to end: it stops its server, and gives back memory, of a card too.
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        name: Of it, and of its log.
        function: Does it, and reports rows; must be a module's own.
        seconds: It may take.
        needs: A step without which it has nothing to measure.
        leave: Seconds to leave for the steps after it.
    """

    name: str
    function: Callable[[Setup, Report], None]
    seconds: float
    needs: str | None = None
    leave: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a step ended.

    Attributes:
        name: Of the step.
        status: Whether it came to its end.
        seconds: It took.
        reason: Why it did not, in one line.
    """

    name: str
    status: Literal["done", "failed", "passed over"]
    seconds: float
    reason: str = ""


def run_step(step: Step, setup: Setup, remaining_s: float, log: Path, report: Report) -> Outcome:
    """Runs a step; whatever becomes of it, returns.

    Args:
        step: What to do.
        setup: What it measures.
        remaining_s: Seconds that are left for all; the step gets its own, or less.
        log: Where all that it says goes.
        report: Takes each row at once.
    """
    bound = min(step.seconds, remaining_s - step.leave)
    if bound < _LEAST_S:
        return Outcome(step.name, "passed over", 0.0, "no time was left for it: give --minutes more")
    began = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # of a run before
    context: Any = multiprocessing.get_context(START_METHOD)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(step.function, setup, str(log), theirs), name=step.name)
    process.start()
    theirs.close()
    said: Exception | None = None
    ended = False
    try:
        while (left := began + bound - time.monotonic()) > 0:
            if not ours.poll(min(left, _POLL_S)):
                continue
            try:
                message = ours.recv()
            except EOFError:
                ended = True
                break
            if isinstance(message, Exception):
                said = message
            else:
                report(message)
        else:
            said = TimeoutError(f"it was stopped after {bound:.0f} s; {log} has what it said")
    finally:
        _end(process, interrupt=not ended)
        ours.close()
    seconds = time.monotonic() - began
    if isinstance(said, PassedOver):
        return Outcome(step.name, "passed over", seconds, _one_line(str(said), log))
    if said is not None:
        return Outcome(step.name, "failed", seconds, _one_line(str(said), log))
    if process.exitcode:
        return Outcome(step.name, "failed", seconds, _one_line(_death(process.exitcode, log), log))
    return Outcome(step.name, "done", seconds)


def _end(process: multiprocessing.process.BaseProcess, *, interrupt: bool) -> None:
    """Waits for a process, or interrupts it first; and kills its group: what it started would outlive it.

    A server that it started is in a session of its own: its guard stops it once its parent is gone, but takes seconds,
    which would be those of the next step on the same card.
    """
    if interrupt and process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
    process.join(_PATIENCE_S)
    process.kill()
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _work(function: Callable[[Setup, Report], None], setup: Setup, log: str, pipe: Connection) -> None:
    os.setpgid(0, 0)
    # What a shell starts in the background ignores it, and so do all that it starts: nothing would be ended in order.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()

    def report(row: Row) -> None:
        pipe.send(row)

    try:
        function(setup, report)
    except BaseException as error:
        traceback.print_exc()
        missing = isinstance(error, MissingRequirementError | PassedOver)
        pipe.send(PassedOver(str(error)) if missing else RuntimeError(f"{error}" or type(error).__name__))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def _death(status: int, log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    by = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"its process ended by {by}; its last line: {lines[-1] if lines else 'none'} ({log})"


def _one_line(reason: str, log: Path) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}… ({log} has all)"
