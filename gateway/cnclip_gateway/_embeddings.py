"""`POST /v1/embeddings`: from items to features, and from features to the bytes of an answer."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
from cnclip_client import Client
from numpy.typing import NDArray

from cnclip_gateway._errors import GatewayError, NotNow
from cnclip_gateway._fetching import Fetcher
from cnclip_gateway._items import Asked, Item, refusal
from cnclip_gateway._models import Models
from cnclip_gateway._settings import Settings
from cnclip_gateway._sharing import Outcome

__all__ = ["answer", "embeddings", "together"]

_T = TypeVar("_T")


def embeddings(
    asked: Asked, slug: str, models: Models, settings: Settings, fetcher: Fetcher, unwanted: threading.Event
) -> NDArray[np.float32]:
    """Returns the features of a request, float32 [N, D].

    Args:
        asked: The request.
        slug: The model.
        models: What is served.
        settings: Whether texts are prepared.
        fetcher: Fetches what is named by an address.
        unwanted: Once it is set, no more of it is sent to the server.

    Raises:
        GatewayError: There are none; for items that cannot be encoded it names each, and why.
    """
    with fetcher.filled(asked.items) as items:
        if unusable := [(row, one) for row, one in enumerate(items) if isinstance(one, ValueError)]:
            raise refusal(unusable)
        return models.run(slug, partial(_encoded, items=items, preprocess=settings.preprocess, unwanted=unwanted))


def together(models: Models, settings: Settings, slug: str, requests: list[list[Item]]) -> list[Outcome]:
    """Encodes the items of several requests with one call; returns each one's features, or why there are none."""
    items = [item for request in requests for item in request]
    try:
        collect = partial(_collected, items=items, preprocess=settings.preprocess, unwanted=threading.Event())
        found, reasons = models.run(slug, collect)
    except GatewayError as error:
        return [error] * len(requests)
    outcomes: list[Outcome] = []
    start = 0
    for request in requests:
        rows = range(start, start + len(request))
        bad = [(row - start, reasons[row]) for row in rows if row in reasons]
        outcomes.append(refusal(bad) if bad else np.stack([found[row] for row in rows]))
        start = rows.stop
    return outcomes


def _encoded(client: Client, items: list[Item], preprocess: bool, unwanted: threading.Event) -> NDArray[np.float32]:
    """Returns the features of texts and pictures, float32 [N, D], L2-normalised, in their order.

    Raises:
        BadRequest: Some cannot be encoded; it names each, and why.
        CnclipError: The server could not be had.
    """
    found, reasons = _collected(client, items, preprocess, unwanted)
    if reasons:
        raise refusal(reasons.items())
    return np.stack([found[row] for row in range(len(items))])


def _collected(
    client: Client, items: list[Item], preprocess: bool, unwanted: threading.Event
) -> tuple[dict[int, NDArray[np.float32]], dict[int, str]]:
    """Returns the features of those that can be encoded, and the reasons of the others, by their place."""
    texts = {row: one for row, one in enumerate(items) if isinstance(one, str)}
    images = {row: one for row, one in enumerate(items) if isinstance(one, bytes)}
    # As `encode_texts` does: those of like length cost least together.
    texts = dict(sorted(texts.items(), key=lambda item: len(item[1])))
    found: dict[int, NDArray[np.float32]] = {}
    reasons: dict[int, str] = {}
    for rows, blocks in (
        (list(texts), client.iter_texts(_while_wanted(texts.values(), unwanted), preprocess=preprocess)),
        (list(images), client.iter_images(_while_wanted(images.values(), unwanted))),
    ):
        for block in blocks if rows else ():
            reasons |= {rows[index]: reason for index, reason in block.failures.items()}
            found |= {rows[index]: row for index, row in zip(block.indices.tolist(), block.features, strict=True)}
    return found, reasons


def _while_wanted(items: Iterable[_T], unwanted: threading.Event) -> Iterator[_T]:
    """Yields items until they are not wanted any more; what is under way then comes to its end."""
    for one in items:
        if unwanted.is_set():
            raise NotNow("nobody waits for it any more", code="left")
        yield one


def answer(slug: str, features: NDArray[np.float32], asked: Asked) -> bytes:
    """Returns the answer to a request, JSON in OpenAI's form."""
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
