"""What holds for every request, whatever it asks: a key, headers, a count."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from typing import cast

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cnclip_gateway._errors import BadRequest, GatewayError, NotNow
from cnclip_gateway._metrics import Metrics
from cnclip_gateway._pages import HEADERS
from cnclip_gateway._protocol import BEYOND, LEFT

__all__ = ["Guard", "refused"]

# Who looks after the gateway asks these without a key; they tell nothing of anybody's.
_PUBLIC = frozenset({"/health", "/health/live", "/metrics", "/docs", "/openapi.json", "/pages/docs.css"})
# These are answered however many connections there are: one that is busy must not be taken for dead.
_ALWAYS = frozenset({"/health", "/health/live", "/metrics"})
# The status that nginx, and others after it, count for a caller that did not wait for the answer.
_LEFT = 499


def refused(error: GatewayError) -> Response:
    """Returns the answer that an error is."""
    return Response(error.body(), error.status, error.headers, media_type="application/json")


class Guard:
    """Asks for a key, sends headers with every answer, counts, and ends what nobody waits for any more."""

    def __init__(self, app: ASGIApp, keys: tuple[bytes, ...], metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        # Others count as one, lest whoever asks for made-up paths fill the memory with their counters.
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, answering = time.monotonic(), 500, False

        async def send_more(message: Message) -> None:
            nonlocal status, answering
            if message["type"] == "http.response.start":
                status, answering = message["status"], True
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                    *([(b"connection", b"close")] if _is_beyond(scope) else []),
                ]
            await send(message)

        left: asyncio.Future[None] = scope["state"][LEFT]
        task = cast("asyncio.Task[None]", asyncio.current_task())
        left.add_done_callback(task.cancel)
        with self._metrics.under_way.track_inprogress():
            try:
                refusal = self._refusal(scope)
                await (refusal or self._app)(scope, receive, send_more)
            except asyncio.CancelledError:
                if left.done():
                    status = _LEFT
                    return
                # By uvicorn, which ends and has waited for as long as it may.
                if answering:
                    raise
                ended = NotNow("the gateway ends, and had no time left for this; try again", code="ending")
                await refused(ended)(scope, receive, send_more)
            finally:
                left.remove_done_callback(task.cancel)
                self._metrics.answered(self._route(scope["path"]), status, time.monotonic() - began)

    def _refusal(self, scope: Scope) -> Response | None:
        if _is_beyond(scope) and scope["path"] not in _ALWAYS:
            return refused(NotNow("there are too many connections at present; try again", code="too_many_connections"))
        if not self._keys or scope["path"] in _PUBLIC:
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if sum(hmac.compare_digest(_secret(given), key) for key in self._keys):  # all, in the same time
            return None
        # A browser asks for it by itself: the key is the password, for any name.
        kind = "Bearer" if scope["path"].startswith("/v1/") else 'Basic realm="cnclip-gateway", charset="UTF-8"'
        return refused(
            BadRequest(
                "the key is missing or wrong; send Authorization: Bearer KEY",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": kind},
            )
        )

    def _route(self, path: str) -> str:
        if path in self._routes:
            return path
        above = path.rpartition("/")[0]
        return next((route for route in self._routes if "{" in route and route.startswith(f"{above}/{{")), "other")


def _is_beyond(scope: Scope) -> bool:
    return bool(scope.get("state", {}).get(BEYOND))


def _secret(header: bytes) -> bytes:
    """Returns the key in a header Authorization: a bearer's, or the password of a browser's."""
    kind, _, rest = header.partition(b" ")
    if kind.lower() == b"bearer":
        return rest.strip()
    if kind.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""
