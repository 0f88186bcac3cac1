"""Which of faiss's kinds an index is made of, by the number of rows and the memory there is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["Plan", "parse_bytes", "plan", "plan_of_factory", "require_room"]

_MIB = 1024 * 1024
# Up to here exact search takes no longer than looking for a way round it.
_EXACT_ROWS = 10_000
# Python, numpy, pyarrow and faiss, and blocks of features as they pass.
_BASE_BYTES = 400 * _MIB
# Ids and their order, while it is seen that none comes twice.
_ID_BYTES = 16
# HNSW32: 64 links of 4 bytes below, 32 above for a row in 32, and where they begin.
_LINK_BYTES = 66 * 4 + 12
# faiss's lists of clusters grow by doubling: at the end, they were seen to hold so many times the bytes in use.
_GROWTH = 1.5
# The sample of features, and what faiss makes of it.
_TRAINING = 1.25
_CLUSTER_ROWS, _FEWEST_CLUSTER_ROWS = 64, 39  # faiss itself warns below 39
_MOST_CLUSTERS = 65_536
# Past it even the clusters are looked up by HNSW.
_CLUSTERS_IN_TURN = 8192
_SQ_ROWS = 65_536
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
# What keeps features as they are, so that there is nothing to score anew.
_LOSSLESS = re.compile(r"(IVF\d+(_HNSW\d+)?,)?Flat|HNSW\d+(,Flat)?|.*,R(efine\()?Flat\)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How an index is made.

    Attributes:
        factory: faiss's name of it.
        rescore: Whether features are kept beside it, as float16, to score anew what it proposes.
        train_rows: How many features it is trained on.
        build_bytes: What making it takes of memory; 0 where that is not known.
    """

    factory: str
    rescore: bool
    train_rows: int
    build_bytes: int


def plan(rows: int, size: int, memory_bytes: int, rescore: bool | None = None) -> Plan:
    """Chooses a kind: exact, HNSW or, where memory is short, IVF with PQ.

    Args:
        rows: How many features there are.
        size: D, their length.
        memory_bytes: What making the index, and searching it, may take.
        rescore: Whether features are kept beside it; by default where the index does not hold them whole.

    Raises:
        ValueError: The memory is too small for the smallest kind.
    """
    kinds = _kinds(rows, size, rescore is not False)
    for one in kinds:
        if one.build_bytes <= memory_bytes:
            return one
    least = min(kinds, key=lambda one: one.build_bytes)
    raise ValueError(
        f"{rows:,} features of {size} numbers take about {_mib(least.build_bytes)} MiB of memory as {least.factory}, "
        f"the smallest kind, and there are {_mib(memory_bytes)}; give --memory {_mib(least.build_bytes)}MiB, or index "
        "a part of them"
    )


def plan_of_factory(factory: str, rows: int, rescore: bool | None = None) -> Plan:
    """Returns how an index is made that the user names."""
    clusters = re.search(r"IVF(\d+)", factory)
    wanted = max(_SQ_ROWS, _CLUSTER_ROWS * int(clusters[1]) if clusters else 0)
    keep = _LOSSLESS.fullmatch(factory) is None if rescore is None else rescore
    return Plan(factory=factory, rescore=keep, train_rows=min(rows, wanted), build_bytes=0)


def require_room(rows: int, row_bytes: float, memory_bytes: int, factory: str) -> None:
    """Sees that an index that there is can be read and added to.

    Raises:
        ValueError: The memory is too small.
    """
    wanted = _BASE_BYTES + round((_GROWTH * row_bytes + _ID_BYTES) * rows)
    if wanted > memory_bytes:
        raise ValueError(
            f"adding to the index, {rows:,} rows of {factory}, takes about {_mib(wanted)} MiB of memory, and there are "
            f"{_mib(memory_bytes)}; give --memory {_mib(wanted)}MiB, or --overwrite it with a smaller kind"
        )


def _kinds(rows: int, size: int, rescore: bool) -> list[Plan]:
    """The kinds that there are for so many rows, the best first."""
    found = []
    if rows <= _EXACT_ROWS:
        found.append(_kind("Flat", rows, size, row_bytes=4 * size, train_rows=0))
    found.append(_kind("HNSW32,SQ8", rows, size, row_bytes=size + _LINK_BYTES, train_rows=_SQ_ROWS, rescore=rescore))
    if rows <= _EXACT_ROWS:
        return found
    most = min(2 ** round(math.log2(4 * rows**0.5)), _MOST_CLUSTERS)
    for numbers in (size // 2, size // 4, size // 8):
        if not numbers or size % numbers:
            continue
        # Fewer clusters find less in the same time, but are found in fewer features.
        for clusters in (most, most // 2, most // 4):
            lists = f"IVF{clusters}_HNSW32" if clusters > _CLUSTERS_IN_TURN else f"IVF{clusters}"
            found += [
                _kind(
                    f"{lists},PQ{numbers}x4fs",
                    rows,
                    size,
                    row_bytes=numbers / 2 + 8,
                    train_rows=a_cluster * clusters,
                    rescore=rescore,
                    growth=_GROWTH,
                    fixed=clusters * (4 * size + _LINK_BYTES),
                )
                for a_cluster in (_CLUSTER_ROWS, _FEWEST_CLUSTER_ROWS)
            ]
    return found


def _kind(
    factory: str,
    rows: int,
    size: int,
    *,
    row_bytes: float,
    train_rows: int,
    rescore: bool = False,
    growth: float = 1.0,
    fixed: int = 0,
) -> Plan:
    train_rows = min(rows, train_rows)
    training = round(_TRAINING * 4 * size * train_rows)
    filled = round(growth * row_bytes * rows) + fixed
    return Plan(
        factory=factory,
        rescore=rescore,
        train_rows=train_rows,
        build_bytes=_BASE_BYTES + _ID_BYTES * rows + max(training, filled),
    )


def parse_bytes(text: str) -> int:
    """Reads `4GiB`, `512M` or `4000000000`.

    Raises:
        ValueError: It is none of the kind.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise ValueError(f"{text!r} is no size of memory; give such as 4GiB or 512MiB")
    return round(float(found[1]) * _UNITS[found[2]])


def _mib(size: int) -> int:
    return -(-size // _MIB)
