"""Reads the files that a caller names before they are needed, on threads of their own.

The items themselves are taken on the caller's thread, as a generator of the caller's expects; `prefetch` takes them on
others, which is for our own sources and for what is prepared here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import TypeAlias

from cnclip_client._flow.error_last import ErrorLast
from cnclip_client._flow.items import Unsendable, loaded
from cnclip_client._threads import Waiters

__all__ = ["reading_ahead"]

# What is read and not yet sent holds so many bytes at most, and a file for each thread.
_MOST_BYTES = 64 * 1024 * 1024
# Another thread is worth it once one waits for so long: the files of a warm disk are there sooner.
_PATIENCE_S = 0.002

_Ready: TypeAlias = "bytes | Unsendable"


def reading_ahead(
    items: Iterable[object], load: Callable[[object], bytes], rows: int, readers: int
) -> Iterator[_Ready]:
    """Yields each item's bytes, or why it cannot be sent, in their order.

    The items are taken by the thread that iterates, and none before it may: of a list or anything else with a length
    they are read well ahead, of an iterator, which may take long to give the next, a request's worth.

    Args:
        items: The caller's. What is no path is loaded as it is asked for, on the thread that iterates.
        load: Gives an item's bytes or raises `Unsendable`.
        rows: Items in a request.
        readers: The most threads that read.

    Raises:
        Exception: What the source or `load` raises, after the items before it.
    """
    if isinstance(items, Sized) and len(items) <= 1:
        yield from (loaded(load, item) for item in items)
        return
    waiters = Waiters(readers, eager=False)
    try:
        yield from _Ahead(items, load, rows, waiters, max(rows, 2 * readers) if isinstance(items, Sized) else 0)
    finally:
        waiters.close()


class _Ahead:
    def __init__(
        self, items: Iterable[object], load: Callable[[object], bytes], rows: int, waiters: Waiters, ahead: int
    ) -> None:
        self._source = ErrorLast(items)
        self._items = iter(self._source)
        self._load = load
        self._rows = rows
        self._waiters = waiters
        self._ahead = ahead
        self._taken = self._given = 0
        self._pending: deque[Future[_Ready]] = deque()
        self._bytes = 0
        self._ended = False

    def __iter__(self) -> Iterator[_Ready]:
        while True:
            plain = self._take()
            while self._pending:
                ready = self._first()
                self._given += 1
                yield ready
                if plain is None:
                    plain = self._take()
            if plain is not None:
                self._given += 1
                yield loaded(self._load, plain[0])
            elif self._ended:
                self._source.raise_error()
                return

    def _take(self) -> tuple[object] | None:
        """Takes what may be taken now; returns, alone in a tuple, an item that is no path, behind which to stop."""
        while not self._ended and self._may_take():
            try:
                item = next(self._items)
            except StopIteration:
                self._ended = True
                return None
            self._taken += 1
            if not isinstance(item, str | os.PathLike):
                return (item,)
            future = self._waiters.submit(lambda item=item: loaded(self._load, item))  # type: ignore[misc]
            future.add_done_callback(self._count)
            self._pending.append(future)
        return None

    def _may_take(self) -> bool:
        if not self._pending:
            return True
        whole_request = (self._given // self._rows + 1) * self._rows
        return self._bytes < _MOST_BYTES and self._taken < max(self._given + self._ahead, whole_request)

    def _count(self, future: Future[_Ready]) -> None:
        # Several threads add without a lock: the bound is a rough one, and may miss an addition now and then.
        if not future.cancelled() and future.exception() is None:
            self._bytes += _size(future.result())

    def _first(self) -> _Ready:
        future = self._pending.popleft()
        while True:
            try:
                ready = future.result(timeout=_PATIENCE_S)
                break
            except NotYet:
                if future.done():  # or it is the reader's own
                    ready = future.result()
                    break
                self._waiters.more()
        self._bytes -= _size(ready)
        return ready


def _size(ready: _Ready) -> int:
    return len(ready) if isinstance(ready, bytes) else 0
