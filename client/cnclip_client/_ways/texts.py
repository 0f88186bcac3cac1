"""Texts, whose token ids are made here where the encoder alone is asked."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator

from cnclip_client._blocks import Block
from cnclip_client._flow.batches import batches
from cnclip_client._flow.items import harmless_text, loaded
from cnclip_client._flow.tokenizing import Tokenizing
from cnclip_client._ways.sending import Sending
from cnclip_client._ways.served import Served, Way, rows_of_request

__all__ = ["Texts"]

_log = logging.getLogger(__name__)


class Texts(Way):
    """Sends texts to the ensemble, or their token ids to the encoder, whichever is asked of the tower.

    Ids are made on the thread that iterates: a text takes it microseconds, as much as to hand it to a process.

    Args:
        served: What is asked.
        vocabulary: The file of the encoder's tokens; None for cn_clip's.
    """

    def __init__(self, served: Served, vocabulary: str | os.PathLike[str] | None = None) -> None:
        self._served = served
        self._vocabulary = vocabulary
        self._sending = Sending("text", served)
        self._tokenizing: Tokenizing | None = None
        self._lock = threading.Lock()

    def run(self, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Yields the features of texts block by block, in their order.

        Raises:
            CnclipError: Token ids cannot be made here.
        """
        if not self._served.towers.is_encoder("text"):
            yield from self._sending.run(items, normalize, batch_size)
            return
        info, limits, tokenizing = self._served.towers.one("text"), self._served.limits, self._start()
        cut = 0

        def ids(item: object) -> bytes:
            nonlocal cut
            row, is_cut = tokenizing.ids(item, limits.item_bytes)
            cut += is_cut
            return row

        def harmless() -> bytes:
            return tokenizing.ids(harmless_text().decode(), limits.item_bytes)[0]

        pipeline = self._served.pipeline("text", info, normalize, harmless, ("text", tokenizing.padded))
        rows = rows_of_request(info, batch_size)
        payloads = (loaded(ids, item) for item in items)
        yield from pipeline.run(batches(payloads, rows, limits.request_bytes))
        if cut:  # what tokenises on a server counts them, too
            _log.info("%d texts have more than %d tokens, of which the rest was cut off", cut, info.context_length)

    def _start(self) -> Tokenizing:
        with self._lock:
            if self._tokenizing is None:
                towers = self._served.towers
                self._tokenizing = Tokenizing(towers.name("text"), towers.one("text"), self._vocabulary)
            return self._tokenizing
