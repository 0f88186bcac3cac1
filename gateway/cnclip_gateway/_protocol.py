"""HTTP as uvicorn speaks it, with an end to slow senders and slow readers, whom it would wait for for ever.

uvicorn's own bound of connections, once it is reached, is for all requests, those of a load balancer's old connections
and a kubelet's probes too: who opens so many and says nothing would have every gateway started again. Here it is for
the connections that came when there were enough already; `BEYOND` in a request's state tells `_guard`.

uvicorn also lets a request be worked on whose caller has gone. `LEFT` in a request's state tells `_guard` of that.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["BEYOND", "LEFT", "protocol"]

BEYOND = "beyond"
LEFT = "left"
# What is left for an answer that says so, before the connection is cut.
_GRACE = 1.25
# For a request on a connection too many: it is only told to come again.
_BEYOND_S = 5.0


def protocol(sender_s: float, connections: int) -> type[asyncio.Protocol]:
    """Returns a protocol that cuts connections whose peer does not go on.

    Args:
        sender_s: How long a request may take to arrive, and how long a peer may leave an answer unread.
        connections: How many there may be; requests on others have `BEYOND` in their state.

    All requests have a future, `LEFT`, in their state, that is done once their connection is lost.
    """

    class Bounded(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            arriving_s = _GRACE * sender_s
            self._left: asyncio.Future[None] = self.loop.create_future()
            self.app_state = {**self.app_state, LEFT: self._left}
            if len(self.connections) >= connections:
                self.app_state = {**self.app_state, BEYOND: True}
                arriving_s = min(arriving_s, _BEYOND_S)
            self._arriving = _Fuse(self.loop, arriving_s, transport)
            self._unread = _Fuse(self.loop, sender_s, transport)
            super().connection_made(transport)
            self._look()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE) and not self.conn.trailing_data[0]:
                # All of the request is there. Behind a large one uvicorn reads no further until it is answered, and
                # so would not see its caller go.
                self.flow.resume_reading()
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._arriving.put_out()
            self._unread.put_out()
            self._left.set_result(None)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread.light()

        def resume_writing(self) -> None:
            self._unread.put_out()
            super().resume_writing()

        def _look(self) -> None:
            """Has a request that arrives, or does not even begin to on a new connection, arrive in time."""
            idle = self.conn.their_state is h11.IDLE
            # Between two requests uvicorn's keep-alive ends it.
            between = idle and self.cycle is not None and not self.conn.trailing_data[0]
            if (idle or self.conn.their_state is h11.SEND_BODY) and not between:
                self._arriving.light()
            else:
                self._arriving.put_out()

    return Bounded


class _Fuse:
    """Cuts a connection so many seconds after it was lit, unless it is put out."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, transport: asyncio.Transport) -> None:
        self._loop = loop
        self._seconds = seconds
        self._transport = transport
        self._timer: asyncio.TimerHandle | None = None

    def light(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._transport.abort)

    def put_out(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
