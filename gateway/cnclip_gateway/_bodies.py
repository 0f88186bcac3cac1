"""Requests' bodies, read within bounds of size, time and memory; and what all requests hold together."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.requests import Request

from cnclip_gateway._errors import BadRequest, NotNow
from cnclip_gateway._items import parsed_bytes
from cnclip_gateway._metrics import Metrics
from cnclip_gateway._settings import MIB, Settings

__all__ = ["Bodies", "Held"]


class Held:
    """What all requests hold together. Threads may share it."""

    def __init__(self, most_bytes: int, metrics: Metrics) -> None:
        self._most_bytes = most_bytes
        self._metrics = metrics
        self._held = 0
        self._lock = threading.Lock()

    def take(self, count: int, own: int = 0) -> int:
        """Counts so many bytes more, or fewer, and returns the number.

        Args:
            count: The bytes.
            own: Those that the same request holds already.

        Raises:
            BadRequest: That is too much even for one request alone.
            NotNow: It is too much at present.
        """
        with self._lock:
            if own + count > self._most_bytes:
                raise BadRequest("the request takes too much memory; send fewer items", status=413, code="too_large")
            if count > 0 and self._held + count > self._most_bytes:
                raise NotNow("requests hold too much memory at present; try again, with fewer items", code="busy")
            self._held += count
            self._metrics.held.set(self._held)
        return count


class Bodies:
    """Reads requests' bodies."""

    def __init__(self, settings: Settings, held: Held) -> None:
        self._settings = settings
        self._take = held.take

    @asynccontextmanager
    async def read(self, request: Request, *, json: bool = False) -> AsyncIterator[bytes]:
        """Gives a request's body, which counts as held until the context ends.

        Args:
            request: The request.
            json: Whether it will be parsed, which takes memory as well.

        Raises:
            BadRequest: It is too large, or compressed.
            NotNow: Its sender is too slow, or all requests together hold too much.
        """
        self._require_sized(request)
        taken = 0
        try:
            parts: list[bytes] = []
            try:
                with anyio.fail_after(self._settings.sender_s):
                    async for part in request.stream():
                        taken += self._take(len(part), taken)
                        if taken > self._settings.body_bytes:
                            raise self._too_large()
                        parts.append(part)
            except TimeoutError:
                raise NotNow(
                    f"the request did not come within {self._settings.sender_s:g} seconds; send fewer items",
                    status=408,
                    code="slow_sender",
                ) from None
            body = b"".join(parts)
            if json:
                taken += self._take(parsed_bytes(body), taken)
            yield body
        finally:
            self._take(-taken)

    def _require_sized(self, request: Request) -> None:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise BadRequest("the body is compressed; send it as it is", status=415, code="content_encoding")
        size = request.headers.get("content-length", "")
        if size.isdecimal() and (len(size) > 18 or int(size) > self._settings.body_bytes):
            raise self._too_large()

    def _too_large(self) -> BadRequest:
        most = self._settings.body_bytes / MIB
        return BadRequest(
            f"the request is larger than {most:g} MiB; send fewer items at a time", status=413, code="too_large"
        )
