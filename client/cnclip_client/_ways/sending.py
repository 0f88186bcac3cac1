"""Items that are sent as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from cnclip_client._blocks import Block
from cnclip_client._flow.batches import batches
from cnclip_client._flow.items import harmless_image, harmless_text, image_bytes, loaded, text_bytes
from cnclip_client._flow.read_ahead import reading_ahead
from cnclip_client._vocabulary import Kind
from cnclip_client._ways.served import Served, Way, rows_of_request

__all__ = ["Sending"]

_BYTES: dict[Kind, Callable[[object, int], bytes]] = {"image": image_bytes, "text": text_bytes}
_HARMLESS: dict[Kind, Callable[[], bytes]] = {"image": harmless_image, "text": harmless_text}


class Sending(Way):
    """Sends items as they are to the ensemble, which prepares them."""

    def __init__(self, kind: Kind, served: Served) -> None:
        self._kind = kind
        self._served = served

    def run(self, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Yields the features of items block by block, in their order. Files of images are read ahead."""
        kind, limits = self._kind, self._served.limits
        to_bytes, item_bytes = _BYTES[kind], limits.item_bytes
        info = self._served.towers.one(kind)
        rows = rows_of_request(info, batch_size)

        def load(item: object) -> bytes:
            return to_bytes(item, item_bytes)

        if kind == "image":
            payloads = reading_ahead(items, load, rows, limits.readers)
        else:
            payloads = (loaded(load, item) for item in items)
        pipeline = self._served.pipeline(kind, info, normalize, _HARMLESS[kind])
        yield from pipeline.run(batches(payloads, rows, limits.request_bytes))
