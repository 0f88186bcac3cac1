"""The ways from items to features: sent as they are, prepared here, or by whichever of the two is faster."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from cnclip_client._blocks import Block
from cnclip_client._connection.endpoints import Endpoints
from cnclip_client._connection.towers import Towers
from cnclip_client._connection.wire import Tensors
from cnclip_client._exceptions import CnclipError
from cnclip_client._flow.batches import batches
from cnclip_client._flow.concurrency import Found
from cnclip_client._flow.items import Unsendable, harmless_image, harmless_text, image_bytes, text_bytes
from cnclip_client._flow.parts import Timed, moved
from cnclip_client._flow.pillow_versions import what_differs
from cnclip_client._flow.pipeline import Pipeline
from cnclip_client._flow.prefetch import Prefetch
from cnclip_client._flow.preparation import Preparation
from cnclip_client._flow.read_ahead import reading_ahead, ready_or_raise
from cnclip_client._info import ModelInfo
from cnclip_client._settings import Limits
from cnclip_client._vocabulary import Kind

__all__ = ["Faster", "Preparing", "Sending", "Served", "Way"]

_log = logging.getLogger(__name__)

# How many images are measured each way, and what this machine has to be faster by: its cores may have other work.
_TRIAL_ITEMS = 128
_CLEARLY = 1.1

# Rows a request, where neither the caller nor the server says.
_BATCH_SIZES: dict[Kind, int] = {"image": 8, "text": 32}
_BYTES: dict[Kind, Callable[[object, int], bytes]] = {"image": image_bytes, "text": text_bytes}
_HARMLESS: dict[Kind, Callable[[], bytes]] = {"image": harmless_image, "text": harmless_text}


class Way(Protocol):
    """A way from items to features."""

    def run(self, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Yields the features of items block by block, in their order."""

    def close(self) -> None:
        """Ends what it has started."""


@dataclass(frozen=True, eq=False)
class Served:
    """What is asked, and within which bounds.

    Attributes:
        endpoints: The servers.
        towers: Their models.
        limits: What a run may hold.
        found: What earlier runs have found.
    """

    endpoints: Endpoints
    towers: Towers
    limits: Limits
    found: Found = field(default_factory=Found)

    def pipeline(
        self, kind: Kind, info: ModelInfo, normalize: bool, harmless: Callable[[], bytes], dims: tuple[int, ...] = ()
    ) -> Pipeline:
        """Returns what sends rows to a tower's model: strings, or uint8 of `dims`."""
        output = f"{kind}_features" if normalize else f"unnorm_{kind}_features"
        return Pipeline(
            self.endpoints,
            model=self.towers.name(kind),
            version=info.version,
            tensors=Tensors("pixels" if dims else kind.upper(), output, dims),
            embedding_size=info.embedding_size,
            limits=self.limits,
            found=self.found,
            harmless=harmless,
            verify=lambda max_age_s: self.towers.require_unchanged(kind, max_age_s),
        )


