"""Finds the ids that come again, in memory that does not grow with their number."""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cnclip_client._vocabulary import Id

__all__ = ["Repeats"]

_KEY_BYTES = 16
_KEY = struct.Struct("<qq")
_READ_KEYS = 64 * 1024
# Small: the system keeps the file at hand, and 32 MiB more at a million ids saved 2 us each.
_CACHE_KIB = 4 * 1024


class Repeats:
    """A set of ids on the disk, in a file that is of no use to a later run and is made anew from the keys.

    Of each id a hash of 128 bits is kept, half of it as what SQLite looks up.
    """

    def __init__(self, path: Path, written: Callable[[Id], bytes]) -> None:
        """Begins an empty one.

        Args:
            path: The file; nobody else may use it.
            written: Gives an id as the output has it: what is the same there is the same id.

        Raises:
            OSError: It cannot be written.
        """
        self._path = path
        self._written = written
        path.unlink(missing_ok=True)
        with self._told():
            # Without locks, which some network disks refuse, and without a journal: nothing is to be recovered.
            place = path.absolute().as_uri()
            self._database = sqlite3.connect(f"{place}?nolock=1", uri=True, isolation_level=None)
            for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute("CREATE TABLE seen (low INTEGER PRIMARY KEY, high INTEGER)")
            self._database.execute("BEGIN")  # and no end: each insert would be a transaction of its own

    def __enter__(self) -> Repeats:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()
        self._path.unlink(missing_ok=True)

    def keys(self, ids: Sequence[Id]) -> list[bytes]:
        """Returns the ids' keys, 16 bytes each."""
        return [hashlib.blake2b(self._written(one), digest_size=_KEY_BYTES).digest() for one in ids]

    def add(self, keys: Sequence[bytes]) -> list[int]:
        """Adds keys, and returns the places among them of those that were there before.

        Raises:
            OSError: The disk is full, or fails.
        """
        again = []
        insert = self._database.execute
        with self._told():
            for place, key in enumerate(keys):
                low, high = _KEY.unpack(key)
                if insert("INSERT OR IGNORE INTO seen VALUES (?, ?)", (low, high)).rowcount == 0:
                    found = insert("SELECT high FROM seen WHERE low = ?", (low,)).fetchone()
                    if found == (high,):
                        again.append(place)
        return again

    def add_file(self, path: Path) -> None:
        """Adds what an earlier run wrote. Raises OSError."""
        with path.open("rb") as file:
            while keys := file.read(_KEY_BYTES * _READ_KEYS):
                self.add([keys[start : start + _KEY_BYTES] for start in range(0, len(keys), _KEY_BYTES)])

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(code, f"{os.strerror(code)} ({error})", os.fspath(self._path)) from error
