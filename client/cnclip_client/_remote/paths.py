"""Remote paths, with those methods of a `Path` that are used of them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

from cnclip_client._exceptions import BadFile
from cnclip_client._extras import require
from cnclip_client._listing import LeftOut, is_hidden
from cnclip_client._remote.errors import code_of, told_remote
from cnclip_client._remote.reading import RangedFile, patiently

__all__ = ["FileState", "Location", "RemotePath", "is_remote", "located", "state_digest", "state_of"]

_T = TypeVar("_T")

# Whatever stands before the last "@" of an address's host; then a password with a "/" in it that nobody escaped.
_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#]*@|[^/@:]+:(?!\d+/)[^@]*@)")

# As many connections at once as there may be readers.
_CONNECTIONS = 128
_BUFFER_BYTES = 1024 * 1024
# What stores tell a version of a file by, the surest first.
_VERSIONS: tuple[str, ...] = ("ETag", "etag", "generation", "blob_id", "md5Hash", "Content-MD5", "sha256")
_VERSIONS += ("Last-Modified", "LastModified", "mtime", "last_modified", "created")


@dataclass(frozen=True, slots=True)
class FileState:
    """What a file is told by without reading it.

    Attributes:
        name: Its address, or its path.
        size_bytes: Its size; -1 where the server does not say.
        version: Of a local file when it was last written, in nanoseconds; of a remote one what its store tells a
            version by, such as an ETag.
    """

    name: str
    size_bytes: int
    version: str


@dataclass(frozen=True, slots=True)
class RemotePath:
    """An address such as `s3://bucket/photos`, of anything that fsspec knows.

    Its methods raise `BadFile` where nothing is there, `StoreError` where it cannot be had, and `MissingExtra`.

    Attributes:
        url: It.
    """

    url: str

    def __post_init__(self) -> None:
        """Raises BadFile for an address with a user or password, which would stand in messages, records and ids."""
        shown = _USER.sub(r"\1***@", self.url)
        if shown != self.url:
            raise BadFile(
                "an address must hold no user and no password; leave them out, and give them as the store's own "
                "settings (AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN)",
                path=shown,
            )

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part, without what a web address asks for after `?`."""
        place = urlsplit(self.url).path if self.url.startswith(("http://", "https://")) else self.url
        return place.rstrip("/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The ending of the name, such as `.tar`."""
        return PurePosixPath(self.name).suffix

    def absolute(self) -> RemotePath:
        """Returns itself; it does not depend on the current folder."""
        return self

    def is_dir(self) -> bool:
        """Whether it is a folder: what others' names begin with."""
        files, path = self._there()
        if self.url.startswith(("http://", "https://")):
            return self.url.endswith("/")
        return bool(_told(self.url, lambda: files.info(path))["type"] == "directory")

    def state(self) -> FileState:
        """Returns what the file is told by."""
        files, path = self._there()
        return _state(self.url, _told(self.url, lambda: files.info(path)))

    def open(self, mode: str = "rb", buffering: int = _BUFFER_BYTES) -> IO[bytes]:
        """Opens the file for reading, ahead and over several connections.

        Args:
            mode: `rb`.
            buffering: How many bytes are taken at once, 1 or more: a read gives all that it was asked for.
        """
        if mode != "rb":
            raise ValueError(f"a remote file is opened with mode 'rb', got {mode!r}")
        return self.open_of(self.state().size_bytes, buffering)

    def open_of(self, size_bytes: int, buffering: int = _BUFFER_BYTES) -> IO[bytes]:
        """Opens the file for reading where its size is known, as `open` does."""
        if size_bytes < 0:
            # A server that does not say how long it is knows no pieces either, most likely.
            return io.BytesIO(self.read())
        raw = RangedFile(self._fetch, size_bytes, self.url)
        return cast(IO[bytes], io.BufferedReader(raw, buffering))

    def _fetch(self, start: int, stop: int) -> bytes:
        files, path = self._there()
        with told_remote(self.url):
            return cast(bytes, files.cat_file(path, start=start, end=stop))

    def read(self, most_bytes: int | None = None) -> bytes:
        """Returns the file's bytes, cut off after so many."""
        files, path = self._there()

        def read() -> bytes:
            try:
                return cast(
                    bytes, files.cat_file(path, **({} if most_bytes is None else {"start": 0, "end": most_bytes}))
                )
            except Exception as error:
                if code_of(error) == "InvalidRange" or getattr(error, "status", None) == 416:
                    return b""  # an empty one has no first byte
                raise

        return _told(self.url, read)[:most_bytes]

    def names(self) -> list[tuple[str, bool]]:
        """Returns the names of what is in the folder, sorted, without hidden ones, and whether each is a folder."""
        files, path = self._there()
        names: dict[str, bool] = {}
        for info in _told(self.url, lambda: files.ls(path, detail=True)):
            whole = str(info["name"]).rstrip("/")
            name = whole.rpartition("/")[2]
            # Some stores keep an empty file in a folder's place.
            if name and not name.startswith(".") and whole != path.rstrip("/"):
                names[name] = names.get(name, False) or info["type"] == "directory"
        return sorted(names.items())

    def find(self, *suffixes: str, left_out: LeftOut = is_hidden) -> list[FileState]:
        """Returns the files in the folder and in those in it whose names end so, by address, as `files_below` does."""
        files, path = self._there()
        found = _told(self.url, lambda: files.find(path, detail=True))
        states = []
        for name, info in found.items():
            below = name[len(path.rstrip("/")) :].lstrip("/")
            if below.lower().endswith(suffixes) and not any(map(left_out, below.split("/"))):
                states.append(_state(str(self / below), info))
        return sorted(states, key=lambda state: state.name)

    def matching(self) -> list[FileState]:
        """Returns the files that match it as a pattern, by address."""
        files, path = self._there()
        found = _told(self.url, lambda: files.glob(path, detail=True))
        states = (_state(files.unstrip_protocol(name), info) for name, info in found.items() if info["type"] == "file")
        return sorted(states, key=lambda state: state.name)

    def write(self, data: bytes) -> None:
        """Puts a file there, whole or not at all."""
        files, path = self._there()
        _told(self.url, lambda: files.pipe_file(path, data))

    def put(self, local: Path) -> None:
        """Puts a local file there, whole or not at all: a store shows a file once all of it has come."""
        files, path = self._there()
        _told(self.url, lambda: files.put_file(os.fspath(local), path))

    def remove(self) -> None:
        """Removes the file; that none is there is as good."""
        files, path = self._there()
        with told_remote(self.url):
            try:
                files.rm_file(path)
            except FileNotFoundError:
                return

    def _there(self) -> tuple[Any, str]:
        """Returns fsspec's file system, and the path in it."""
        with told_remote(self.url):
            fsspec = require("fsspec", extra="remote")
            # Listings that are kept would be those of a moment ago, and of a million files much memory.
            options: dict[str, Any] = {"use_listings_cache": False}
            if self.url.startswith(("s3://", "s3a://")):
                own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
                options["config_kwargs"] = {"max_pool_connections": _CONNECTIONS, **own}
            files, path = fsspec.core.url_to_fs(self.url, **options)
            return files, str(path)


def _told(url: str, call: Callable[[], _T]) -> _T:
    def told() -> _T:
        with told_remote(url):
            return call()

    return patiently(told)


def _state(url: str, info: Mapping[str, Any]) -> FileState:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    size = info.get("size")
    return FileState(url, -1 if size is None else int(size), version)


Location: TypeAlias = Path | RemotePath
"""A path here or elsewhere."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address, such as `s3://bucket/photos`."""
    scheme, separator, _ = os.fspath(path).partition("://")
    return bool(separator) and scheme.isalnum()


def located(path: str | os.PathLike[str] | RemotePath) -> Location:
    """Returns a path or an address as what can be read."""
    if isinstance(path, RemotePath):
        return path
    return RemotePath(os.fspath(path)) if is_remote(path) else Path(path)


def state_of(path: Location) -> FileState:
    """Returns what a file is told by. Raises OSError, and what `RemotePath` does."""
    if isinstance(path, RemotePath):
        return path.state()
    found = path.stat()
    return FileState(str(path.absolute()), found.st_size, str(found.st_mtime_ns))


def state_digest(states: Iterable[FileState]) -> str:
    """Returns a digest of files' names, sizes and times, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for state in states:
        digest.update(json.dumps([state.name, state.size_bytes, state.version]).encode() + b"\n")
    return digest.hexdigest()
