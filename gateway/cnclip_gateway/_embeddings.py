"""`POST /v1/embeddings`: a request's bytes in, an answer's bytes out."""

from __future__ import annotations

import base64
import json
from functools import partial

import numpy as np
from cnclip_client import Client
from numpy.typing import NDArray

from cnclip_gateway._fetching import Fetcher
from cnclip_gateway._items import Asked, Item, parsed, refusal
from cnclip_gateway._metrics import Metrics
from cnclip_gateway._models import Models
from cnclip_gateway._settings import Settings

__all__ = ["embeddings"]


def embeddings(body: bytes, models: Models, settings: Settings, fetcher: Fetcher, metrics: Metrics) -> bytes:
    """Returns the answer to a request, JSON in OpenAI's form.

    Raises:
        GatewayError: There is none; for items that cannot be encoded it names each, and why.
        CnclipError: The models could not be listed.
    """
    asked = parsed(body, settings.max_items)
    slug = models.chosen(asked.model)
    items = fetcher.filled(asked.items)
    unusable = [(row, one) for row, one in enumerate(items) if isinstance(one, ValueError)]
    if unusable:
        raise refusal(unusable)
    features = models.run(slug, partial(encoded, items=items, preprocess=settings.preprocess))
    metrics.encoded(items)
    return _answer(slug, features, asked)


def encoded(client: Client, items: list[Item], preprocess: bool) -> NDArray[np.float32]:
    """Returns the features of texts and pictures, float32 [N, D], L2-normalised, in their order.

    Raises:
        BadRequest: Some cannot be encoded; it names each, and why.
        CnclipError: The server could not be had.
    """
    texts = {row: one for row, one in enumerate(items) if isinstance(one, str)}
    images = {row: one for row, one in enumerate(items) if isinstance(one, bytes)}
    found: dict[int, NDArray[np.float32]] = {}
    reasons: list[tuple[int, object]] = []
    for rows, block in (
        (list(texts), client.encode_texts(texts.values(), preprocess=preprocess, errors="collect") if texts else None),
        (list(images), client.encode_images(images.values(), errors="collect") if images else None),
    ):
        if block is not None:
            reasons += [(rows[index], reason) for index, reason in block.failures.items()]
            found |= {rows[index]: row for index, row in zip(block.indices.tolist(), block.features, strict=True)}
    if reasons:
        raise refusal(reasons)
    return np.stack([found[row] for row in range(len(items))])


def _answer(slug: str, features: NDArray[np.float32], asked: Asked) -> bytes:
    # Written by hand: json.dumps would write 17 digits a number, where 9 bring a float32 back.
    form = _as_base64 if asked.base64 else _as_numbers
    data = ",".join(
        f'{{"object":"embedding","index":{index},"embedding":{form(row)}}}' for index, row in enumerate(features)
    )
    usage = '{"prompt_tokens":0,"total_tokens":0}'
    return f'{{"object":"list","data":[{data}],"model":{json.dumps(slug)},"usage":{usage}}}'.encode()


def _as_numbers(row: NDArray[np.float32]) -> str:
    return "[" + ",".join(map("%.9g".__mod__, row.tolist())) + "]"


def _as_base64(row: NDArray[np.float32]) -> str:
    return f'"{base64.b64encode(row.astype("<f4").tobytes()).decode()}"'
