"""Threads that wait for disks and networks, so that the others need not; and work that Ctrl-C is not to break into."""

from __future__ import annotations

# What `signal` is made of: that one makes enums of handlers, which takes 18 microseconds, where these take one.
import _signal  # type: ignore[import-not-found]
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["Waiters", "unbroken"]

_T = TypeVar("_T")


@contextmanager
def unbroken() -> Iterator[None]:
    """Has Ctrl-C wait for the end of what is short and must not be broken off.

    Python has its handler called on the main thread, which raises KeyboardInterrupt wherever that is; in the middle of
    gRPC a lock of a connection then stays held, and no call of it ever ends.
    """
    handler = _signal.getsignal(_signal.SIGINT)
    came: list[Any] = []
    held = callable(handler)
    try:
        if held:
            _signal.signal(_signal.SIGINT, lambda number, frame: came.append(frame))
    except ValueError:  # on another thread; which one is the main one `threading` does not know in every host
        held = False
    try:
        yield
    finally:
        if held:
            _signal.signal(_signal.SIGINT, handler)
            if came:
                handler(_signal.SIGINT, came[-1])


class Waiters:
    """A pool of daemon threads: as many as there are tasks at one time, within a bound.

    Not a `ThreadPoolExecutor`: Python waits for its threads as it ends, and one that hangs in a read of a dead network
    disk must not keep the process from ending.
    """

    def __init__(self, most: int, name: str = "reader", *, eager: bool = True) -> None:
        """Makes one; its threads start as they are needed, and end once `close` is called.

        Args:
            most: How many threads there may be.
            name: What they are called.
            eager: Whether each task for which no thread is free starts one; otherwise the first alone does, and
                `more` others.
        """
        self._most = most
        self._eager = eager
        self._name = name
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, call: Callable[[], _T]) -> Future[_T]:
        """Has a thread call it, sooner or later.

        Raises:
            RuntimeError: It was closed.
        """
        future: Future[_T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads that read were told to end")
            self._tasks.put((future, call))
            if (self._eager and not self._idle.acquire(blocking=False)) or not self._threads:
                self._start()
        return future

    def more(self) -> None:
        """Starts one more thread, if one more is allowed."""
        with self._lock:
            if not self._closed:
                self._start()

    def _start(self) -> None:
        if len(self._threads) < self._most:
            thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads) + 1}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Cancels what was not begun, and has the threads end; it does not wait for them."""
        with self._lock:
            self._closed = True
            while True:
                try:
                    task = self._tasks.get_nowait()
                except queue.Empty:
                    break
                if task is not None:
                    task[0].cancel()
            for _ in self._threads:
                self._tasks.put(None)

    def join(self) -> None:
        """Waits for the threads, which were told to end: for those that have done all that they were given."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, call = task
            del task
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            # What it held must not live until the next task comes.
            del future, call
            if self._eager:
                self._idle.release()
