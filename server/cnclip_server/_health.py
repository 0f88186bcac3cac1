"""Puts together what the processes of a server and the server itself say of its health."""

from __future__ import annotations

import http.client
import logging
import time

from cnclip_server._api import Api
from cnclip_server._errors import ServerError
from cnclip_server._watch import ModelWatch, parse_counts

logger = logging.getLogger(__name__)

# Looking at the processes costs a millisecond, asking the server some requests.
_ASK_INTERVAL_S = 3.0
_ASK_TIMEOUT_S = 2.0
# How long a server may give no answer at all before it counts as frozen.
_SILENCE_S = 30.0


class Health:
    """The health of a server that has come up.

    Args:
        pid: The process id of tritonserver.
        api: Where to ask it.
    """

    def __init__(self, pid: int, api: Api) -> None:
        self._watch = ModelWatch(pid)
        self._api = api
        self._asked_at = self._answered_at = time.monotonic()

    def troubles(self) -> list[str]:
        """What is wrong and Triton does not mend, a sentence each; to be called every second or so."""
        if time.monotonic() - self._asked_at >= _ASK_INTERVAL_S:
            self._asked_at = time.monotonic()
            self._ask()
        silent_s = self._asked_at - self._answered_at
        if silent_s >= _SILENCE_S:
            return [f"tritonserver has answered nothing for {silent_s:.0f} s"]
        return sorted(self._watch.look().values())

    def _ask(self) -> None:
        try:
            self._api.check_live(_ASK_TIMEOUT_S)
            self._answered_at = time.monotonic()
            not_ready = [
                entry["name"]
                for entry in self._api.index(_ASK_TIMEOUT_S)
                if not self._api.is_model_ready(entry["name"], entry["version"], _ASK_TIMEOUT_S)
            ]
            counts = parse_counts(self._api.metrics(_ASK_TIMEOUT_S))
            self._watch.hear(counts, not_ready, self._answers)
        except (OSError, ValueError, http.client.HTTPException, ServerError) as error:
            logger.debug("the server could not be asked: %r", error)

    def _answers(self, model: str, version: str) -> bool:
        try:
            return self._api.infers(model, version, _ASK_TIMEOUT_S)
        except (OSError, ValueError, http.client.HTTPException):
            return False
