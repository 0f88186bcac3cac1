"""A line of JSON in the server's log for each item that a model refuses or cuts, with an end to how many.

The line tells what was refused by its size and the first digits of its SHA-256, never by its content: texts and images
are their owners'.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence

_BURST = 100.0
# Of what a client chose, the request's id, and of what a decoder said of its file.
_MOST_CHARACTERS = 1000


class RefusalLog:
    """Writes items to a log, so many a second at most in the long run; it counts those it leaves out.

    Args:
        model: the model's name.
        write: takes a line, such as `pb_utils.Logger.log_warn`.
        clock: gives the time in seconds.
        lines_a_second: in the long run; some more at a time.
    """

    def __init__(
        self,
        model: str,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        lines_a_second: float = 10.0,
    ) -> None:
        self._model = model
        self._write = write
        self._clock = clock
        self._lines_a_second = lines_a_second
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
        for row, reason in reasons.items():
            self._log("refused", items[row], row, request_id, {"reason": reason[:_MOST_CHARACTERS]})

    def cut(self, items: Sequence[bytes], rows: Sequence[int], request_id: str, context_length: int) -> None:
        """Logs a request's texts of which only the first tokens are encoded.

        Args:
            items: the request's rows.
            rows: the indices of those that were cut.
            request_id: what the client calls the request; empty if it did not say.
            context_length: the tokens of which none is cut.
        """
        for row in rows:
            self._log("cut", items[row], row, request_id, {"context_length": context_length})

    def _log(self, event: str, item: bytes, row: int, request_id: str, details: Mapping[str, str | int]) -> None:
        now = self._clock()
        self._allowed = min(self._allowed + (now - self._at) * self._lines_a_second, _BURST)
        self._at = now
        if self._allowed < 1:
            self._left_out += 1
            return
        self._allowed -= 1
        line = {
            "event": event,
            "model": self._model,
            "request": request_id[:_MOST_CHARACTERS],
            "row": row,
            "bytes": len(item),
            "sha256": hashlib.sha256(item).hexdigest()[:16],
            **details,
            "left_out_before": self._left_out,
        }
        self._left_out = 0
        self._write(json.dumps(line))
