"""Watches TensorRT build: a line every half minute, and what it said first of what went wrong.

TensorRT gives no reason with a build that fails: it logs several, of which the first tells most. Polygraphy sends that
log to the logger named after it.

This module travels to machines that have little more than TensorRT (see `bundle`), so it runs on Python 3.8.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)

_EVERY_S = 30.0
_POLYGRAPHY = "Polygraphy"
_LEVEL_MARK = re.compile(r"^\s*\[\w\]\s*")


class Complaints(logging.Handler):
    """Keeps the first error that is logged, and the first kernel that was passed over before it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._error = ""
        self._passed_over = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Looks at a record."""
        said = _LEVEL_MARK.sub("", " ".join(record.getMessage().split()))
        if record.levelno >= logging.ERROR:
            self._error = self._error or said
        elif not self._error and said.startswith("Skipping tactic"):
            self._passed_over = self._passed_over or said

    @property
    def first(self) -> str:
        """What was said, in one line; empty if nothing was."""
        if self._error and self._passed_over:
            return f"{self._error}; before that: {self._passed_over}"
        return self._error


class Progress:
    """How far a build is.

    Args:
        what: is built.
        seconds: from one line to the next.
    """

    def __init__(self, what: str, seconds: float = _EVERY_S) -> None:
        self._what, self._seconds = what, seconds
        self._started = time.monotonic()
        self._phases: dict[str, tuple[int, int]] = {}  # steps done and steps in all; the innermost last
        self._over = threading.Event()

    def monitor(self, tensorrt: Any) -> Any:
        """A progress monitor for TensorRT's builder, which 10 and later have; None before.

        Args:
            tensorrt: the module.
        """
        if not hasattr(tensorrt, "IProgressMonitor"):
            return None
        phases = self._phases

        class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
            def __init__(self) -> None:
                tensorrt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                phases[phase_name] = (0, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                _, steps = phases.get(phase_name, (0, 0))
                phases[phase_name] = (step + 1, steps)
                return True  # go on

            def phase_finish(self, phase_name: str) -> None:
                phases.pop(phase_name, None)

        return Monitor()

    def line(self) -> str:
        """How far it is, in words."""
        seconds = time.monotonic() - self._started
        phases = list(self._phases.items())
        where = ""
        if phases:
            name, (done, steps) = phases[-1]
            where = f", {name}: {done} of {steps}"
        return f"Still building {self._what}: {seconds:.0f} s{where}"

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Logs a line now and then until it is left; TensorRT lets other threads run while it builds."""

        def tell() -> None:
            while not self._over.wait(self._seconds):
                logger.info("%s", self.line())

        thread = threading.Thread(target=tell, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


@contextlib.contextmanager
def complaints() -> Iterator[Complaints]:
    """Listens to TensorRT's log until it is left."""
    handler = Complaints()
    log = logging.getLogger(_POLYGRAPHY)
    log.addHandler(handler)
    try:
        yield handler
    finally:
        log.removeHandler(handler)
