"""Reads LMDB's file format, version 1 of 64-bit machines, without mapping it into memory.

liblmdb trusts its file: a page that is cut off ends the process with SIGBUS, and a damaged one may with SIGSEGV. Here
every page, node and length is looked at before it is used, and what is wrong is told. The format is that of
`struct MDB_meta`, `MDB_page` and `MDB_node` in OpenLDAP's `mdb.c`.

| page | holds |
|---|---|
| 0 and 1 | where the tree's root is, how many pages there are, and a transaction's number: the higher one counts |
| branch | keys, and the pages of those from each on |
| leaf | keys, each with its value, or with the first of the pages that hold it |
| overflow | a value, in pages that follow each other |
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from cnclip_client._exceptions import BadFile

__all__ = ["LmdbFile", "Value"]

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE = struct.Struct("<QHHHH")  # its number, -, flags, where its nodes' offsets end, where the nodes begin
# Of a leaf the value's length and flags; of a branch the lower 32 bits of a page's number and the upper 16. Then the
# key's length.
_NODE = struct.Struct("<IHH")
_NUMBER = struct.Struct("<Q")
_HEADER_BYTES = _PAGE.size
_BRANCH, _LEAF, _OVERFLOW, _IS_META, _LEAF2 = 0x01, 0x02, 0x04, 0x08, 0x20
_BIG, _OTHER_VALUES = 0x01, 0x06  # in pages of its own; a database in it, or several values of one key
_NO_PAGE = 2**64 - 1
_DEEPEST = 32  # that of liblmdb
_FIX = "make it anew, or copy it again"

_Nodes: TypeAlias = Iterator[tuple[bytes, int, int, int]]
"""Of each node of a page its key, where on the page that ends, and the first two fields of `_NODE`."""


class Value(NamedTuple):
    """A value's bytes, or, where `start` is not negative, the place of its pages and its size."""

    held: bytes
    start: int
    size: int


