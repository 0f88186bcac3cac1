"""Finds out how many requests to keep under way: as few as give the server's full rate.

Too few leave a server idle; too many only queue, and on a small machine slow it down. Which is which depends on the
model, on batches, instances and GPUs, on the network and on who else is there, so it is measured: twice as many are
tried for a moment, and kept if the rate rises by a tenth; half as many are kept if it does not fall.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from contextlib import contextmanager

__all__ = ["Concurrency", "Found"]

# Enough for decoding, encoding and both ways of travel to overlap. On two cores, server and client together, 1 gave
# half the images a second that 4 gave, 2 three quarters, and 8 the same within noise.
_LEAST = 4
# A rate is measured over at least so many seconds and answers. Over fewer it was mostly noise.
_EPOCH_S = 0.25
_EPOCH_ANSWERS = 8
# A trial counts only if so large a share of the allowed number was under way: else the items or their reader were slow.
_SATURATED = 0.75
# What a trial must reach of the rates before and after it to be kept: well more for twice as many, no less for half.
_WORTH_DOUBLING = 1.10
_WORTH_HALVING = 0.97
# Epochs between two rounds of trials; doubled, up to the second, while they change nothing.
_REST, _LONGEST_REST = 4, 64


class Concurrency:
    """The number of requests that one run keeps under way. For one thread at a time.

    It may serve one run after the other, and goes on then where it was: its clock stands still between them.

    Attributes:
        limit: How many may be under way now.
        measured: How many rates it has measured.
    """

    def __init__(self, most: int, servers: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts at four for each server.

        Args:
            most: The highest number allowed.
            servers: How many share the requests.
            clock: Gives seconds.
        """
        self._most = most
        self._clock = clock
        self._least = min(_LEAST * servers, most)
        self._paused_at: float | None = None
        self._halved_at = -math.inf
        self.measured = 0
        self._begin(self._least)

    def answered(self, rows: int, under_way: int) -> None:
        """Takes note of an answer.

        Args:
            rows: Rows in it.
            under_way: Requests that were under way as it came, itself included.
        """
        if self._paused_at is not None:
            return  # the last answers of a run, to which no more is sent, come at a rate of their own
        if self._unsettled > 0:
            # Sent before the limit changed.
            self._unsettled -= 1
            if self._unsettled == 0:
                self._restart()
            return
        self._rows += rows
        self._answers += 1
        self._saturated += under_way >= self.limit
        elapsed_s = self._clock() - self._started
        if elapsed_s < _EPOCH_S or self._answers < max(_EPOCH_ANSWERS, 2 * self.limit):
            return
        if self._saturated < _SATURATED * self._answers:
            self._restart()
        else:
            self.measured += 1
            self._move(self._trials.send(self._rows / elapsed_s))

    def pause(self) -> None:
        """Takes note that a run has nothing more to send."""
        if self._paused_at is None:
            self._paused_at = self._clock()

    def resume(self) -> None:
        """Takes note that a run begins: what was measured in the one before counts, the time between them does not."""
        if self._paused_at is not None:
            self._started += self._clock() - self._paused_at
            self._paused_at = None
        # What belonged to an old limit came back to the run before.
        self._unsettled = 0

    def disturbed(self) -> None:
        """Takes note of a failed request: the rate of this moment says nothing."""
        self._restart()

    def overloaded(self, sent_at: float) -> None:
        """Takes note of a full queue at the server: halves the number, once for all that was under way then.

        Args:
            sent_at: When the refused request was sent, by the clock.
        """
        if sent_at > self._halved_at:
            self._halved_at = self._clock()
            self._begin(max(self.limit // 2, 1))
        else:
            self._restart()

    def _begin(self, limit: int) -> None:
        self.limit = limit
        self._unsettled = limit
        self._trials = _search(limit, self._least, self._most)
        next(self._trials)
        self._restart()

    def _move(self, limit: int) -> None:
        # As many answers as were under way belong to the old limit.
        self._unsettled = max(limit, self.limit) if limit != self.limit else 0
        self.limit = limit
        self._restart()

    def _restart(self) -> None:
        self._started = self._clock()
        self._rows = self._answers = self._saturated = 0


class Found:
    """What a client's runs have found, for those that come after. Threads may share it.

    Of several runs at the same time each has a search of its own, and the longest one's is kept.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[Hashable, Concurrency] = {}

    @contextmanager
    def kept(self, key: Hashable, most: int, servers: int) -> Iterator[Concurrency]:
        """Gives a run its number, and takes it back.

        Args:
            key: What runs must share for one's number to be right for another.
            most: The highest number allowed.
            servers: How many share the requests.
        """
        with self._lock:
            mine = self._kept.pop(key, None)
        if mine is None:
            mine = Concurrency(most, servers)
        mine.resume()
        try:
            yield mine
        finally:
            mine.pause()
            with self._lock:
                # The one that has searched for longer, where others ran meanwhile.
                other = self._kept.get(key)
                if other is None or other.measured < mine.measured:
                    self._kept[key] = mine


def _search(limit: int, least: int, most: int) -> Generator[int, float, None]:
    """Yields the number to measure next and is sent its rate, for ever."""
    rest = _REST
    while True:
        found = limit
        for more in (True, False):
            while True:
                trial = min(limit * 2, most) if more else max(limit // 2, min(least, limit))
                if trial == limit:
                    break
                # Measured between two of the present number, since a machine's other load comes and goes.
                before = yield limit
                tried = yield trial
                after = yield limit
                if tried < max(before, after) * (_WORTH_DOUBLING if more else _WORTH_HALVING):
                    break
                limit = trial
        rest = min(rest * 2, _LONGEST_REST) if limit == found else _REST
        for _ in range(rest):
            yield limit
