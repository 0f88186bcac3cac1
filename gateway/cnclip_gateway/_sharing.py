"""Small requests that wait at the same time are encoded together, by one call of the client.

A call each would cost a thread each, and with many at once threads cost more than their requests: 1.2 ms of a processor
for a text with 64 at once, against 0.5 ms so. A request goes out as soon as one of the few calls is free, alone if
nobody waits beside it: who is alone waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cnclip_gateway._items import Item

__all__ = ["MOST_SHARED", "Sharing"]

MOST_SHARED = 8
"""Items of the largest request that is encoded together with others."""

_TOGETHER = 32
_CALLS = 4

Outcome = NDArray[np.float32] | Exception
Answer = asyncio.Future[NDArray[np.float32]]


@dataclass(slots=True, eq=False)
class _Lane:
    """The requests for one tower: those that wait, and how many calls are under way."""

    waiting: OrderedDict[Answer, list[Item]] = field(default_factory=OrderedDict)
    calls: int = 0


class Sharing:
    """Encodes small requests together; used by the event loop alone.

    Args:
        encode: Encodes the items of some requests of a model, and returns for each request float32 [n, D], or why not.
        workers: Where that is run.
    """

    def __init__(self, encode: Callable[[str, list[list[Item]]], list[Outcome]], workers: Executor) -> None:
        self._encode = encode
        self._workers = workers
        self._lanes: dict[tuple[str, bool], _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def encoded(self, slug: str, items: list[Item]) -> NDArray[np.float32]:
        """Returns the features of a request's items, all texts or all pictures, float32 [n, D].

        Raises:
            Exception: What encoding them raised.
        """
        # A text does not wait for pictures.
        lane = self._lanes.setdefault((slug, isinstance(items[0], str)), _Lane())
        future: Answer = asyncio.get_running_loop().create_future()
        lane.waiting[future] = items
        self._start(slug, lane)
        try:
            return await future
        finally:
            lane.waiting.pop(future, None)  # of who has gone; what waits is held, and nobody would count it

    def _start(self, slug: str, lane: _Lane) -> None:
        if lane.waiting and lane.calls < _CALLS:
            lane.calls += 1
            task = asyncio.get_running_loop().create_task(self._call(slug, lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _call(self, slug: str, lane: _Lane) -> None:
        taken: list[tuple[Answer, list[Item]]] = []
        count = 0
        while lane.waiting and count < _TOGETHER:
            future, items = lane.waiting.popitem(last=False)
            if not future.done():  # nobody waits for one that is
                taken.append((future, items))
                count += len(items)
        outcomes: list[Outcome] = []
        try:
            if taken:
                given = [items for _, items in taken]
                outcomes = await asyncio.get_running_loop().run_in_executor(self._workers, self._encode, slug, given)
        except Exception as error:
            outcomes = [error] * len(taken)
        finally:
            lane.calls -= 1
        for (future, _), outcome in zip(taken, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        self._start(slug, lane)
