"""What the gateway lets others do, with the defaults written out."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MIB", "Settings"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway lets others do.

    Attributes:
        keys: Any of them opens what is not public; without keys everything is open.
        hosts: Where pictures may be fetched from, `host` or `host:port`; nothing is fetched where there is none.
        preprocess: Whether texts are prepared as `cnclip extract texts` does.
        max_items: Most items of a request.
        body_bytes: Most bytes of a request.
        held_bytes: Most bytes that all requests hold together; others are told to come again.
        time_limit_s: How long an answer may take, once the request is there.
        sender_s: How long a sender may take for a request, and for reading on in an answer.
        concurrency: Requests that are worked on at once.
        connections: Most connections at once.
    """

    keys: tuple[bytes, ...] = ()
    hosts: tuple[str, ...] = ()
    preprocess: bool = True
    max_items: int = 2048
    body_bytes: int = 32 * MIB
    held_bytes: int = 512 * MIB
    time_limit_s: float = 60.0
    sender_s: float = 60.0
    concurrency: int = 64
    connections: int = 512
