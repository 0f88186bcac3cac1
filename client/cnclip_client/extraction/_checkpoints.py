"""Makes a job's progress durable while it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

from cnclip_client._exceptions import CnclipError, ModelChanged
from cnclip_client._threads import Waiters
from cnclip_client.extraction._work_folder import GrowingFiles, Progress

__all__ = ["Checkpoints"]

_log = logging.getLogger(__name__)

# How long a last checkpoint is waited for: where a KeyboardInterrupt cut gRPC off with a lock of its own held, no call
# of its connection ever ends, not even at its deadline.
_LAST_S = 15.0


class Checkpoints:
    """Writes checkpoints on a thread of its own: a slow disk's fsync must not keep the server waiting.

    Whoever restarts the server may put another model in the old one's place. So a checkpoint in the middle of a run is
    written only after `require_unchanged` has passed: all features up to then are of the one model.
    """

    def __init__(self, files: GrowingFiles, path: Path, require_unchanged: Callable[[], None]) -> None:
        self._files = files
        self._path = path
        self._require_unchanged = require_unchanged
        self._waiter = Waiters(1, "checkpoint")
        self._running: Future[None] | None = None
        self._last = time.monotonic()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self._waiter.close()
        self._files.close()

    def now_and_then(self, progress: Progress, every_s: float) -> None:
        """Begins a checkpoint if it is time for one and the one before is through.

        Raises:
            ModelChanged: The server has another model now.
            OSError: One could not be written, this time or before.
        """
        if self._running is not None and self._running.done():
            self._await()
        if self._running is None and time.monotonic() - self._last >= every_s:
            self._last = time.monotonic()
            self._files.flush()
            self._running = self._waiter.submit(lambda: self._write_checked(progress))

    def save_if_possible(self, progress: Progress) -> None:
        """Writes a last one where something has gone wrong already; what cannot be kept is done again."""
        try:
            self._await(_LAST_S)
            self._files.flush()
            self._running = self._waiter.submit(lambda: self._write_checked(progress))
            self._await(_LAST_S)
        except (CnclipError, OSError, NotYet) as error:
            _log.info("no last checkpoint: %s", str(error) or "it did not come to its end")

    def save(self, progress: Progress) -> None:
        """Writes one of a run that came to its end, by when the client has asked by itself. Raises OSError."""
        self._await()
        self._files.flush()
        self._write(progress)

    def _await(self, most_s: float | None = None) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result(most_s)

    def _write_checked(self, progress: Progress) -> None:
        try:
            self._require_unchanged()
        except ModelChanged:
            raise
        except CnclipError as error:
            _log.info("no checkpoint while there is no server to ask: %s", error)
        else:
            self._write(progress)

    def _write(self, progress: Progress) -> None:
        self._files.sync()
        progress.write(self._path)
