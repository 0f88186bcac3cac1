"""Reads tar archives, member after member, and tells where one is cut off or damaged.

The standard library's `tarfile` takes a header that is cut off or damaged for the archive's end, unless it is the
first, and keeps every member that it has seen. Its parts that read numbers and pax records are used here.

The format is POSIX's ustar with the extensions of pax and GNU: headers of 512 bytes, each before its member's data,
which is filled up to 512; and zeros at the end. What follows them is read as well, for tars that were put together by
`cat`; if it is no tar, the zeros are a hole in a damaged one, such as a download that was never finished leaves.
"""

from __future__ import annotations

import tarfile as _tarfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

tarfile: Any = _tarfile  # what is used of it is public, and not in its stubs

__all__ = ["PACKED_BADLY", "Member", "TornTar", "members"]

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_NAME, _SIZE, _CHECKSUM, _TYPE = slice(0, 100), slice(124, 136), slice(148, 156), slice(156, 157)
_MAGIC, _PREFIX = slice(257, 263), slice(345, 500)
_FILES = (b"0", b"\0", b"7")
# With `-h` alone, what links lead to twice is a file once and a hard link from then on.
_LINK = "a link (pack it with tar's -h --hard-dereference)"
_KINDS = {b"1": _LINK, b"2": _LINK, b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe"}
_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL = b"L", b"K", b"x", b"g"
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL)
# Of GNU's sparse files the header tells 4 pieces, and as long as a flag is set another block follows that tells 21.
_SPARSE, _PIECES_FOLLOW, _MORE_FOLLOW = b"S", 482, 504
_IS_SPARSE = "sparse (pack it without tar's -S)"
_ZEROS_AT_ONCE = 128 * _BLOCK
# Tars are filled up to a block of their program's, 10 KiB by default; so much for `tar -b 2048`.
_MOST_ZEROS = 1024 * 1024
_MOST_HEADER_BYTES = 1024 * 1024
# Of a member. Behind a larger one a disk may have no place to seek to.
_MOST_BYTES = 10**12
PACKED_BADLY = (EOFError, zlib.error)
"""What `GzipFile` says of a stream that is cut off or damaged, in a header as in a member's data."""


class TornTar(Exception):
    """The archive cannot be read on; its message says where and why. It never leaves this package."""


class Member(NamedTuple):
    """A member of an archive.

    Attributes:
        name: Its name.
        what: What it is, if it is no file; else empty.
        begin: Where its first header is.
        data: Where its data begin.
        size: Their bytes.
        end: Where the next member begins.
    """

    name: str
    what: str
    begin: int
    data: int
    size: int
    end: int


def members(file: IO[bytes], begin: int = 0) -> Iterator[Member]:
    """Yields the members; between two of them the caller may seek in the file.

    Args:
        file: An open one.
        begin: Where the first member that is wanted begins.

    Raises:
        TornTar: It is cut off or damaged, or no archive.
        OSError: It cannot be read.
    """
    place = begin
    try:
        while (member := _next(file, place)) is not None:
            yield member
            place = member.end
    except PACKED_BADLY as error:
        raise TornTar(f"its gzip stream is cut off or damaged, behind byte {place:,} unpacked ({error})") from error


def _next(file: IO[bytes], begin: int) -> Member | None:
    """Returns the member that begins there, or behind the zeros there; None at the end."""
    place = begin
    told: dict[str, str] = {}
    while True:
        file.seek(place)
        header = file.read(_BLOCK)
        if header == _ZEROS:
            following = _behind_zeros(file, place)
            if following is None:
                return None
            begin = place = following
            told = {}
            continue
        if len(header) < _BLOCK:
            raise TornTar(f"is cut off at byte {place + len(header):,}: it has no end")
        if not _is_sound(header):
            raise TornTar(f"is damaged at byte {place:,}, or no tar archive")
        size, data = _number(header[_SIZE]), place + _BLOCK
        if header[_TYPE] not in _EXTENSIONS:
            return _member(file, header, told, begin, data, size)
        told |= _extension(file, header[_TYPE], data, size)
        place = data + _filled(size)