class LmdbFile:
    """A `data.mdb`, open for reading; a context manager.

    Attributes:
        entries: How many keys it has.
    """

    def __init__(self, path: Path) -> None:
        """Opens it.

        Raises:
            BadFile: It is no LMDB, or one that was cut off.
            OSError: It cannot be read.
        """
        self._path = path
        self._file = path.open("rb", buffering=0)
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._page_bytes, self._in_order, self.entries, self._root, pages = self._newest()
            if pages * self._page_bytes > self._size:
                # The last pages may be free ones that were never written.
                for _ in self.items():
                    pass
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> LmdbFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def items(self, after: bytes = b"") -> Iterator[tuple[bytes, Value]]:
        """Yields each key in their order, with where its value is; with `after` those behind that key.

        Raises:
            BadFile: It is damaged.
            OSError: It cannot be read.
        """
        count, last, passed = 0, b"", self._in_order or not after
        if self._root != _NO_PAGE:
            for key, value in self._below(self._root, 0, after if self._in_order else b""):
                if self._in_order and key <= last:
                    raise self._bad(f"it is damaged: {key!r} comes after {last!r}")
                count, last = count + 1, key
                if passed and not (self._in_order and key <= after):
                    yield key, value
                passed = passed or key == after
        if not after and count != self.entries:
            raise self._bad(f"it is damaged: it has {count:,} of {self.entries:,} entries")

    def read(self, value: Value) -> bytes:
        """Returns a value. Raises BadFile, OSError."""
        if value.start < 0:
            return value.held
        data = self._bytes(value.start, _HEADER_BYTES + value.size)
        own, _, flags, _, _ = _PAGE.unpack_from(data)
        if own * self._page_bytes != value.start or not flags & _OVERFLOW:
            raise self._damaged(value.start // self._page_bytes)
        return data[_HEADER_BYTES:]

    def _newest(self) -> tuple[int, bool, int, int, int]:
        """Returns a page's bytes, and the order, entries, root and pages that the last transaction left."""
        first = self._meta(0)
        second = self._meta(first[0])
        if first[0] != second[0]:
            raise self._bad("it is damaged: its two headers do not agree")
        page_bytes, flags, entries, root, last_page, _ = max(first, second, key=lambda one: one[-1])
        # Keys are in the order of their bytes, unless it was made with flags of its own.
        return page_bytes, flags == 0, entries, root, last_page + 1

    def _meta(self, start: int) -> tuple[int, int, int, int, int, int]:
        """Returns page bytes, flags, entries, root, last page and transaction of a header."""
        data = self._bytes(start, _HEADER_BYTES + 136)
        flags = _PAGE.unpack_from(data)[2]
        magic, version = struct.unpack_from("<II", data, 16)
        if magic != _MAGIC or not flags & _IS_META:
            raise BadFile("no LMDB; give the folder of cn_clip's data.mdb", path=str(self._path))
        if version != _VERSION:
            raise self._bad(f"LMDB's format {version}, and not {_VERSION}", "write it with liblmdb 0.9")
        (page_bytes,) = struct.unpack_from("<I", data, 40)
        (order,) = struct.unpack_from("<H", data, 92)
        entries, root, last_page, transaction = struct.unpack_from("<QQQQ", data, 120)
        if not 512 <= page_bytes <= 65536 or page_bytes & (page_bytes - 1):
            raise self._bad(f"it is damaged: pages of {page_bytes} bytes")
        return page_bytes, order, entries, root, last_page, transaction

    def _below(self, number: int, depth: int, after: bytes) -> Iterator[tuple[bytes, Value]]:
        """Yields what is below a page, without the pages that hold nothing behind a key, if it is not empty."""
        if depth > _DEEPEST:
            raise self._bad(f"page {number} is in a circle")
        page = self._bytes(number * self._page_bytes, self._page_bytes)
        own, _, flags, lower, _ = _PAGE.unpack_from(page)
        if own != number or not flags & (_BRANCH | _LEAF) or flags & _LEAF2 or not 16 <= lower <= len(page):
            raise self._damaged(number)
        nodes = self._nodes(number, page, lower)
        yield from self._branch(nodes, depth, after) if flags & _BRANCH else self._leaf(nodes, number, page)

    def _nodes(self, number: int, page: bytes, lower: int) -> _Nodes:
        """Yields a page's nodes, whose offsets end at `lower`."""
        for (place,) in struct.iter_unpack("<H", page[_HEADER_BYTES : lower - lower % 2]):
            if not lower <= place <= len(page) - _NODE.size:
                raise self._damaged(number)
            low, flags, key_bytes = _NODE.unpack_from(page, place)
            key, end = place + _NODE.size, place + _NODE.size + key_bytes
            yield page[key:end], end, low, flags

    def _branch(self, nodes: _Nodes, depth: int, after: bytes) -> Iterator[tuple[bytes, Value]]:
        child = -1  # the page whose keys end where the next one's begin
        for key, _, low, high in nodes:
            if child >= 0 and not (after and key <= after):
                yield from self._below(child, depth + 1, after)
            child = low | high << 32
        if child >= 0:
            yield from self._below(child, depth + 1, after)

    def _leaf(self, nodes: _Nodes, number: int, page: bytes) -> Iterator[tuple[bytes, Value]]:
        for key, end, size, flags in nodes:
            is_big = flags & _BIG
            if end + (_NUMBER.size if is_big else size) > len(page) or not key:
                raise self._damaged(number)
            if flags & _OTHER_VALUES:
                raise self._bad(f"{key!r} holds more than one value", "make it as cn_clip does")
            if not is_big:
                yield key, Value(page[end : end + size], -1, size)
                continue
            start = _NUMBER.unpack_from(page, end)[0] * self._page_bytes
            if start + _HEADER_BYTES + size > self._size:
                raise self._cut(start + _HEADER_BYTES + size)
            yield key, Value(b"", start, size)

    def _bytes(self, start: int, size: int) -> bytes:
        if start + size > self._size:
            raise self._cut(start + size)
        data = os.pread(self._file.fileno(), size, start)
        while len(data) < size and (more := os.pread(self._file.fileno(), size - len(data), start + len(data))):
            data += more
        if len(data) < size:  # it has become shorter
            raise self._cut(start + size)
        return data

    def _damaged(self, page: int) -> BadFile:
        return self._bad(f"page {page} is damaged")

    def _cut(self, wanted: int) -> BadFile:
        return self._bad(f"it is cut off, or damaged: it has {self._size:,} bytes and speaks of byte {wanted:,}")

    def _bad(self, what: str, fix: str = _FIX) -> BadFile:
        return BadFile(f"{what}; {fix}", path=str(self._path))
