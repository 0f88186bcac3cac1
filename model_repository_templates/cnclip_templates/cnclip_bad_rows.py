"""The one form in which a server names the bad rows of a request it refuses.

A refused request ends with INVALID_ARGUMENT and a message that holds, after whatever Triton puts before it,
`bad rows: {"2": "reason", "5": "reason"}`: a JSON object in ASCII from the row's index in the request to the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

NO_ROOM = "no room at present"
"""How a refusal begins of which no item is to blame: the server lacks memory or the like, and may have it later."""

# gRPC carries a status message in the headers, which hold 8 KiB in all by default.
_MAX_MESSAGE_BYTES = 4096
_SHORTEST_REASON = 16


def bad_rows_message(reasons: Mapping[int, str]) -> str:
    """Writes the refusal of a request.

    Args:
        reasons: why each bad row is bad, one at least, by the row's index in the request.

    Returns:
        The message, at most about 4 KiB for requests of up to 250 bad rows: reasons are cut short, and in the
        end left out, before a row is.
    """
    rows = {str(row): _one_line(reasons[row]) for row in sorted(reasons)}
    limit = max(map(len, rows.values()))
    while True:
        message = "bad rows: " + json.dumps({row: reason[:limit] for row, reason in rows.items()})
        if len(message) <= _MAX_MESSAGE_BYTES or limit == 0:
            return message
        limit = limit // 2 if limit > _SHORTEST_REASON else 0


def _one_line(reason: str) -> str:
    return " ".join(reason.split())
