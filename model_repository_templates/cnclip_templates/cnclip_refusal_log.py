"""A line of JSON in the server's log for each item that a model refuses, with an end to how many.

The line tells what was refused by its size and the first digits of its SHA-256, never by its content: texts and images
are their owners'.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence

_LINES_A_SECOND = 10.0
_BURST = 100.0


class RefusalLog:
    """Writes refused items to a log, `_LINES_A_SECOND` at most in the long run; it counts those it leaves out.

    Args:
        model: the model's name.
        write: takes a line, such as `pb_utils.Logger.log_warn`.
        clock: gives the time in seconds.
    """

    def __init__(self, model: str, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._write = write
        self._clock = clock
        self._allowed = _BURST
        self._at = clock()
        self._left_out = 0

    def refused(self, items: Sequence[bytes], reasons: Mapping[int, str], request_id: str) -> None:
        """Logs a request's bad rows.

        Args:
            items: the request's rows.
            reasons: why each bad row is bad, by its index.
            request_id: what the client calls the request; empty if it did not say.
        """
        now = self._clock()
        self._allowed = min(self._allowed + (now - self._at) * _LINES_A_SECOND, _BURST)
        self._at = now
        for row, reason in reasons.items():
            if self._allowed < 1:
                self._left_out += 1
                continue
            self._allowed -= 1
            line = {
                "event": "refused",
                "model": self._model,
                "request": request_id,
                "row": row,
                "bytes": len(items[row]),
                "sha256": hashlib.sha256(items[row]).hexdigest()[:16],
                "reason": reason,
                "left_out_before": self._left_out,
            }
            self._left_out = 0
            self._write(json.dumps(line))
