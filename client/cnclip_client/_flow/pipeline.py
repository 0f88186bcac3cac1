"""Keeps several requests under way and hands their answers out in the order of the caller's items.

One thread does everything: the one that iterates. gRPC's callbacks only put what came into a queue. That needs no lock,
stops when the caller stops, and was measured faster than a pool of threads that each wait for an answer: some 75,000
against 58,000 texts a second at 32 rows a request, 4 under way, server and client on two cores.

A server that has been away may have come back with another model under the same name. So nothing is sent again before
the server has said that it serves the same one, and the last block comes out only after it has said so once more: a
run that ends without an error holds features of one model, unless a proxy has shared it among servers and hidden one.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._blocks import Block
from cnclip_client._connection.endpoint import Endpoint
from cnclip_client._connection.endpoints import PASSING, Endpoints
from cnclip_client._connection.mapping import (
    is_crowded,
    is_cut_off,
    is_death,
    is_model_death,
    is_queue_full,
    is_transient,
    status_of,
)
from cnclip_client._connection.wire import Tensors, bad_rows, features_output
from cnclip_client._exceptions import CnclipError, ServerError
from cnclip_client._flow.batches import Batch
from cnclip_client._flow.concurrency import Concurrency, Found
from cnclip_client._flow.error_last import ErrorLast
from cnclip_client._flow.quarantine import Quarantine
from cnclip_client._flow.vouching import Vouching
from cnclip_client._settings import Limits
from cnclip_client._threads import unbroken

__all__ = ["Pipeline"]

_log = logging.getLogger(__name__)

# How many batches may be held, under way, or answered and waiting for a slow one before them, as a multiple of those
# that may be under way: enough to keep the pipe full, and a bound of memory. It bounds the speed, too: n servers reach
# at most n times this multiple of the slowest one's. With 2, a server a fiftieth as fast as another brought the two
# down to a tenth of the faster one.
_WINDOWS = 8
# How long to wait for a server that is away, where something can be done only there, or better there: as a share of
# `Retry.deadline_s`, so that a patient client waits for a restart and any other is soon served elsewhere.
_GRACE = 1 / 20
# How often it is looked whether a server is free, where nothing tells.
_POLL_S = 0.02


class Pipeline:
    """One run over one sequence of items."""

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        model: str,
        version: str,
        tensors: Tensors,
        embedding_size: int,
        limits: Limits,
        found: Found,
        harmless: Callable[[], bytes],
        verify: Callable[[float, int], None],
    ) -> None:
        """Prepares a run; nothing is sent yet.

        Args:
            endpoints: The servers.
            model: The model's full name.
            version: Its version.
            tensors: The input and the output.
            embedding_size: D.
            limits: What may be under way at once.
            found: What the client's runs before have found out of how many requests are worth it.
            harmless: Gives an item that does a server no harm, another one each time.
            verify: As for `Vouching`.
        """
        self._endpoints = endpoints
        self._model = model
        self._version = version
        self._tensors = tensors
        self._embedding_size = embedding_size
        self._limits = limits
        self._found = found
        self._concurrency: Concurrency
        self._retry = endpoints.retry
        self._vouching = Vouching(verify, self._retry)
        self._sent = 0
        self._answers: queue.SimpleQueue[tuple[Batch, Any, Any]] = queue.SimpleQueue()
        self._held: Batch | None = None  # read, and not sent yet
        self._ended = False  # whether the source has no more
        self._fed = True  # whether it was read since a block was given out
        self._window: deque[Batch] = deque()  # sent, and not given out yet
        self._resend: list[tuple[float, int, Batch]] = []
        self._quarantine = Quarantine(endpoints, harmless, embedding_size, _GRACE * self._retry.deadline_s)
        self._ticket = itertools.count()
        self._active = 0
        self._active_bytes = 0

    def run(self, source: Iterator[Batch]) -> Iterator[Block]:
        """Yields a block for each batch of `source`, in its order.

        Raises:
            CnclipError: The first batch, in order, that could not be had; those before it have been yielded.
            Exception: What the source raises, once all that it gave before has been yielded.
        """
        with self._found.kept(self._model, self._limits.in_flight, len(self._endpoints)) as self._concurrency:
            yield from self._run(ErrorLast(source))

    def _run(self, source: ErrorLast[Batch]) -> Iterator[Block]:
        batches = iter(source)
        try:
            while True:
                self._take_answers(wait=False)
                self._send_due()
                self._try_suspect()
                first = self._window[0].outcome if self._window else None
                if self._may_read(is_one_ready=first is not None):
                    self._read(batches)
                if self._send_held() and first is None:
                    continue  # with the next one: an answer is waited for once no more can be sent
                if first is not None:
                    yield self._given_out(first)
                elif self._window:
                    self._take_answers(wait=True)
                elif self._ended:
                    source.raise_error()
                    return
                elif self._held is not None:
                    time.sleep(_POLL_S)  # all servers are kept for what another run suspects
        finally:
            self._quarantine.close()
            for batch in self._window:
                if batch.call is not None:
                    batch.call.cancel()

    def _may_read(self, *, is_one_ready: bool) -> bool:
        """Whether one more batch is read from the source now; not while the server is in trouble.

        What is ready comes out first, if the server has work meanwhile; then a batch is read for each that comes out: a
        slow source must not keep back what is there, nor a slow caller leave the server idle.
        """
        if self._ended or self._held is not None or self._resend or (is_one_ready and self._fed and self._active > 0):
            return False
        limit = self._concurrency.limit
        return self._active < limit and len(self._window) < _WINDOWS * limit

    def _read(self, batches: Iterator[Batch]) -> None:
        """Holds the source's next batch."""
        self._fed = True
        self._held = next(batches, None)
        if self._held is None:
            self._ended = True
            self._concurrency.pause()

    def _send_held(self) -> bool:
        """Sends the batch that is held, if there is one and room for it; tells whether it did."""
        batch = self._held
        if batch is None or self._resend or not self._has_room(batch):
            return False
        self._held = None
        self._window.append(batch)
        self._send(batch)
        return True

    def _given_out(self, outcome: NDArray[np.float32] | Exception) -> Block:
        """Takes the first batch out of the window, with its features; raises what ended it instead."""
        if isinstance(outcome, Exception):
            raise outcome
        if self._ended and len(self._window) == 1:
            self._vouching.at_the_end(self._sent)
        else:
            self._vouching.now_and_then()
        self._fed = False
        return self._window.popleft().block(outcome)

    def _has_room(self, batch: Batch) -> bool:
        """Whether a batch may be sent now."""
        if self._endpoints.are_kept():
            return False
        fits = self._active_bytes + batch.size_bytes <= self._limits.in_flight_bytes
        return self._active == 0 or (self._active < self._concurrency.limit and fits)

    def _send(self, batch: Batch) -> None:
        if not batch.payloads:
            batch.outcome = np.empty((0, self._embedding_size), np.float32)
            return
        endpoint = self._endpoints.pick(avoid=batch.endpoint, never=batch.refused_by)
        if endpoint is None:
            now = time.monotonic()
            if batch.refusal is not None and now - batch.failed_at > _GRACE * self._retry.deadline_s:
                batch.end(batch.refusal)
            else:
                self._resend_at(now + _POLL_S if self._endpoints.inside() else now, batch)
            return
        self._launch(batch, endpoint)

    def _launch(self, batch: Batch, endpoint: Endpoint) -> None:
        """Sends a batch to a server that counts it as under way already."""
        batch.endpoint, batch.sent_at = endpoint, time.monotonic()
        with unbroken():
            try:
                batch.call = endpoint.transport.send(
                    self._model, self._version, self._tensors, batch.payloads, self._callback(batch)
                )
            except BaseException:
                self._endpoints.ended(endpoint, answered=False)
                raise
            self._sent += 1
            self._active += 1
            self._active_bytes += batch.size_bytes

    def _try_suspect(self) -> None:
        """Sends the next of what was under way as a server died, if it may be sent."""
        if self._quarantine and (trial := self._quarantine.next()) is not None:
            self._launch(*trial)

    def _callback(self, batch: Batch) -> Callable[[Any, Any], None]:
        endpoint, rows = batch.endpoint, len(batch.payloads)

        def done(result: Any, error: Any) -> None:
            # Here, since nobody reads the answers of a run that was left.
            if endpoint is not None:
                self._endpoints.ended(endpoint, answered=error is None or _bad_rows(error, rows) is not None)
            self._answers.put((batch, result, error))

        return done

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._resend and self._resend[0][0] <= now and self._has_room(self._resend[0][2]):
            batch = heapq.heappop(self._resend)[2]
            if self._endpoints.inside() or self._is_back(batch):
                self._send(batch)

    def _is_back(self, batch: Batch) -> bool:
        """Whether a server is there again with the same model; if not, `batch` waits on or has its outcome."""
        try:
            self._endpoints.revive()
        except (CnclipError, RuntimeError) as error:
            if isinstance(error, PASSING) and batch.may_retry(self._retry):
                self._endpoints.waits(error, batch.failed_at)
                self._resend_at(time.monotonic() + self._retry.delay_s(batch.attempts), batch)
            else:
                batch.end(batch.refusal or error)
            return False
        return True

    def _take_answers(self, *, wait: bool) -> None:
        """Deals with the answers that have come; with `wait`, first waits for one or for the next resend."""
        try:
            if wait:
                timeout_s: float | None = None
                # Where there is no room for it, only an answer makes room.
                if self._resend and self._has_room(self._resend[0][2]):
                    timeout_s = max(self._resend[0][0] - time.monotonic(), 0.0)
                if self._quarantine or self._endpoints.are_kept():
                    timeout_s = _POLL_S if timeout_s is None else min(timeout_s, _POLL_S)
                self._dealt(*self._answers.get(timeout=timeout_s))
            while True:
                self._dealt(*self._answers.get_nowait())
        except queue.Empty:
            return

    def _dealt(self, batch: Batch, result: Any, error: Any) -> None:
        under_way = self._active
        self._active -= 1
        self._active_bytes -= batch.size_bytes
        batch.call = None
        if self._quarantine.ended(batch):
            if error is not None and _bad_rows(error, 1) is None:
                self._note_failure(batch, error)
            return
        if error is None:
            if self._quarantine:
                self._concurrency.disturbed()
            else:
                self._concurrency.answered(len(batch.payloads), under_way)
            self._answered(batch, result)
        else:
            self._refused(batch, error)
        if batch.outcome is not None:
            batch.payloads = []
            if batch.whole is not None:
                batch.whole.put_together()
        self._quarantine.settle()

    def _answered(self, batch: Batch, result: Any) -> None:
        try:
            features = features_output(result, self._tensors.output, len(batch.payloads), self._embedding_size)
        except ValueError as problem:
            outcome = ServerError(
                f"{self._model}: its answer is not what its config promises: {problem}; build it anew",
                model=self._model,
                status="OK",
                detail=str(problem),
            )
            outcome.__cause__ = problem
            self._endpoints.leave_out(batch.server, outcome)
            self._send_elsewhere(batch, outcome)
            return
        # In half precision an encoder's numbers may overflow: nothing can be compared with such a feature.
        finite = np.isfinite(features)
        if not finite.all():
            usable = finite.all(axis=1)
            batch.take_out(dict.fromkeys(np.flatnonzero(~usable).tolist(), "its feature holds NaN or infinity"))
            features = features[usable]
        batch.outcome = features

    def _refused(self, batch: Batch, error: Any) -> None:
        rows = _bad_rows(error, len(batch.payloads))
        if rows is not None:
            # Each round takes out at least one row, so this ends.
            batch.take_out(rows)
            self._resend_at(time.monotonic(), batch)
            return
        try:
            outcome = self._note_failure(batch, error)
        except RuntimeError as closed:
            batch.end(closed)
            return
        endpoint = batch.server
        if not is_transient(error):
            self._send_elsewhere(batch, outcome)
        elif not batch.may_retry(self._retry, for_ever=is_death(error)):
            batch.end(outcome)
        elif is_death(error):
            _log.info("%s died with a request of %d rows (%s)", endpoint.transport.url, len(batch.payloads), error)
            self._quarantine.add(batch, endpoint, outcome, certain=is_model_death(error), cut_off=is_cut_off(error))
        else:
            delay_s = 0.0 if self._endpoints.has_other({endpoint}) else self._retry.delay_s(batch.attempts)
            _log.info("request of %d rows failed (%s); again in %.1f s", len(batch.payloads), error, delay_s)
            self._resend_at(time.monotonic() + delay_s, batch)

    def _note_failure(self, batch: Batch, error: Any) -> CnclipError:
        """Tells all who choose among servers of a failure, and returns it as this package's error.

        Raises:
            RuntimeError: The client was closed.
        """
        endpoint = batch.server
        outcome = endpoint.transport.map(error, self._model)
        outcome.__cause__ = error
        if is_queue_full(error):
            self._endpoints.busy(endpoint)
        else:
            self._endpoints.leave_out(endpoint, outcome)
        if is_crowded(error) and not self._endpoints.has_other({endpoint}):
            self._concurrency.overloaded(batch.sent_at)
        else:
            self._concurrency.disturbed()
        return outcome

    def _send_elsewhere(self, batch: Batch, outcome: Exception) -> None:
        """Has another server try what one failed for good, each of them once.

        A GPU without memory is one server's trouble. What was late at one may be in time at another, while at the same
        one it would only add to the load.
        """
        batch.refused_by.add(batch.server)
        batch.refusal = batch.refusal or outcome
        if self._endpoints.is_any_left(batch.refused_by) and batch.may_retry(self._retry):
            self._resend_at(time.monotonic(), batch)
        else:
            batch.end(batch.refusal)

    def _resend_at(self, moment: float, batch: Batch) -> None:
        if not self._quarantine.put_back(batch, moment):
            heapq.heappush(self._resend, (moment, next(self._ticket), batch))


def _bad_rows(error: Any, rows: int) -> dict[int, str] | None:
    """Returns the rows that a refusal blames, and why; None if it is no such refusal."""
    return bad_rows(error.message() or "", rows) if status_of(error) == "INVALID_ARGUMENT" else None
