"""Images, prepared by the server or here: by whichever is faster."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cnclip_client._blocks import Block
from cnclip_client._exceptions import CnclipError
from cnclip_client._ways.images import Preparing
from cnclip_client._ways.sending import Sending
from cnclip_client._ways.served import Served, Way

__all__ = ["Faster"]

_log = logging.getLogger(__name__)

# How many images are measured each way, and what this machine has to be faster by: its cores may have other work.
_TRIAL_ITEMS = 128
_CLEARLY = 1.1


class Faster:
    """Has the server prepare the first images, this machine the next, and all others whoever was faster.

    What was found holds for this object's life. Where another run measures at the moment, the server prepares. A server
    of encoders alone prepares nothing, and nothing is measured.

    Args:
        served: What the server may prepare for.
        preparing: Prepares here.

    Attributes:
        prepares_itself: What was found; None where nothing was yet.
    """

    def __init__(self, served: Served, preparing: Preparing) -> None:
        self._served = served
        self._sending = Sending("image", served)
        self._preparing = preparing
        self._measuring = threading.Lock()
        self.prepares_itself: bool | None = None

    def run(self, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Yields the features of images block by block, in their order."""
        start = 0
        if self.prepares_itself is None and self._served.towers.is_encoder("image"):
            _log.info("the server has image encoders alone: images are prepared here")
            self.prepares_itself = True
        if self.prepares_itself is None and self._measuring.acquire(blocking=False):
            try:
                items = iter(items)  # only here: what is a list is read further ahead
                rates: list[float] = []
                for way in (self._sending, self._preparing) if self._can_prepare() else ():
                    trial = _Timed(way.run(itertools.islice(items, _TRIAL_ITEMS), normalize, batch_size))
                    yield from _moved(trial, start)
                    start += trial.items
                    rates.append(trial.items / max(trial.seconds, 1e-9))
                    if trial.items < _TRIAL_ITEMS:
                        return
                self.prepares_itself = bool(rates) and rates[1] > _CLEARLY * rates[0]
                if rates:
                    chosen = "prepared here from now on" if self.prepares_itself else "left to the server"
                    _log.info("%.0f images a second prepared by the server, %.0f here: %s", *rates, chosen)
            finally:
                self._measuring.release()
        chosen_way: Way = self._preparing if self.prepares_itself else self._sending
        yield from _moved(chosen_way.run(items, normalize, batch_size), start)

    def close(self) -> None:
        """Ends what prepares."""
        self._preparing.close()

    def _can_prepare(self) -> bool:
        if self._served.towers.one("image").decoding == "gpu":
            _log.info("images are left to the server: it decodes on its GPU, and features of both ways must not mix")
            return False
        try:
            self._preparing.start()
        except CnclipError as error:
            _log.info("images are left to the server: %s", error)
            return False
        return True


class _Timed:
    """Blocks, with a count of their items and of the time that it takes to make them, but not of the caller's own.

    Attributes:
        items: How many items the blocks so far are of.
        seconds: How long those took.
    """

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self.items = 0
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        started = time.monotonic()
        try:
            block = next(self._blocks)
        finally:
            self.seconds += time.monotonic() - started
        self.items = block.stop
        return block


def _moved(blocks: Iterable[Block], by: int) -> Iterator[Block]:
    """Yields blocks of a source's later part as those of the whole source."""
    for block in blocks:
        yield replace(
            block,
            start=block.start + by,
            stop=block.stop + by,
            indices=block.indices + by,
            failures={index + by: reason for index, reason in block.failures.items()},
        )
