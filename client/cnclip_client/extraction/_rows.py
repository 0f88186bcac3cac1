"""A column of images or texts in, a feature or a reason for each row out: what Ray's and Spark's tables take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cnclip_client._client import Client
from cnclip_client._exceptions import ModelChanged
from cnclip_client._info import ModelInfo
from cnclip_client._vocabulary import Kind
from cnclip_client.extraction._encoding import Encoded, encode_items
from cnclip_client.sources import Item

__all__ = ["Connect", "RowEncoder"]

Connect: TypeAlias = Callable[[], Client]
"""Makes the client in the process that will use it: neither a client nor its credentials can be sent there."""

# What features must share to be compared. A version's number may differ, as may what a server takes at once.
_SAME = ("arch", "checkpoint_sha256", "logit_scale", "embedding_size")


class RowEncoder:
    """Encodes columns in one process, with one client, made at the first row."""

    def __init__(
        self,
        connect: Connect,
        kind: Kind,
        *,
        normalize: bool = True,
        batch_size: int | None = None,
        expected: ModelInfo | None = None,
        preprocess: bool = True,
    ) -> None:
        """Prepares it; nothing is sent yet.

        Args:
            connect: Makes the client.
            kind: Whether the rows are images or texts.
            normalize: Whether each feature is divided by its length.
            batch_size: Items a request; by default the client's.
            expected: The model that all processes are held to.
            preprocess: Whether texts are prepared with `preprocess_text`.
        """
        self._connect = connect
        self._kind = kind
        self._normalize = normalize
        self._batch_size = batch_size
        self._expected = expected
        self._preprocess = preprocess
        self._client: Client | None = None

    def items(self, items: Iterable[Item], dtype: str = "float32") -> Iterator[Encoded]:
        """Yields the outcome of items. Raises ModelChanged if the servers' model is not the expected one."""
        return encode_items(
            self._ready(),
            self._kind,
            items,
            normalize=self._normalize,
            dtype=dtype,
            batch_size=self._batch_size,
            preprocess=self._preprocess,
        )

    def column(self, values: Sequence[Any]) -> tuple[NDArray[np.float32], list[str | None]]:
        """Returns features, float32 [n, D], and for each row None, or why its feature is all NaN.

        Args:
            values: Texts; or encoded images or their paths; None fails.
        """
        client = self._ready()
        size = client.info_of(self._kind).embedding_size
        features = np.full((len(values), size), np.nan, np.float32)
        reasons: list[str | None] = [None] * len(values)
        items = (Item(row, one, "is null" if one is None else "") for row, one in enumerate(values))
        for encoded in self.items(items):
            features[list(encoded.ids)] = encoded.features
            for failure in encoded.failures:
                reasons[int(failure.id)] = failure.reason
        return features, reasons

    def _ready(self) -> Client:
        if self._client is None:
            self._client = self._connect()
        if self._expected is not None:
            now = self._client.info_of(self._kind)
            expected, precision = self._expected, self._expected.precision
            # That of both towers names two where they differ.
            same_precision = "," in precision or precision == now.precision
            names = (*_SAME, "decoding") if self._kind == "image" else _SAME
            if not same_precision or any(getattr(now, name) != getattr(expected, name) for name in names):
                raise ModelChanged(model=f"{now.model}-{self._kind}", before=expected, after=now)
        return self._client
