"""One of several servers: its address, and what is known of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cnclip_client._connection.transport import Transport, require_no_secret

__all__ = ["Endpoint", "Urls", "urls_of"]

Urls: TypeAlias = str | Sequence[str]
"""One address or several, as a sequence or with commas between them."""


def urls_of(given: Urls) -> tuple[str, ...]:
    """Returns the addresses one by one, each once.

    Raises:
        ValueError: There is none, or one has a name or a password in it.
    """
    texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        require_no_secret(text)  # before a comma in it cuts it into what does not look like one
    urls = tuple(dict.fromkeys(url.strip() for text in texts for url in text.split(",") if url.strip()))
    if not urls:
        raise ValueError(
            f"no server is named: {','.join(texts)!r} holds no address (url, --url, CNCLIP_URL); write host:8001, "
            "Triton's gRPC port, and of several a:8001,b:8001"
        )
    return urls


@dataclass(slots=True, eq=False)
class Endpoint:
    """One of the servers.

    Attributes:
        transport: Its connection.
        under_way: Requests that wait for its answer, those of all threads.
        failures: How often it failed since its last answer.
        proofs: Requests that it has answered since it last failed.
        out: Whether it is left out.
        on_trial: Whether it was taken back and has not answered a request yet.
        alone: Whether what it has under way is to stay the only request there.
        kept_until: `time.monotonic()` up to which it is kept for such requests.
        busy_until: `time.monotonic()` up to which others come first, since its queue was full.
        probe_at: That of the next question whether it is back.
        probing: Whether that is being asked.
        probes: How often it has been asked since it was left out.
        marks: How often it was left out: a question that was begun before tells nothing.
        problem: Why it is left out.
    """

    transport: Transport
    under_way: int = 0
    failures: int = 0
    proofs: int = 0
    out: bool = False
    on_trial: bool = False
    alone: bool = False
    kept_until: float = 0.0
    busy_until: float = 0.0
    probe_at: float = 0.0
    probing: bool = False
    probes: int = 0
    marks: int = 0
    problem: Exception | None = None

    def is_kept(self) -> bool:
        """Tells whether it takes no ordinary requests for now."""
        return self.alone or self.kept_until > time.monotonic()
