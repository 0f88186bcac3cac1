"""A folder of an object store that finished parts are put into, each file whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cnclip_client._exceptions import BadFile
from cnclip_client._remote import RemotePath
from cnclip_client._remote.errors import code_of
from cnclip_client.extraction._work_folder import json_bytes, parsed_json

__all__ = ["RemoteStore"]

_CONNECTIONS = 16


class RemoteStore:
    """Keeps what a job has finished under an address; of a place here only its name counts.

    Its methods raise `StoreError` where the store cannot be had, `BadFile` where there is no such bucket, and
    `MissingExtra`.

    Args:
        url: Of the folder; anything that fsspec knows.
    """

    def __init__(self, url: str) -> None:
        self._folder = RemotePath(url.rstrip("/"))

    def put(self, made: Path, place: Path) -> None:
        (self._folder / place.name).put(made)
        made.unlink()

    def write(self, place: Path, value: Mapping[str, Any]) -> None:
        (self._folder / place.name).write(json_bytes(value))

    def read(self, place: Path) -> Any:
        path = self._folder / place.name
        try:
            data = path.read()
        except BadFile as error:
            if _is_only_missing(error):
                return None
            raise
        return parsed_json(data, path, "remove it")

    def read_all(self, places: Sequence[Path]) -> list[Any]:
        """Returns records, over several connections."""
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            return list(pool.map(self.read, places))

    def size(self, place: Path) -> int | None:
        try:
            return (self._folder / place.name).state().size_bytes
        except BadFile as error:
            if _is_only_missing(error):
                return None
            raise

    def names(self, folder: Path) -> set[str]:
        """Returns the names of what is under the address, whichever folder here stands for it."""
        try:
            return {name for name, _ in self._folder.names()}
        except BadFile as error:
            if _is_only_missing(error):
                return set()
            raise

    def remove(self, place: Path) -> None:
        (self._folder / place.name).remove()


def _is_only_missing(error: BadFile) -> bool:
    """Whether a file or a folder is not there yet, and nothing is wrong with the bucket."""
    return isinstance(error.__cause__, FileNotFoundError) and code_of(error.__cause__) != "NoSuchBucket"
