"""From what a caller may hand over to the bytes that travel."""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeAlias

from cnclip_client._blame import is_of_all
from cnclip_client._exceptions import BadFile, StoreError
from cnclip_client._remote import RemotePath, is_remote
from cnclip_client._texts import NO_UTF8

__all__ = [
    "ImageItem",
    "Unsendable",
    "harmless_image",
    "harmless_text",
    "image_bytes",
    "is_pil_image",
    "loaded",
    "require_many",
    "text_bytes",
    "too_large",
]

# PNG keeps these modes to the bit, its palette and transparency included, and is the smaller of the two
# containers. TIFF keeps the others that cn_clip's transform can turn into RGB.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_TIFF_MODES = frozenset({"CMYK", "F", "I", "I;16B", "LAB", "PA", "RGBX", "YCbCr"})


class _PilImage(Protocol):
    """The looks of a `PIL.Image.Image`."""

    @property
    def mode(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def save(self, fp: Any, format: str | None = ..., **params: Any) -> None: ...


ImageItem: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | _PilImage


class Unsendable(Exception):
    """An item that cannot be sent; its message is the reason. It never leaves this package."""


def loaded(load: Callable[[object], bytes], item: object) -> bytes | Unsendable:
    """Returns an item's bytes, or why it cannot be sent.

    Args:
        load: Gives its bytes, or raises `Unsendable`.
        item: What the caller handed over.
    """
    try:
        return load(item)
    except Unsendable as reason:
        return reason


def text_bytes(item: object, item_bytes: int) -> bytes:
    """Returns a text as UTF-8.

    Args:
        item: What the caller handed over.
        item_bytes: The largest result allowed, in bytes.

    Raises:
        Unsendable: It is no string, cannot be UTF-8 or is too long.
    """
    if not isinstance(item, str):
        raise Unsendable(f"expected a str, got {type(item).__name__}")
    try:
        encoded = item.encode("utf-8")
    except UnicodeEncodeError as error:
        if "\udc80" <= item[error.start] <= "\udcff":  # how Python reads what is no UTF-8, of a file or a terminal
            raise Unsendable(NO_UTF8) from error
        raise Unsendable(f"is not Unicode text: a lone surrogate at position {error.start}") from error
    return _checked(encoded, item_bytes)


def image_bytes(item: object, item_bytes: int) -> bytes:
    """Returns the encoded image file's bytes of a path, of bytes or of a PIL image.

    Args:
        item: What the caller handed over.
        item_bytes: The largest result allowed, in bytes.

    Raises:
        Unsendable: It is none of these, or cannot be read, or is empty, or is too large.
        OSError: Nothing can be read at present, such as for want of open files.
    """
    if isinstance(item, (bytes, bytearray, memoryview)):
        data = bytes(item)
    elif isinstance(item, (str, os.PathLike)):
        data = _read(item, item_bytes)
    elif is_pil_image(item):
        data = _encode_pil(item)
    else:
        raise Unsendable(f"expected a path, bytes or a PIL image, got {type(item).__name__}")
    if not data:
        raise Unsendable("is empty (0 bytes)")
    return _checked(data, item_bytes)


def harmless_text() -> bytes:
    """Returns a text that any server can encode, another one each time, so that no cache answers in its place."""
    return b"%d" % random.getrandbits(63)


def harmless_image() -> bytes:
    """Returns an image, a grey PNG of 16x16 pixels, that any server can encode; another one each time."""
    rows = b"".join(b"\0" + random.randbytes(16) for _ in range(16))  # noqa: S311 - pixels, not a secret
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def is_pil_image(item: object) -> bool:
    """Tells a PIL image by its looks, so that Pillow need not be installed."""
    return hasattr(item, "save") and hasattr(item, "mode") and hasattr(item, "size")


def _checked(data: bytes, item_bytes: int) -> bytes:
    if len(data) > item_bytes:
        raise Unsendable(too_large(item_bytes))
    return data


def too_large(item_bytes: int) -> str:
    """Returns the reason of an item of more bytes than that."""
    return f"is larger than {item_bytes:,} bytes; raise Limits.item_bytes (--item-bytes) to send it"


def _read(path: str | os.PathLike[Any], item_bytes: int) -> bytes:
    """Returns a file's bytes, or one more than `item_bytes` of a larger one."""
    name = os.fsdecode(path)
    if is_remote(name):
        return _fetch(RemotePath(name), item_bytes)
    try:
        # Not to wait for the writer of a pipe that has none. Opened once, and not looked at before: on a network disk
        # each look is a round trip.
        handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
            if stat.S_ISREG(status.st_mode):
                return _all_of(handle, item_bytes + 1, status.st_size + 1)
            return _all_of_a_stream(handle, item_bytes + 1)
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise Unsendable(f"{error.strerror}{_why_absent(name)}") from error
    except OSError as error:
        if is_of_all(error):
            raise
        hint = "; images in base64 are read from a .tsv, id<TAB>base64" if error.errno == errno.ENAMETOOLONG else ""
        raise Unsendable(f"{error.strerror or error}{hint}") from error
    except ValueError as error:  # a NUL in the path
        raise Unsendable(f"is no path: {error}") from error


def _why_absent(path: str) -> str:
    """Returns what may be wrong with a path from a list that was written on Windows, or nothing."""
    if "\\" in path:
        return "; here folders end in /, not in \\"
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return "; its name is not UTF-8 (GBK?): convert the list that has it (iconv -f GB18030 -t UTF-8)"
    return ""


def _all_of(handle: int, most: int, at_once: int = 1024 * 1024) -> bytes:
    """Returns what is left of an open file, up to so many bytes."""
    parts: list[bytes] = []
    while most > 0 and (data := os.read(handle, min(most, at_once))):
        parts.append(data)
        most -= len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _all_of_a_stream(handle: int, most: int) -> bytes:
    try:
        first = os.read(handle, min(most, 64 * 1024))
    except BlockingIOError:
        first = None  # somebody is writing it
    if first == b"":
        raise Unsendable("is no file, and nobody writes to it")
    os.set_blocking(handle, True)
    # One byte past the limit tells a too large one without reading all of it; a device never ends.
    return (first or b"") + _all_of(handle, most - len(first or b""))


def _fetch(place: RemotePath, item_bytes: int) -> bytes:
    try:
        return place.read(item_bytes + 1)
    except BadFile as error:
        raise Unsendable(str(error)) from error
    except StoreError as error:
        if error.of_all:
            raise
        raise Unsendable(str(error)) from error


def _encode_pil(image: Any) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, object]
    if image.mode in _PNG_MODES:
        # Level 1 takes a third of the default's time for a tenth more bytes.
        container, options = "PNG", {"compress_level": 1}
    elif image.mode in _TIFF_MODES:
        # Unsaid, Pillow takes the compression of the file that the image came from, which may be lossy.
        container, options = "TIFF", {"compression": "raw"}
    else:
        raise Unsendable(f"PIL mode {image.mode!r} is not supported; hand over image.convert('RGB')")
    try:
        # A colour profile does not enter cn_clip's transform, and may outweigh the pixels.
        image.save(buffer, format=container, icc_profile=None, **options)
    # Pillow loads lazily: a broken file comes up only here, as whatever its decoder happens to raise.
    except Exception as error:
        raise Unsendable(f"PIL cannot read or write it: {str(error) or type(error).__name__}") from error
    return buffer.getvalue()


def require_many(kind: str, items: object) -> None:
    """Raises TypeError for a single item, which would otherwise be taken apart into characters or bytes."""
    single = isinstance(items, (str, bytes, bytearray, memoryview, os.PathLike)) or is_pil_image(items)
    if single or not isinstance(items, Iterable):
        raise TypeError(f"expected many {kind}s, got one {type(items).__name__}; put it in a list: [{kind}]")
