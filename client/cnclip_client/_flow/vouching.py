"""Has servers say, while a run goes on and at its end, that its features are all of one model."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable
from functools import partial

from cnclip_client._connection.endpoints import PASSING, told_of_waiting
from cnclip_client._settings import Retry

__all__ = ["Vouching", "vouch"]

# How often a long run asks whether the model is still the same, so as not to find out at its end.
_EVERY_S = 10.0
# How old the last answer may be for a run of a single request: an online service makes many such runs, and to ask for
# each would double its calls.
_SINGLE_S = 1.0


class Vouching:
    """What one run asks, for one thread.

    Args:
        verify: Asks whether the model is still the same, unless it was asked less than so many seconds ago, so many
            times, and raises a `CnclipError` if it is not, or cannot be had.
        retry: How long the last answer is waited for.
    """

    def __init__(self, verify: Callable[[float, int], None], retry: Retry) -> None:
        self._verify = verify
        self._retry = retry
        self._asked_at = time.monotonic()

    def now_and_then(self) -> None:
        """Asks once if the last time was long ago; a server that is busy or away need not answer.

        Raises:
            CnclipError: The model is another.
        """
        if time.monotonic() - self._asked_at > _EVERY_S:
            with contextlib.suppress(*PASSING):
                self._verify(0.0, 1)
            self._asked_at = time.monotonic()

    def at_the_end(self, requests: int) -> None:
        """Asks of a run of so many requests, no more often than it had, and waits for the answers as `Retry` says.

        Raises:
            CnclipError: The model is another, or could not be had.
        """
        vouch(partial(self._verify, _SINGLE_S if requests <= 1 else 0.0, requests), self._retry)


def vouch(verify: Callable[[], None], retry: Retry) -> None:
    """Asks whether the model is still the same, and waits for servers that are away as `Retry` says.

    Raises:
        CnclipError: The model is another, or could not be had.
    """
    started, told = time.monotonic(), False
    for failures in itertools.count(1):
        try:
            return verify()
        except PASSING as error:
            if failures >= retry.attempts or time.monotonic() - started > retry.deadline_s:
                raise
            told = told or told_of_waiting(error, started, retry)
        time.sleep(retry.delay_s(failures))
