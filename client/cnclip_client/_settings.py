"""How patient, how persistent and how greedy a client is: value objects with their defaults written out."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["MOST_PREPARERS", "Limits", "Retry", "Timeout"]

MOST_PREPARERS = 1024
"""All of them are started at once: a slip of the hand must not take a machine down."""

_MIB = 1024 * 1024
_MOST_S = 1_000_000  # eleven days: gRPC has 32 bits for milliseconds


def _check_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        # Written so that NaN fails as well.
        if not value > 0:
            raise ValueError(f"{type(owner).__name__}.{name} must be more than 0, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """Deadlines in seconds.

    Attributes:
        connect_s: How long the first answer may take: an address where nobody answers is given up after this.
        request_s: How long one inference request may take, the wait in the server's queue included. A request
            that exceeds it is not sent again: that would only double the load that made it late. A host that has
            vanished is noticed in half of it, and the request sent again once there is a connection.
    """

    connect_s: float = 5.0
    request_s: float = 120.0

    def __post_init__(self) -> None:
        _check_positive(self, "connect_s", "request_s")
        for name, seconds in (("connect_s", self.connect_s), ("request_s", self.request_s)):
            if seconds > _MOST_S:
                raise ValueError(f"Timeout.{name} must be at most {_MOST_S}, got {seconds!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """When a request is sent again: after a lost connection, a full queue, or while a model is reloaded.

    Encoding changes nothing on the server, so sending twice is safe. The wait doubles from `first_delay_s` up
    to `max_delay_s`, each shortened at random by up to half so that many clients do not return at the same
    moment. The defaults outlast a reload of about 10 seconds; a batch job that must outlast a restart takes
    `Retry.patient(seconds)`.

    Attributes:
        attempts: How often one request is sent at most, the first time included; 1 means never again.
        connect_attempts: The same while the server has not answered even once, where a wrong address is the
            likeliest.
        start_s: Seconds for which a server that is not there yet, or loads its model yet, is waited for at the start,
            however few the attempts.
        first_delay_s: Seconds before the second attempt.
        max_delay_s: The longest wait between two attempts, in seconds.
        deadline_s: Seconds after its first failure when a request is given up, however few the attempts.
    """

    attempts: int = 10
    connect_attempts: int = 3
    start_s: float = 0.0
    first_delay_s: float = 0.1
    max_delay_s: float = 2.0
    deadline_s: float = 30.0

    def __post_init__(self) -> None:
        _check_positive(self, "attempts", "connect_attempts", "first_delay_s", "max_delay_s", "deadline_s")
        if not self.start_s >= 0:
            raise ValueError(f"Retry.start_s must be at least 0, got {self.start_s!r}")

    @classmethod
    def patient(cls, deadline_s: float) -> Retry:
        """Returns one that waits for the server for so many seconds, at the start too, in any number of attempts."""
        return cls(attempts=1_000_000, deadline_s=deadline_s, start_s=deadline_s)

    def delay_s(self, failures: int) -> float:
        """Returns the seconds to wait after the given number of failures (from 1)."""
        # 2**31 seconds is past any cap; a larger exponent would overflow after a thousand attempts.
        full = min(self.first_delay_s * 2.0 ** min(failures - 1, 31), self.max_delay_s)
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one call of `encode_*` or `iter_*` may hold at one time.

    Attributes:
        in_flight: Most requests under way at once; how many of them are worth it is found out as a call runs.
        in_flight_bytes: Their bytes together; a request larger than this travels alone.
        request_bytes: A request is closed when a further item would take it past this; a larger item travels
            alone.
        item_bytes: A larger item is refused before it is read or sent.
        readers: Most threads that read files of images ahead; there are as many as it takes not to wait for them.
        preparers: Processes that decode images, where the client does that (`prepare`); by default one for each core
            that this process may use. 1024 at most: all are started at once.
    """

    in_flight: int = 64
    in_flight_bytes: int = 64 * _MIB
    request_bytes: int = 16 * _MIB
    item_bytes: int = 64 * _MIB
    readers: int = 32
    preparers: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "in_flight", "in_flight_bytes", "request_bytes", "item_bytes", "readers")
        if self.preparers is not None:
            _check_positive(self, "preparers")
            if self.preparers > MOST_PREPARERS:
                raise ValueError(f"Limits.preparers must be at most {MOST_PREPARERS}, got {self.preparers!r}")
