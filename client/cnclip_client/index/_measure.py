"""How good an index is: the same queries asked of it and of exact search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client.index._faiss import EXTRA, Searcher
from cnclip_client.retrieval._topk import Best

__all__ = ["Check", "Measured", "measure"]

_AT = 10
_ROUNDS = 3
_EF = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_RESCORED = (20, 50, 100, 200, 400)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an index was found to be worth.

    Attributes:
        recall_at_10: Share of the exact search's best 10 that it finds, of queries that it was not tuned on.
        queries: How many those were.
        asked: What they are: rows of the index, or features that were given.
        milliseconds: A query, many asked at once.
        exact_milliseconds: A query in exact search, likewise.
        parameters: What it was tuned to.
        reached: Whether the recall that was asked for was reached by that, on the queries that it was tuned on.
        threads: How many faiss had.
    """

    recall_at_10: float
    queries: int
    asked: str
    milliseconds: float
    exact_milliseconds: float
    parameters: str
    reached: bool
    threads: int


@dataclass(slots=True, eq=False)
class Check:
    """Queries, and what exact search finds for them among all rows so far.

    Attributes:
        own: int64 [n], the row of the index that the query is, which is not counted as found; -1 if it is none.
        best: The exact best.
        exact_seconds: What finding them took.
    """

    own: NDArray[np.int64]
    best: Best
    exact_seconds: float = 0.0

    @classmethod
    def of(cls, queries: NDArray[np.float32], own: NDArray[np.int64] | None = None) -> Check:
        """Begins with queries, float32 [n, D]."""
        rows = np.full(len(queries), -1, np.int64) if own is None else own
        return cls(rows, Best.none(np.ascontiguousarray(queries), _AT + 1))

    @classmethod
    def read(cls, path: Path, fix: str) -> Check:
        """Reads one that was written. Raises BadFile, OSError."""
        try:
            with np.load(path, allow_pickle=False) as held:
                best = Best(held["queries"], held["scores"], held["rows"])
                check = cls(held["own"], best, float(held["exact_seconds"]))
                sound = (
                    len(best.queries) == len(best.scores) == len(best.rows) == len(check.own) and best.queries.ndim == 2
                )
        except OSError:
            raise
        # Of a damaged archive numpy and zipfile raise ValueError, BadZipFile, KeyError, EOFError, ...
        except Exception as error:
            raise BadFile(f"not the queries that an index was measured with; {fix}", path=str(path)) from error
        if not sound:
            raise BadFile(f"not the queries that an index was measured with; {fix}", path=str(path))
        return check

    def write(self, path: Path) -> None:
        """Writes it, so that rows that come later can be taken in. Raises OSError."""
        best = self.best
        with path.open("wb") as file:
            np.savez(
                file,
                queries=best.queries,
                scores=best.scores,
                rows=best.rows,
                own=self.own,
                exact_seconds=np.float64(self.exact_seconds),
            )

    def add(self, rows: NDArray[np.float32], first: int) -> None:
        """Takes in the next rows, float32 [m, D], of which the first has the number `first`."""
        began = time.perf_counter()
        self.best.update(rows, first)
        self.exact_seconds += time.perf_counter() - began

    def recall(self, found: NDArray[np.int64], queries: slice) -> NDArray[np.float64]:
        """Returns float64 [n], the share of the exact best 10 among what was found for each of some queries."""
        pairs = zip(found, self.best.rows[queries], self.own[queries], strict=True)
        return np.array([_share(_others(rows, own), _others(right, own)) for rows, right, own in pairs])


def _others(rows: NDArray[np.int64], own: int) -> list[int]:
    return [row for row in rows.tolist() if row not in (own, -1)][:_AT]


def _share(found: list[int], right: list[int]) -> float:
    return len(set(found) & set(right)) / len(right) if right else 1.0


def measure(searcher: Searcher, check: Check, target: float) -> Measured:
    """Turns an index until its recall is good enough, and tells what that comes to.

    It is tuned on half of the queries, to where the target is met less two standard errors, and measured on the others.
    """
    queries = check.best.queries
    tuned, measured = (slice(0, None, 2), slice(1, None, 2)) if len(queries) > 1 else (slice(0, 1), slice(0, 1))
    given = bool((check.own < 0).all())
    # A row of the index finds itself, and then 10 others.
    k = _AT if given else _AT + 1

    def good(parameters: str) -> bool:
        searcher.turn(parameters)
        shares = check.recall(searcher.search(queries[tuned], k)[1], tuned)
        return float(shares.mean() - 2 * shares.std() / len(shares) ** 0.5) >= target

    tuned_to = _tuned(searcher, good)
    reached = good(tuned_to)
    asked = queries[measured]
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        found = searcher.search(asked, k)[1]
        seconds.append(time.perf_counter() - began)
    return Measured(
        recall_at_10=float(check.recall(found, measured).mean()),
        queries=len(asked),
        asked="given queries" if given else "rows of its own",
        milliseconds=1000 * sorted(seconds)[_ROUNDS // 2] / len(asked),
        exact_milliseconds=1000 * check.exact_seconds / len(queries),
        parameters=tuned_to,
        reached=reached,
        threads=_threads(),
    )


def _tuned(searcher: Searcher, good: Callable[[str], bool]) -> str:
    """Returns the least effort that is good enough, or the most there is."""
    efforts = _efforts(searcher)
    most = searcher.rescoring(_RESCORED[-1])
    effort = next((one for one in efforts if good(_joined(one, most))), efforts[-1])
    if not most:
        return effort
    # The effort was chosen with the most proposals scored anew; fewer may do.
    every = [_joined(effort, searcher.rescoring(one)) for one in _RESCORED]
    return next((one for one in every[:-1] if good(one)), every[-1])


def _joined(*parameters: str) -> str:
    return ",".join(filter(None, parameters))


def _efforts(searcher: Searcher) -> list[str]:
    if searcher.turned == "efSearch":
        return [f"efSearch={one}" for one in _EF]
    if searcher.turned == "nprobe":
        return [f"nprobe={one}" for one in _probes(searcher.clusters)]
    return [""]


def _probes(clusters: int) -> Iterator[int]:
    """Yields 1, 2, 3, 4, 6, 8, ... up to a quarter of the clusters: past it, exact search is as fast."""
    one = 1
    while one <= max(1, clusters // 4):
        yield one
        if one > 1 and one + one // 2 <= clusters // 4:
            yield one + one // 2
        one *= 2


def _threads() -> int:
    return int(require("faiss", extra=EXTRA).omp_get_max_threads())
