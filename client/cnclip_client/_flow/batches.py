"""Cuts a caller's items, as they come, into requests."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._blocks import Block
from cnclip_client._connection.endpoint import Endpoint
from cnclip_client._flow.error_last import ErrorLast
from cnclip_client._flow.items import Unsendable
from cnclip_client._settings import Retry

__all__ = ["Batch", "batches"]


@dataclass(slots=True, eq=False)
class Batch:
    """One request in the making, under way or answered.

    Attributes:
        start: Index of its first item in the caller's sequence.
        stop: Index after its last one.
        indices: The items that are in `payloads`.
        payloads: Their bytes; emptied once answered.
        failures: Index -> reason of the items that were taken out, by us or by the server.
        size_bytes: The payloads' bytes together.
        outcome: None until it has ended; then its features, float32 [len(indices), D], or what ended it
            instead.
        attempts: How often it failed and may be sent again.
        failed_at: `time.monotonic()` of the first of these failures.
        sent_at: `time.monotonic()` of when it was sent last.
        call: The handle of the request under way.
        endpoint: The server that it was sent to last, if it was.
        refused_by: Servers that failed it for good, through no fault of its items.
        refusal: What the first of them said.
        parts: Batches of one item each that it was taken apart into.
        whole: What it is a part of.
    """

    start: int
    stop: int
    indices: list[int] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    size_bytes: int = 0
    outcome: NDArray[np.float32] | Exception | None = None
    attempts: int = 0
    failed_at: float = 0.0
    sent_at: float = 0.0
    call: Any = None
    endpoint: Endpoint | None = None
    refused_by: set[Endpoint] = field(default_factory=set)
    refusal: Exception | None = None
    parts: list[Batch] = field(default_factory=list)
    whole: Batch | None = None

    @property
    def server(self) -> Endpoint:
        """The server that it was sent to last."""
        if self.endpoint is None:
            raise AssertionError("an answer to what was never sent")
        return self.endpoint

    def block(self, features: NDArray[np.float32]) -> Block:
        """Returns what it has come to, with its features, float32 [len(indices), D]."""
        indices = np.asarray(self.indices, dtype=np.int64)
        return Block(self.start, self.stop, indices, features, dict(sorted(self.failures.items())))

    def end(self, outcome: Exception) -> None:
        """Gives it what ended it."""
        self.outcome, self.payloads = outcome, []

    def may_retry(self, retry: Retry, *, for_ever: bool = False) -> bool:
        """Counts a failure, and tells whether `Retry` allows another attempt; `for_ever` minds their number alone."""
        now = time.monotonic()
        self.attempts += 1
        if self.attempts == 1:
            # Counted from when the failure is seen: the caller may have been long over the block before.
            self.failed_at = now
        in_time = for_ever or now - self.failed_at < retry.deadline_s
        return self.attempts < retry.attempts and in_time

    def take_apart(self) -> list[Batch]:
        """Gives each item a batch of its own; `put_together` goes the other way."""
        self.parts = [
            Batch(
                index,
                index + 1,
                [index],
                [payload],
                size_bytes=len(payload),
                attempts=self.attempts,
                failed_at=self.failed_at,
                whole=self,
            )
            for index, payload in zip(self.indices, self.payloads, strict=True)
        ]
        return self.parts

    def put_together(self) -> None:
        """Gives it the outcome of its parts once all have one; that of the first that is an error, if any is."""
        outcomes = [part.outcome for part in self.parts]
        if not outcomes or any(outcome is None for outcome in outcomes):
            return
        error = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        features = [outcome for outcome in outcomes if isinstance(outcome, np.ndarray)]
        self.indices = [index for part in self.parts for index in part.indices]
        for part in self.parts:
            self.failures.update(part.failures)
        self.payloads, self.parts = [], []
        self.outcome = error or np.concatenate(features)

    def take_out(self, rows: dict[int, str]) -> None:
        """Moves rows of `payloads` to `failures`."""
        for row, reason in rows.items():
            self.failures[self.indices[row]] = reason
        kept = [row for row in range(len(self.indices)) if row not in rows]
        self.indices = [self.indices[row] for row in kept]
        self.payloads = [self.payloads[row] for row in kept]
        self.size_bytes = sum(map(len, self.payloads))


def batches(payloads: Iterable[bytes | Unsendable], batch_size: int, request_bytes: int) -> Iterator[Batch]:
    """Yields batches of up to `batch_size` items and `request_bytes` bytes; a larger item has one to itself.

    Reads no item before it is needed, save the one that does not fit any more. Failed items count as items,
    so that a long run of them still ends in a batch.

    Args:
        payloads: Of each of the caller's items, any number of them, its bytes or why it cannot be sent.
        batch_size: Items in a batch.
        request_bytes: Bytes in a batch.

    Raises:
        Exception: What the source raises, after the items before it.
    """
    batch = Batch(0, 0)
    source = ErrorLast(payloads)
    for index, payload in enumerate(source):
        if isinstance(payload, Unsendable):
            batch.failures[index] = str(payload)
        else:
            size_bytes = batch.size_bytes + len(payload)
            if size_bytes > request_bytes and batch.payloads:
                yield batch
                batch, size_bytes = Batch(index, index), len(payload)
            batch.indices.append(index)
            batch.payloads.append(payload)
            batch.size_bytes = size_bytes
        batch.stop = index + 1
        if batch.stop - batch.start == batch_size:
            yield batch
            batch = Batch(batch.stop, batch.stop)
    if batch.stop > batch.start:
        yield batch
    source.raise_error()
