"""A folder of an object store that finished parts are put into, each file whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import BadFile, CnclipError
from cnclip_client._extras import require

__all__ = ["RemoteStore"]

_CONNECTIONS = 16


class RemoteStore:
    """Of a place only its name counts; the address is the folder's.

    Args:
        url: Anything that fsspec knows.

    Raises:
        MissingExtra: fsspec, or its package for this kind of address, is not installed.
        OSError: The address cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self._told(self.url):
            core = require("fsspec.core", extra="publish")
            # What others wrote must be seen: listings are asked for each time.
            self._files, self._root = core.url_to_fs(self.url, use_listings_cache=False)

    def put(self, made: Path, place: Path) -> None:
        with self._told(self._shown(place)):
            self._files.put_file(str(made), self._address(place))
        made.unlink()

    def write(self, place: Path, value: Mapping[str, Any]) -> None:
        with self._told(self._shown(place)):
            self._files.pipe_file(self._address(place), json.dumps(value, indent=1).encode("ascii") + b"\n")

    def read(self, place: Path) -> Any:
        with self._told(self._shown(place)):
            try:
                data = self._files.cat_file(self._address(place))
            except FileNotFoundError:
                return None
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BadFile(f"no JSON ({error}); remove it", path=self._shown(place)) from error
        if not isinstance(found, dict):
            raise BadFile("not a job's file; remove it", path=self._shown(place))
        return found

    def read_all(self, places: Sequence[Path]) -> list[Any]:
        """Returns records, over several connections."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(self.read, places))

    def size(self, place: Path) -> int | None:
        with self._told(self._shown(place)):
            try:
                return int(self._files.size(self._address(place)))
            except FileNotFoundError:
                return None

    def names(self) -> set[str]:
        """Returns the names of what is in the folder."""
        with self._told(self.url):
            try:
                found = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return set()
        return {str(name).rstrip("/").rpartition("/")[2] for name in found} - {""}

    def remove(self, place: Path) -> None:
        """Removes a file; that there is none is as good."""
        with self._told(self._shown(place)):
            try:
                self._files.rm_file(self._address(place))
            except FileNotFoundError:
                return

    def _address(self, place: Path) -> str:
        return f"{self._root.rstrip('/')}/{place.name}"

    def _shown(self, place: Path) -> str:
        return f"{self.url}/{place.name}"

    @contextmanager
    def _told(self, url: str) -> Iterator[None]:
        """Names the address of whatever goes wrong: the libraries' own errors share no root, and often do not."""
        try:
            yield
        except CnclipError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            code = error.errno if isinstance(error, OSError) and error.errno else 5
            words = f"the store cannot be used ({reason}); what was done is kept: mend that, and run it again"
            raise OSError(code, words, url) from error
