"""Finds the item that kills a server, among all that were under way as it died.

Whatever kills a server would kill it again when it is sent again, and every other server in turn, and each time all
that is under way there with it. So what was under way is suspect, and goes back to the server that died, since another
would die of it too: one request at a time, with nothing else of this client's at that server. What dies again is taken
apart into its items, and the item that dies so twice is to blame: it fails, and all others have lost nothing but time.

An item must not be blamed for what another did:

- A server that dies of everything, or is dead already, is not the item's fault: before an item is tried, the server
  has to answer harmless ones, several, as one of a model's processes may be dead and another alive.
- Other clients lost the same server at the same moment, and one of them has the item. All would try at the same moment
  when the server is back; so each waits for a moment of its own first.
- A connection that breaks is not a process that dies. If the server is back at once it takes more of them. If each
  was silent for long before it broke, it was cut off by what stands between: that ends the run, and blames no item.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import numpy as np

from cnclip_client._connection.endpoint import Endpoint
from cnclip_client._connection.endpoints import Endpoints
from cnclip_client._exceptions import ServerUnreachable
from cnclip_client._flow.batches import Batch

__all__ = ["Quarantine"]

_log = logging.getLogger(__name__)

# What counts against an item: a server's death in its trial, and a connection that broke and is back at once. Two
# deaths make it guilty, or five breaks. (A connection that breaks every 150 ms hits an innocent trial of 5 ms five
# times in a row once in some ten million.)
_DEATH, _BREAK, _GUILTY = 5, 2, 10
# How many harmless requests must be answered before a request of many items is tried, and before one of a single item,
# which may be blamed: where one of a model's two processes is dead, eight in a row are answered once in 256 times.
_PROOFS, _PROOFS_FOR_ONE = 1, 8
# Seconds of silence after which proxies cut connections off; what kills a server does so sooner.
_SILENCE_S = 10.0


@dataclass(slots=True, eq=False)
class _Suspect:
    """A batch that was under way at a server that died.

    Attributes:
        batch: It.
        problem: How that looked.
        since: `time.monotonic()` of when it became suspect.
        places: The servers that died while they had it.
        points: What its trials have come to.
        pending: The server whose connection broke in its last trial, until it is seen whether that has died.
        silence_s: How long the shortest of its trials took, in seconds; 0 once one was a death, or was told.
    """

    batch: Batch
    problem: Exception
    since: float
    places: set[Endpoint] = field(default_factory=set)
    points: int = 0
    pending: Endpoint | None = None
    silence_s: float = math.inf


class Quarantine:
    """What is suspect in one run. For one thread."""

    def __init__(
        self, endpoints: Endpoints, harmless: Callable[[], bytes], embedding_size: int, grace_s: float
    ) -> None:
        """Prepares it.

        Args:
            endpoints: The servers.
            harmless: Gives an item that kills nothing, another one each time.
            embedding_size: D.
            grace_s: How long a server that died is waited for before what has not killed alone is tried at another.
        """
        self._endpoints = endpoints
        self._retry = endpoints.retry
        self._harmless = harmless
        self._no_features = np.empty((0, embedding_size), np.float32)
        self._grace_s = grace_s
        self._suspects: deque[_Suspect] = deque()
        self._tried: _Suspect | None = None
        self._under_way: Batch | None = None
        self._places: set[Endpoint] = set()
        self._seen_marks: dict[Endpoint, int] = {}
        self._not_before = 0.0
        # How often, and since when, nobody was there to try anything; and when to count it again.
        self._waits, self._waiting_since, self._wait_until = 0, 0.0, 0.0

    def __len__(self) -> int:
        """How many are suspect."""
        return len(self._suspects) + (self._tried is not None)

    def close(self) -> None:
        """Cancels what is under way, and lets the servers go."""
        if self._under_way is not None and self._under_way.call is not None:
            self._under_way.call.cancel()
        self._let_go()

    def add(self, batch: Batch, endpoint: Endpoint, problem: Exception, *, certain: bool, cut_off: bool) -> None:
        """Takes in what a server had as it died.

        Args:
            batch: What it had.
            endpoint: The server.
            problem: How it looked.
            certain: Whether it is known to be a death, not just a connection's end.
            cut_off: Whether what stands between may have ended the connection.
        """
        self._keep(endpoint)
        suspect, self._tried = self._tried, None
        if suspect is None or suspect.batch is not batch:
            self._tried = suspect
            self._suspects.append(_Suspect(batch, problem, time.monotonic(), {endpoint}))
            return
        suspect.places.add(endpoint)
        suspect.problem = problem
        if len(batch.payloads) == 1:
            suspect.points += _DEATH if certain else 0
            suspect.pending = None if certain else endpoint
            suspect.silence_s = min(suspect.silence_s, time.monotonic() - batch.sent_at) if cut_off else 0.0
            # The others first: they may be done, and no clients' trials of one item meet again and again.
            self._suspects.append(suspect)
            return
        _log.warning(
            "%s died with a request of %d items alone; trying each", endpoint.transport.url, len(batch.payloads)
        )
        for part in batch.take_apart():
            self._suspects.append(_Suspect(part, problem, suspect.since, set(suspect.places)))

    def next(self) -> tuple[Batch, Endpoint] | None:
        """Returns what is to be sent now, and where, counted as under way there; None if that is nothing.

        Suspects may have an outcome afterwards: they were found guilty, or there was no server for too long.

        Raises:
            ModelChanged: A server that was left out serves another model now.
        """
        for place in self._places:
            self._endpoints.keep(place)
        while self._suspects and self._under_way is None:
            suspect = self._suspects[0]
            self._judge(suspect)
            if suspect.batch.outcome is not None:
                self._suspects.popleft()
                if suspect.batch.whole is not None:
                    suspect.batch.whole.put_together()
                continue
            if time.monotonic() < self._not_before:
                return None
            places = self._places_for(suspect)
            endpoint = self._endpoints.take_alone(places)
            if endpoint is not None:
                return self._trial(suspect, endpoint)
            if places or not self._give_up():
                return None
        self._let_go_if_done()
        return None

    def ended(self, batch: Batch) -> bool:
        """Takes note that something has come back; tells whether it was a harmless one, which is nobody's."""
        if batch is not self._under_way:
            return False
        self._under_way = None
        return self._tried is None

    def put_back(self, batch: Batch, moment: float) -> bool:
        """Takes back what was tried and is to be sent again from a moment on; tells whether it was."""
        suspect = self._tried
        if suspect is None or suspect.batch is not batch:
            return False
        self._tried = None
        self._suspects.appendleft(suspect)
        self._not_before = moment
        return True

    def settle(self) -> None:
        """Takes note that what came back has been dealt with."""
        if self._under_way is None:
            self._tried = None
        self._let_go_if_done()

    def _trial(self, suspect: _Suspect, endpoint: Endpoint) -> tuple[Batch, Endpoint] | None:
        single = len(suspect.batch.payloads) == 1
        if single and self._seen_marks.get(endpoint) != endpoint.marks:
            self._seen_marks[endpoint] = endpoint.marks
            self._not_before = time.monotonic() + random.uniform(0, self._retry.max_delay_s / 2)  # noqa: S311
            self._endpoints.ended(endpoint, answered=False)
            return None
        if endpoint.proofs < (_PROOFS_FOR_ONE if single else _PROOFS):
            payload = self._harmless()
            self._under_way = Batch(0, 1, [0], [payload], size_bytes=len(payload))
        else:
            self._waits = 0
            self._suspects.popleft()
            self._tried, self._under_way = suspect, suspect.batch
        return self._under_way, endpoint

    def _places_for(self, suspect: _Suspect) -> Collection[Endpoint]:
        """Returns the servers at which a suspect may be tried."""
        refused_by = suspect.batch.refused_by
        inside = [endpoint for endpoint in self._endpoints.inside() if endpoint not in refused_by]
        where_it_died = [endpoint for endpoint in inside if endpoint in suspect.places]
        killed_alone = suspect.points or suspect.pending or len(suspect.places) > 1 or suspect.batch.whole
        waited = time.monotonic() - suspect.since >= self._grace_s
        out_of_patience = suspect.batch.attempts + self._waits >= self._retry.attempts
        if where_it_died or killed_alone or not inside or not (waited or out_of_patience):
            return where_it_died
        # One at which others of this run are tried already, or else one more.
        places = [endpoint for endpoint in inside if endpoint in self._places] or inside[:1]
        self._keep(places[0])
        return places

    def _judge(self, suspect: _Suspect) -> None:
        """Counts a broken connection, once it is known what it was, and blames the guilty."""
        if suspect.pending is not None and not suspect.pending.out:
            if suspect.pending.probes <= 1:
                suspect.points += _BREAK
            else:
                suspect.points, suspect.silence_s = suspect.points + _DEATH, 0.0
            suspect.pending = None
        batch = suspect.batch
        if suspect.points >= _GUILTY:
            where = ", ".join(sorted(endpoint.transport.url for endpoint in suspect.places))
            if suspect.silence_s > _SILENCE_S:
                batch.end(_cut_off(where, suspect.silence_s))
                return
            _log.warning("item %d killed %s again and again, alone there; it fails", batch.indices[0], where)
            batch.take_out({0: "kills the server, which died of it again and again; see the server's log"})
        if not batch.payloads and batch.outcome is None:
            batch.outcome = self._no_features

    def _give_up(self) -> bool:
        """Tells whether no server has been there for as long as `Retry` allows; if so, suspects have their outcome."""
        now = time.monotonic()
        if self._waits == 0:
            self._waiting_since = self._wait_until = now
        if now < self._wait_until:
            return False
        self._waits += 1
        self._wait_until = now + self._retry.delay_s(self._waits)
        self._endpoints.waits(self._suspects[0].problem, self._waiting_since)
        late = now - self._waiting_since > self._retry.deadline_s
        for suspect in self._suspects:
            if late or suspect.batch.attempts + self._waits > self._retry.attempts:
                suspect.batch.outcome = suspect.problem
        return self._suspects[0].batch.outcome is not None

    def _keep(self, endpoint: Endpoint) -> None:
        self._places.add(endpoint)
        self._endpoints.keep(endpoint)

    def _let_go_if_done(self) -> None:
        if not self:
            self._let_go()

    def _let_go(self) -> None:
        for endpoint in self._places:
            self._endpoints.let_go(endpoint)
        self._places = set()


def _cut_off(where: str, silence_s: float) -> ServerUnreachable:
    return ServerUnreachable(
        f"the connection to {where} broke again and again as an answer was awaited for {silence_s:.0f} s; raise the "
        "timeouts of the proxy between above Timeout.request_s (--request-timeout; haproxy: timeout client, timeout "
        "server), or see the server's log for one that dies",
        url=where,
    )
