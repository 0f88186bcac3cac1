"""Images that are prepared here."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterable, Iterator
from functools import partial

from cnclip_client._blocks import Block
from cnclip_client._connection.wire import Tensors, pixels_of
from cnclip_client._exceptions import CnclipError
from cnclip_client._flow.batches import batches
from cnclip_client._flow.items import harmless_image, image_bytes, loaded
from cnclip_client._flow.pillow_versions import what_differs
from cnclip_client._flow.prefetch import Prefetch
from cnclip_client._flow.preparation import Preparation
from cnclip_client._ways.served import Served, rows_of_request

__all__ = ["Preparing"]

_log = logging.getLogger(__name__)


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
        rows = rows_of_request(info, batch_size)
        pipeline = self._served.pipeline(
            "image",
            info,
            normalize,
            lambda: random.randbytes(side * side * 3),  # noqa: S311 - pixels, not a secret
            ("pixels", pixels_of(side)),
        )

        def prepare(item: object) -> bytes:
            return preparation.prepare(image_bytes(item, limits.item_bytes))

        ahead = Prefetch(
            iter(items), partial(loaded, prepare), lambda _: side * side * 3, threads=preparation.processes
        )
        with ahead as pixels:
            yield from pipeline.run(batches(pixels, rows, limits.request_bytes))

    def start(self) -> Preparation:
        """Returns the processes that prepare, started at the first call.

        Raises:
            CnclipError: Images cannot be prepared here.
        """
        with self._lock:
            if self._preparation is None:
                info = self._served.towers.one("image")
                self._preparation = Preparation(info, self._served.limits.preparers)
                self._warn_of_other_pillows(info.version, self._preparation.pillow)
            return self._preparation

    def close(self) -> None:
        """Ends the processes, and the connection."""
        self._served.endpoints.close()
        with self._lock:
            if self._preparation is not None:
                self._preparation.close()

    def _warn_of_other_pillows(self, version: str, ours: str) -> None:
        """Asks each server which Pillow it decodes with; those that have encoders alone do not tell."""
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
