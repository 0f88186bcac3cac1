"""Loads items ahead of the caller, on threads that also ask the source for them: a slow one holds up nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["Prefetch"]

_Item = TypeVar("_Item")
_Loaded = TypeVar("_Loaded")

# Another thread is worth it once the caller waits for so long: the files of a warm disk are there sooner.
_PATIENCE_S = 0.002


class Prefetch(Generic[_Item, _Loaded]):
    """Items, loaded ahead by a few threads: in their order, and within bounds.

        with Prefetch(items, load, size_of) as loaded:
            for item in loaded: ...

    One thread at a time takes the next item; several load at once. At most `max_items` are ahead of the caller, with at
    most `max_bytes` and one item more for each thread. An error of `items` or `load` comes out in its place. It begins
    with one thread, and one more starts each time that the caller has to wait for a while.
    """

    def __init__(
        self,
        items: Iterator[_Item],
        load: Callable[[_Item], _Loaded],
        size_of: Callable[[_Loaded], int],
        *,
        threads: int = 32,
        max_items: int = 64,
        max_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """Prepares it; the threads start with the context.

        Args:
            items: What to load; it is used by one thread at a time.
            load: Loads an item.
            size_of: Tells a loaded item's bytes.
            threads: How many load at most.
            max_items: How many items may be ahead.
            max_bytes: How many of their bytes.
        """
        self._items = items
        self._load = load
        self._size_of = size_of
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._taking = threading.Lock()
        self._ready: dict[int, _Loaded] = {}
        self._errors: dict[int, BaseException] = {}
        self._taken = 0
        self._given = 0
        self._held_bytes = 0
        self._loading = 0
        self._ended = False
        self._most_threads = threads
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Iterator[_Loaded]:
        self._start_one()
        return self._give()

    def _start_one(self) -> None:
        if len(self._threads) < self._most_threads:
            # A daemon: one that hangs in a read of a dead network disk must not keep the process from ending.
            self._threads.append(threading.Thread(target=self._run, daemon=True))
            self._threads[-1].start()

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        until = time.monotonic() + 1.0
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _give(self) -> Iterator[_Loaded]:
        while True:
            with self._changed:
                while not self._changed.wait_for(self._known, _PATIENCE_S):
                    # Where one waits for the next item, another would wait as well.
                    if self._loading == len(self._threads):
                        self._start_one()
                place = self._given
                if place in self._errors:
                    raise self._errors[place]
                if place not in self._ready:
                    return
                item = self._ready.pop(place)
                self._held_bytes -= self._size_of(item)
                self._given += 1
                self._changed.notify_all()
            yield item

    def _known(self) -> bool:
        """Whether the next item, or that there is none, is at hand."""
        place = self._given
        return place in self._ready or place in self._errors or (self._ended and place >= self._taken)

    def _has_room(self) -> bool:
        # Bytes are held only while there are items to give, and giving them makes room.
        return self._taken - self._given < self._max_items and self._held_bytes < self._max_bytes

    def _run(self) -> None:
        while True:
            with self._taking:
                with self._changed:
                    self._changed.wait_for(lambda: self._ended or self._has_room())
                    if self._ended:
                        return
                place = self._taken
                try:
                    item = next(self._items)
                except StopIteration:
                    self._end()
                    return
                except BaseException as error:
                    self._end(place, error)
                    return
                with self._changed:
                    self._taken += 1
                    self._loading += 1
            try:
                loaded = self._load(item)
            except BaseException as error:
                self._end(place, error)
                return
            with self._changed:
                self._loading -= 1
                self._ready[place] = loaded
                self._held_bytes += self._size_of(loaded)
                self._changed.notify_all()

    def _end(self, place: int | None = None, error: BaseException | None = None) -> None:
        with self._changed:
            if place is not None and error is not None:
                self._errors[place] = error
            self._ended = True
            self._changed.notify_all()