def _extension(file: IO[bytes], kind: bytes, data: int, size: int) -> dict[str, str]:
    """Reads a header that tells of the member behind it; returns pax records, which a long name of GNU's is too."""
    if size > _MOST_HEADER_BYTES:
        raise TornTar(f"is damaged at byte {data:,}: a header of {size:,} bytes")
    content = file.read(size)
    if len(content) < size:
        raise TornTar(f"is cut off at byte {data + len(content):,}, in a header")
    if kind == _LONG_NAME:
        return {"path": _text(content)}
    return _pax_records(content) if kind == _PAX else {}


def _member(file: IO[bytes], header: bytes, told: Mapping[str, str], begin: int, data: int, size: int) -> Member:
    """Returns the member of a header, of which `told` has the pax records that came before it."""
    kind = header[_TYPE]
    name = told.get("GNU.sparse.name") or told.get("path") or _short_name(header)
    what = ""
    if kind == _SPARSE:
        what, data = _IS_SPARSE, _behind_pieces(file, header, data)
    elif kind not in _FILES:
        what = _KINDS.get(kind, "no file of a kind that is known")
    elif name.endswith("/"):
        what = "a folder"
    elif any(key.startswith("GNU.sparse.") for key in told):
        what = _IS_SPARSE
    given = told.get("size", "")
    if given.isdecimal():
        size = int(given) if len(given) < len(str(_MOST_BYTES)) else _MOST_BYTES
    # Links and folders may tell a size, and have no data.
    holds = size if kind not in _KINDS else 0
    if holds >= _MOST_BYTES:
        raise TornTar(f"is damaged at byte {begin:,}: a member of a terabyte or more")
    return Member(name, what, begin, data, holds, data + _filled(holds))


def _short_name(header: bytes) -> str:
    name = _text(header[_NAME])
    has_prefix = header[_MAGIC] == b"ustar\0" and header[_PREFIX.start] != 0
    return f"{_text(header[_PREFIX])}/{name}" if has_prefix else name


def _behind_zeros(file: IO[bytes], begin: int) -> int | None:
    """Returns where something follows, or None if the archive ends in zeros. Raises TornTar for too many of them."""
    place = begin
    file.seek(place)
    while zeros := file.read(_ZEROS_AT_ONCE):
        other = len(zeros) - len(zeros.lstrip(b"\0"))
        if other < len(zeros):
            return place + other // _BLOCK * _BLOCK
        place += len(zeros)
    if place - begin > _MOST_ZEROS:
        raise TornTar(f"is all zeros from byte {begin:,} on, {place - begin:,} of them, as unfinished downloads are")
    return None


def _behind_pieces(file: IO[bytes], header: bytes, data: int) -> int:
    """Returns where the data of one of GNU's sparse files begin."""
    follow = header[_PIECES_FOLLOW]
    while follow:
        pieces = file.read(_BLOCK)
        data += len(pieces)
        if len(pieces) < _BLOCK:
            raise TornTar(f"is cut off at byte {data:,}, in a header")
        follow = pieces[_MORE_FOLLOW]
    return data


def _is_sound(header: bytes) -> bool:
    try:
        told = tarfile.nti(header[_CHECKSUM])
    except tarfile.HeaderError:
        return False
    if sum(header) - sum(header[_CHECKSUM]) + 8 * 32 == told:
        return True
    return told in tarfile.calc_chksums(header)  # old ones counted signed bytes


def _number(field: bytes) -> int:
    try:
        number = int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        try:
            number = tarfile.nti(field)  # GNU's, of 256s
        except tarfile.HeaderError as error:
            raise TornTar("is damaged: a size that is no number") from error
    if number < 0:
        raise TornTar(f"is damaged: a size of {number}")
    return number


def _filled(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _pax_records(data: bytes) -> dict[str, str]:
    """Returns the records of a pax header, each `LENGTH KEY=VALUE` and a line's end."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        length, _, _ = data.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(data):
            raise TornTar("is damaged: a pax header that is none")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(length) :]
    return records
