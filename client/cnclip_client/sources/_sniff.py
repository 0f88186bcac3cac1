"""Tells files of lines from what would otherwise be taken for them, line by line: JSON arrays, CSV, binary files."""

from __future__ import annotations

import json
import os
import re
import stat

from cnclip_client._exceptions import BadFile
from cnclip_client._remote import Location, RemotePath
from cnclip_client._texts import NO_UTF8

__all__ = ["first_bytes", "packed_as", "require_file", "require_lines", "require_unpacked", "require_utf8"]

_SNIFFED_BYTES = 64 * 1024
_SNIFFED_LINES = 100
_BOM = b"\xef\xbb\xbf"
_ARRAY = re.compile(rb"\[\s*(?:[\[{\"]|$)")
# Columns by which tables of images and texts name themselves; a header has no other.
_HEADER = frozenset(["id", "ids", "text_id", "text", "texts", "image_id", "image", "images", "image_ids", "caption"])
_HEADER |= {"captions", "query", "title", "label", "path", "file", "file_name", "filename", "filepath", "url", "key"}
_HEADER |= {"编号", "序号", "文本", "文本编号", "描述", "标题", "查询", "标签", "类别", "图片", "图片编号", "图像"}
_HEADER |= {"图像编号", "图片路径", "图像路径", "路径", "文件", "文件名", "文件路径", "链接", "网址"}
_MAGICS = {
    b"\x1f\x8b": "gzip; unpack it first (gunzip)",
    b"BZh": "bzip2; unpack it first",
    b"\xfd7zXZ": "xz; unpack it first",
    b"\x28\xb5\x2f\xfd": "Zstandard; unpack it first",
    b"PK\x03\x04": "a zip archive or an Excel sheet; unpack or export it first",
    b"\xff\xfe": "UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)",
}


def require_file(path: Location) -> None:
    """Refuses what can be read only once: a job reads the first bytes to tell what it is, and may be resumed later.

    Raises:
        BadFile: It is neither a file nor a folder.
        OSError: It is not there.
    """
    if isinstance(path, RemotePath):
        path.is_dir()  # or it says that it is not there
        return
    if os.fspath(path) == "-" and not path.exists():
        raise BadFile("standard input cannot be read again to go on; write it to a file first", path=str(path))
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise BadFile("is no file, and cannot be read again to go on; write it to a file first", path=str(path))


def first_bytes(path: Location) -> bytes:
    """Returns how a file begins, its byte order mark left out. Raises OSError."""
    if isinstance(path, RemotePath):
        return path.read(_SNIFFED_BYTES).removeprefix(_BOM)
    with path.open("rb") as file:
        return file.read(_SNIFFED_BYTES).removeprefix(_BOM)


def require_unpacked(path: Location, start: bytes) -> None:
    """Refuses archives, and text that is not UTF-8's kind. Raises BadFile."""
    if told := packed_as(start):
        raise BadFile(f"is {told}", path=str(path))


def require_utf8(path: Location, start: bytes) -> None:
    """Refuses a text of another charset, such as GBK, at once; a line here and there fails by itself.

    Raises:
        BadFile: Half of its first lines or more, and most of those that are not ASCII, are no UTF-8.
    """
    lines = start.splitlines()
    told = [line for line in lines if not line.isascii()]
    others = sum(map(_is_other_charset, told))
    if others * 2 > len(told) and others * 2 >= len(lines):
        raise BadFile(NO_UTF8, path=str(path))


def _is_other_charset(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"  # the last one is cut off anywhere
    return False


def packed_as(start: bytes) -> str:
    """Returns what something is by its first bytes, and what to do, if it is an archive or UTF-16; else nothing."""
    return next((told for magic, told in _MAGICS.items() if start.startswith(magic)), "")


def require_lines(path: Location, start: bytes, what: str, instead: str, anyway: str) -> None:
    """Refuses what is no file of plain lines.

    Args:
        path: The file.
        start: Its first bytes.
        what: What each line should be.
        instead: What of a table or of JSON is taken.
        anyway: How to have its lines taken as they are; empty if there is no way.

    Raises:
        BadFile: It is something else.
    """
    require_unpacked(path, start)
    told = _told(path.suffix.lower(), start)
    if told:
        hint = f", or {anyway} if its lines are meant as they are" if anyway else ""
        raise BadFile(f"is {told.format(instead=instead, what=what)}{hint}", path=str(path))


def _told(suffix: str, start: bytes) -> str:
    """Returns what it is and what to do, or nothing if it is lines."""
    if b"\0" in start:
        return "binary, and not {what} a line; give a file of text"
    stripped = start.lstrip()
    first = stripped.partition(b"\n")[0].strip()
    if suffix in (".json", ".jsonl", ".geojson") or _ARRAY.match(first) or first == b"{" or _is_object(first):
        return "JSON, and not {what} a line; give {instead}"
    if suffix in (".csv", ".tsv") or _is_table(start):
        return "a table (CSV or TSV), and not {what} a line; give {instead}"
    return ""


def _is_object(line: bytes) -> bool:
    try:
        return line.startswith(b"{") and bool(json.loads(line))
    except (ValueError, RecursionError):
        # The first of many, of which only the beginning was read, or an object whose first line is only a part.
        return bool(re.match(rb'\{\s*"[^"]*"\s*:', line))


def _is_table(start: bytes) -> bool:
    lines = start.splitlines()
    if len(start) >= _SNIFFED_BYTES:
        lines = lines[:-1]  # only a part of it
    lines = [line for line in lines[:_SNIFFED_LINES] if line.strip()]
    for separator in (b"\t", b",", b";"):
        if not lines or separator not in lines[0]:
            continue
        names = [name.strip().strip(b"\"'").lower().decode("utf-8", "replace") for name in lines[0].split(separator)]
        if all(name in _HEADER for name in names):
            return True
        counts = {line.count(separator) for line in lines}
        numbered = all(line.split(separator)[0].strip(b"\"' ").isdigit() for line in lines[1:])
        # Texts may hold a tab or a comma here and there, but not as many in each, after a number.
        if len(lines) > 2 and len(counts) == 1 and numbered:
            return True
    return False
