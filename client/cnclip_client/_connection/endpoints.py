"""Several servers of one model: who gets the next request, who is left out, and who is taken back.

A request goes to the server with the fewest under way. One that fails is left out, and asked now and then whether it
serves the same model as before; once it says so it is taken back, with a single request at first. None but another
model ends a run: any other trouble is that server's alone, until there is no other. One that died is kept for a while
for what it had under way, see `_flow.quarantine`.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from cnclip_client._connection.endpoint import Endpoint, Urls, urls_of
from cnclip_client._connection.transport import Transport, is_worth_asking_again
from cnclip_client._credentials import Credentials
from cnclip_client._exceptions import (
    CnclipError,
    ModelChanged,
    ModelNotFound,
    ModelNotReady,
    RequestTimeout,
    ServerBusy,
    ServerUnreachable,
)
from cnclip_client._settings import Retry, Timeout

__all__ = ["PASSING", "Endpoints", "told_of_waiting"]

_log = logging.getLogger(__name__)

# How long a server is kept for what must be alone there, unless that is asked for again.
_KEEP_S = 1.0
# For so long nothing is said of waiting for a server: a reload takes less.
_QUIET_S = 5.0
_T = TypeVar("_T")

# Not TlsFailed: no waiting mends a certificate.
_NO_ANSWER = (ServerUnreachable, ServerBusy, RequestTimeout)
PASSING = (*_NO_ANSWER, ModelNotFound, ModelNotReady)
"""What a question meets while a server restarts or reloads."""


class Endpoints:
    """The servers of one client. Threads may share it.

    Attributes:
        retry: How long to wait between two questions to a server that is left out.
        check: Asks a server whether it serves the same model, and raises if not; there is nothing to ask at first.
    """

    def __init__(
        self, urls: Urls, timeout: Timeout | None, retry: Retry | None, credentials: Credentials | None
    ) -> None:
        """Prepares the connections; nothing is sent yet. Raises as `Transport` does."""
        self.retry = retry or Retry()
        self.check: Callable[[Transport], None] = lambda transport: None
        transports = [Transport(url, timeout, self.retry, credentials) for url in urls_of(urls)]
        self._all = [Endpoint(transport) for transport in transports]
        self._changed = threading.Condition()
        self._waiting_told = False

    def __len__(self) -> int:
        return len(self._all)

    def __str__(self) -> str:
        return ",".join(endpoint.transport.url for endpoint in self._all)

    def close(self) -> None:
        """Closes all connections."""
        for endpoint in self._all:
            endpoint.transport.close()

    def require_open(self) -> None:
        """Raises RuntimeError if the client was closed."""
        self._all[0].transport.require_open()

    def inside(self) -> list[Endpoint]:
        """Returns those that are not left out."""
        return [endpoint for endpoint in self._all if not endpoint.out]

    def has_other(self, than: Collection[Endpoint]) -> bool:
        """Tells whether another one than these takes requests now."""
        now = time.monotonic()
        others = (endpoint for endpoint in self.inside() if endpoint not in than and not endpoint.is_kept())
        return any(endpoint.busy_until <= now for endpoint in others)

    def is_any_left(self, of: Collection[Endpoint]) -> bool:
        """Tells whether there is another one than these, be it left out at present."""
        return any(endpoint not in of for endpoint in self._all)

    def are_kept(self) -> bool:
        """Tells whether those that are not left out are all kept for what must be alone there."""
        inside = self.inside()
        return bool(inside) and all(endpoint.is_kept() for endpoint in inside)

    def ask(self, question: Callable[[Transport], _T]) -> _T:
        """Puts a question to one after the other until one answers; if none does, again as `Retry` says.

        Raises:
            CnclipError: None answered; what was wrong with the first.
        """
        started, told = time.monotonic(), False
        for rounds in itertools.count(1):
            problems: list[CnclipError] = []
            connecting = not any(endpoint.transport.answered for endpoint in self._all)
            for endpoint in sorted(self._all, key=lambda endpoint: endpoint.out):
                try:
                    return question(endpoint.transport)
                except CnclipError as error:
                    problems.append(error)
            allowed = self.retry.connect_attempts if connecting else self.retry.attempts
            elapsed_s = time.monotonic() - started
            late = elapsed_s > self.retry.deadline_s
            if not any(map(is_worth_asking_again, problems)) or rounds >= allowed or late:
                coming = next(filter(_may_come, problems), None)
                if coming is None or elapsed_s > self.retry.start_s:
                    raise problems[0]
                if not told:
                    _log.warning("%s; waiting for it, for %g s at most", coming, self.retry.start_s)
                told = True
            delay_s = self.retry.delay_s(rounds)
            _log.info("%s; trying again in %.1f s", problems[0], delay_s)
            time.sleep(delay_s)
        raise AssertionError("unreachable")

    def recheck(self) -> None:
        """Puts `check` to all at once, and leaves out those that cannot be had.

        Raises:
            ModelChanged: One serves another model than the others.
            CnclipError: None could be had.
        """
        if len(self._all) == 1:
            return  # it is the one that was asked first
        with self._changed:
            for endpoint in self._all:
                endpoint.out, endpoint.on_trial = True, False
                endpoint.marks += 1
                self._probe(endpoint)
            self._changed.wait_for(lambda: not any(endpoint.probing for endpoint in self._all))
            for endpoint in self._all:
                endpoint.on_trial = False
            self._raise_changed()
            if not self.inside():
                raise self._worst()

    def pick(self, avoid: Endpoint | None = None, never: Collection[Endpoint] = ()) -> Endpoint | None:
        """Returns the one with the least to do, with one request more under way, or None if there is none.

        Args:
            avoid: One that has just failed this request; taken only if there is no other.
            never: Those that refused this request.

        Raises:
            ModelChanged: One that was left out serves another model now.
        """
        now = time.monotonic()
        with self._changed:
            self._probe_due()
            inside = [endpoint for endpoint in self.inside() if not endpoint.is_kept() and endpoint not in never]
            ready = [endpoint for endpoint in inside if not (endpoint.on_trial and endpoint.under_way)]
            if not inside:
                return None
            self._raise_changed()
            chosen = min(
                ready or inside, key=lambda endpoint: (endpoint is avoid, endpoint.busy_until > now, endpoint.under_way)
            )
            chosen.under_way += 1
            return chosen

    def keep(self, endpoint: Endpoint) -> None:
        """Lets nothing be sent to one for a while but what asks for it with `take_alone`."""
        # No longer, since the run that wants it may be left at any moment.
        endpoint.kept_until = time.monotonic() + _KEEP_S

    def let_go(self, endpoint: Endpoint) -> None:
        """Ends that while. Another run that keeps it as well says so again in a moment."""
        endpoint.kept_until = 0.0

    def take_alone(self, among: Collection[Endpoint]) -> Endpoint | None:
        """Returns one of these that has nothing to do, or None; its one request is under way, and stays the only one.

        Raises:
            ModelChanged: One that was left out serves another model now.
        """
        with self._changed:
            self._probe_due()
            self._raise_changed()
            free = (endpoint for endpoint in self.inside() if endpoint in among and not endpoint.under_way)
            chosen = next(free, None)
            if chosen is not None:
                chosen.under_way, chosen.alone = 1, True
            return chosen

    def ended(self, endpoint: Endpoint, *, answered: bool) -> None:
        """Takes note of the end of a request that `pick` or `take_alone` gave."""
        with self._changed:
            endpoint.under_way -= 1
            endpoint.alone = False
            if answered:
                if self._waiting_told:
                    _log.warning("%s answers again", endpoint.transport.url)
                self._waiting_told = False
            if answered and not endpoint.out:
                endpoint.failures, endpoint.on_trial = 0, False
                endpoint.proofs += 1

    def busy(self, endpoint: Endpoint) -> None:
        """Takes note of a full queue: others come first for a moment."""
        with self._changed:
            endpoint.failures += 1
            endpoint.busy_until = time.monotonic() + self.retry.delay_s(endpoint.failures)

    def leave_out(self, endpoint: Endpoint, problem: Exception) -> None:
        """Leaves one out until it passes `check`."""
        with self._changed:
            endpoint.marks += 1
            if not endpoint.out:
                self._tell(endpoint, problem)
                endpoint.out, endpoint.on_trial = True, False
                endpoint.proofs = endpoint.probes = 0
                self._probe_later(endpoint, problem)

    def revive(self) -> None:
        """Puts `check` to those that are left out, and waits until one passes.

        Raises:
            CnclipError: None does: that it serves another model, or what was wrong with the first.
            RuntimeError: The client was closed.
        """
        with self._changed:
            for endpoint in self._all:
                self._probe(endpoint)
            self._changed.wait_for(lambda: self.inside() or not any(endpoint.probing for endpoint in self._all))
            self._raise_changed()
            if not self.inside():
                raise self._worst()

    def waits(self, problem: Exception, since: float) -> None:
        """Takes note that a request waits since a moment, and why; where no server is left that is told."""
        with self._changed:
            if not self._waiting_told and not self.inside():
                self._waiting_told = told_of_waiting(problem, since, self.retry)

    def _probe_later(self, endpoint: Endpoint, problem: Exception) -> None:
        endpoint.problem = problem
        endpoint.failures += 1
        endpoint.probe_at = time.monotonic() + self.retry.delay_s(endpoint.failures)

    def _raise_changed(self) -> None:
        for endpoint in self._all:
            if endpoint.out and isinstance(endpoint.problem, ModelChanged):
                raise endpoint.problem

    def _worst(self) -> Exception:
        """Returns what to say where all are left out: rather what may pass than what will not."""
        problems = [endpoint.problem for endpoint in self._all if endpoint.problem is not None]
        return next((problem for problem in problems if isinstance(problem, PASSING)), problems[0])

    def _probe_due(self) -> None:
        now = time.monotonic()
        for endpoint in self._all:
            if endpoint.probe_at <= now:
                self._probe(endpoint)

    def _probe(self, endpoint: Endpoint) -> None:
        if endpoint.out and not endpoint.probing:
            endpoint.probing = True
            endpoint.probes += 1
            # A thread, since an address where nobody answers takes seconds; a daemon, since nobody waits for it.
            threading.Thread(target=self._ask_back, args=(endpoint,), daemon=True).start()

    def _ask_back(self, endpoint: Endpoint) -> None:
        while True:
            marks, problem = endpoint.marks, None
            try:
                self.check(endpoint.transport)
            except Exception as error:
                problem = error
            with self._changed:
                if problem is None and endpoint.marks != marks:
                    continue  # it has failed again meanwhile
                endpoint.probing = False
                if problem is None:
                    _log.info("%s is there", endpoint.transport.url)
                    endpoint.out, endpoint.on_trial, endpoint.problem = False, True, None
                else:
                    self._tell(endpoint, problem)
                    self._probe_later(endpoint, problem)
                self._changed.notify_all()
                return

    def _tell(self, endpoint: Endpoint, problem: Exception) -> None:
        """Logs why one is left out, once."""
        if endpoint.problem is None and len(self._all) > 1:
            _log.warning("%s is left out for now: %s", endpoint.transport.url, problem)


def told_of_waiting(problem: Exception, since: float, retry: Retry) -> bool:
    """Logs that a server is waited for, past a moment, and tells whether it did: a run seems to hang."""
    told = time.monotonic() - since > _QUIET_S
    if told:
        _log.warning("%s; waiting for it, for %g s at most", problem, retry.deadline_s)
    return told


def _may_come(error: CnclipError) -> bool:
    """Tells whether what failed so at the start may be a server that starts yet, or a model that loads yet."""
    if isinstance(error, ModelNotReady):
        return not error.failed
    return isinstance(error, _NO_ANSWER)