class Sending:
    """Sends items as they are to the ensemble, which prepares them."""

    def __init__(self, kind: Kind, served: Served) -> None:
        self._kind = kind
        self._served = served

    def run(self, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Yields the features of items block by block, in their order. Files of images are read ahead."""
        kind, limits = self._kind, self._served.limits
        info = self._served.towers.one(kind)
        rows = _rows(kind, info, batch_size)

        def load(item: object) -> bytes:
            return _BYTES[kind](item, limits.item_bytes)

        if kind == "image":
            ahead = reading_ahead(items, load, rows, limits.readers)
            made = batches(ahead, ready_or_raise, rows, limits.request_bytes)
        else:
            made = batches(items, load, rows, limits.request_bytes)
        yield from self._served.pipeline(kind, info, normalize, _HARMLESS[kind]).run(made)

    @property
    def decoding(self) -> str:
        """How the server decodes."""
        return self._served.towers.one(self._kind).decoding

    def close(self) -> None:
        """Has nothing to end."""


class Preparing:
    """Decodes and resizes images here, and sends their pixels to the encoder.

    Args:
        served: Whose tower of images is the encoder alone.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self._preparation: Preparation | None = None
        self._lock = threading.Lock()

    def run(self, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Yields the features of images block by block, in their order.

        Raises:
            CnclipError: They cannot be prepared here.
        """
        preparation, limits = self.start(), self._served.limits
        info = self._served.towers.one("image")
        side = info.resolution or 0
        rows = _rows("image", info, batch_size)
        pipeline = self._served.pipeline(
            "image",
            info,
            normalize,
            lambda: random.randbytes(side * side * 3),  # noqa: S311 - pixels, not a secret
            (side, side, 3),
        )

        def prepared(item: object) -> object:
            try:
                return preparation.prepare(image_bytes(item, limits.item_bytes))
            except Unsendable as reason:
                return reason

        ahead = Prefetch(iter(items), prepared, lambda _: side * side * 3, threads=preparation.processes)
        with ahead as pixels:
            yield from pipeline.run(batches(pixels, ready_or_raise, rows, limits.request_bytes))

    def start(self) -> Preparation:
        """Returns the processes that prepare, started at the first call.

        Raises:
            CnclipError: Images cannot be prepared here.
        """
        with self._lock:
            if self._preparation is None:
                info = self._served.towers.one("image")
                name = self._served.towers.name("image")
                self._preparation = Preparation(name, info, self._served.limits.preparers)
                self._warn_of_other_pillows(info.version, self._preparation.pillow)
            return self._preparation

    def close(self) -> None:
        """Ends the processes, and the connection."""
        self._served.endpoints.close()
        with self._lock:
            if self._preparation is not None:
                self._preparation.close()

    def _warn_of_other_pillows(self, version: str, ours: str) -> None:
        """Asks each server which Pillow it decodes with; older ones do not tell, nor those that have encoders alone."""
        name, told = f"{self._served.towers.slug}-image-preprocess", set()
        for endpoint in self._served.endpoints.inside():
            try:
                pillow = Tensors("IMAGE", "pillow")
                theirs = endpoint.transport.ask_text(name, version, pillow, harmless_image())
            except CnclipError as error:
                _log.info("which Pillow %s decodes with is not known: %s", endpoint.transport.url, error)
                continue
            pictures = what_differs(ours, theirs)
            if pictures and theirs not in told:
                told.add(theirs)
                _log.warning(
                    "%s at %s decodes with Pillow %s, this client with %s: pixels of %s may differ in their last bits "
                    "from those that the server prepares; pip install 'pillow==%s' makes them equal",
                    name,
                    endpoint.transport.url,
                    theirs,
                    ours,
                    pictures,
                    theirs,
                )


class Faster:
    """Has the server prepare the first images, this machine the next, and all others whoever was faster.

    What was found holds for this object's life. Where another run measures at the moment, the server prepares.

    Attributes:
        prepares_itself: What was found; None where nothing was measured yet.
    """

    def __init__(self, sending: Sending, preparing: Preparing) -> None:
        self._sending = sending
        self._preparing = preparing
        self._measuring = threading.Lock()
        self.prepares_itself: bool | None = None

    def run(self, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Yields the features of images block by block, in their order."""
        start = 0
        if self.prepares_itself is None and self._measuring.acquire(blocking=False):
            try:
                items = iter(items)  # only here: what is a list is read further ahead
                rates: list[float] = []
                for way in (self._sending, self._preparing) if self._can_prepare() else ():
                    trial = Timed(way.run(itertools.islice(items, _TRIAL_ITEMS), normalize, batch_size))
                    yield from moved(trial, start)
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
        yield from moved(chosen_way.run(items, normalize, batch_size), start)

    def close(self) -> None:
        """Ends what prepares."""
        self._preparing.close()

    def _can_prepare(self) -> bool:
        if self._sending.decoding == "gpu":
            _log.info("images are left to the server: it decodes on its GPU, and features of both ways must not mix")
            return False
        try:
            self._preparing.start()
        except CnclipError as error:
            _log.info("images are left to the server: %s", error)
            return False
        return True


def _rows(kind: Kind, info: ModelInfo, batch_size: int | None) -> int:
    """How many rows a request has."""
    return min(batch_size or info.preferred_batch_size or _BATCH_SIZES[kind], info.max_batch_size)
