"""Ids, as arrays hold them and as files do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile

__all__ = ["id_array", "id_line", "ids_of", "join_ids", "require_id"]


# Made once: json.dumps would make one for each call, which takes 3 microseconds.
_json = json.JSONEncoder(ensure_ascii=False).encode


def id_array(ids: list[Any]) -> NDArray[Any]:
    """Returns ids as `Features` holds them: int64 where they all are integers that fit, else object."""
    if all(type(one) is int for one in ids):
        try:
            return np.array(ids, dtype=np.int64)
        except OverflowError:
            pass
    held = np.empty(len(ids), dtype=object)
    held[:] = ids
    return held


def join_ids(ids: list[NDArray[Any]]) -> NDArray[Any]:
    """Returns several blocks' ids as one array: int64 if each of them is, else object with Python's own integers."""
    if all(part.dtype == np.int64 for part in ids):
        return np.concatenate(ids) if ids else np.empty(0, np.int64)
    return id_array([one for part in ids for one in part.tolist()])


def id_line(one: Any) -> bytes:
    """Returns an id, or what else is plain, as JSON, UTF-8; only the bytes of a path that are no UTF-8 are escaped."""
    try:
        return (repr(one) if type(one) is int else _json(one)).encode()
    except UnicodeEncodeError:
        return json.dumps(one).encode()


def ids_of(lines: list[bytes]) -> list[Any]:
    """Returns what lines of JSON hold, a value each, at a tenth of what it takes to parse them one by one.

    Raises:
        ValueError: Some are no such lines; or they are more or fewer values than lines.
        RecursionError: One is nested too deeply.
    """
    found: list[Any] = json.loads(b"[%b]" % b",".join(lines))
    if len(found) != len(lines):
        raise ValueError(f"{len(found)} values in {len(lines)} lines")
    return found


def require_id(path: Path, where: str, one: object) -> None:
    """Raises BadFile, which tells where in which file it is, if one is no id."""
    if not isinstance(one, int | str) or isinstance(one, bool):
        raise BadFile(f"{where}: the id {one!r} is neither an integer nor a string", path=str(path))
