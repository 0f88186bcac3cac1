"""From an encoded image to the pixels of the image encoder, equal to the byte to cn_clip's transform.

The server's preprocessing and clients that prepare by themselves decode with this code. It is copied beside the
`model.py` of the preprocessing, as one file, with `cnclip_machine`: so it imports that, the standard library, numpy and
Pillow alone, and `cnclip_resize` where that is installed.
"""

from __future__ import annotations

import errno
import io
import mmap
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cnclip_machine import usable_cores, usable_memory
from PIL import EpsImagePlugin, Image, __version__
from PIL.JpegImagePlugin import JpegImageFile

try:
    from cnclip_resize import resize, resizer
except ImportError:  # A server without it: Pillow gives the same bytes, and takes longer.

    def resize(image: Image.Image, side: int, *, streamed: bool = True) -> bytes | None:
        """Leaves all to Pillow."""
        return None

    def resizer() -> str:
        """Says why."""
        return f"Pillow {__version__}: cnclip_resize is not installed"


__all__ = [
    "BadImage",
    "decode_pixels",
    "decoding_memory",
    "decoding_threads",
    "image_formats",
    "limit_pixels",
    "reduce_scale",
    "resizer",
]

# Reduced decoding keeps this many times the resolution: with one, features were off 20 times further.
_REDUCED_SIDES = 2

# A file of some kilobytes can keep a processor busy for hours: Pillow reads some formats byte by byte in Python, and
# takes as many parts of a TIFF as it lists. So a picture has a processor's time by its size: of 178 million pixels, the
# most by default, 59 s. As JPEG 2000, the slowest of the common formats, a pixel takes 0.08 to 0.5 µs, as PNG 0.03.
_SECONDS, _SECONDS_A_PIXEL = 5.0, 3e-7
# A further pass over the whole picture each, whatever is in it. Encoders write progressive JPEGs in about ten.
_MOST_SCANS = 100
_MOST_COMMENTS = 1000
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, 0xD8})
_STRIPS, _TILES = 273, 324  # TIFF's tags of where they are
# In a scan's data: what is neither a stuffed byte nor a restart, nor a fill byte.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

_OBJECT_ADDRESS = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")

# What Pillow decodes by itself and the C libraries that it brings along, in this process and nowhere else. Left out are
# EPS, for which it starts Ghostscript; IPTC, which holds a file of any format, EPS too; and what it knows by name alone
# or decodes with the help of other packages or of Windows (BUFR, FPX, GRIB, HDF5, MIC, MPEG, WMF).
# fmt: off
_FORMATS = frozenset({
    "AVIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP",  # by libavif, libjpeg-turbo, OpenJPEG, zlib, libtiff and libwebp
    "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO", "IM", "IMT", "MCIDAS",
    "MSP", "PCD", "PCX", "PIXAR", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "XBM", "XPM", "XVTHUMB",
})
# fmt: on
_START_PROGRAMS = frozenset({"EPS", "IPTC"})

# Whatever is opened, and however deep inside another file: Ghostscript is not there.
EpsImagePlugin.gs_binary = False

# Pictures that are decoded at once may take so much of the memory, all together; see `decoding_memory`.
_SHARE_OF_MEMORY = 0.5
# Who has less left than this has no memory to decode in, however small a picture is.
_LEAST_MEMORY = 16 * 1024 * 1024
# And who has this, has some: a picture that wants more, or says so, may never find it here.
_AMPLE_MEMORY = 256 * 1024 * 1024
# A folder that all processes of a server see, Triton's own ones among them. Whoever locks it is alone.
_SHARED_FOLDER = Path("/dev/shm")  # noqa: S108


class BadImage(ValueError):
    """The bytes are no image that is decoded here; the message says why, without paths: it goes to clients.

    Attributes:
        details: All that Pillow said, for the server's log.
    """

    def __init__(self, reason: str, details: str | None = None) -> None:
        self.details = details or reason
        super().__init__(reason)


class _Patient(io.BytesIO):
    """A file whose reader has so much of its thread's processor time, and no more.

    Pillow asks for a file piece by piece while it decodes, in C and in Python: that is where it can be stopped. What it
    does between two pieces is bounded by the size of a piece, or of the picture.
    """

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self._began, self._most = time.thread_time(), _SECONDS
        self.refusal: BadImage | None = None

    def allow(self, pixels: int) -> None:
        """Gives the time of a picture of so many pixels, now that they are known."""
        self._most = _SECONDS + _SECONDS_A_PIXEL * pixels

    def read(self, size: int | None = -1, /) -> bytes:
        self._require_time()
        return super().read(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        self._require_time()
        return super().readline(size)

    def _require_time(self) -> None:
        if time.thread_time() - self._began > self._most:
            self.refusal = BadImage(f"takes more than {self._most:.3g} s to decode")
            raise self.refusal


@cache
def image_formats(more: str = "") -> tuple[str, ...]:
    """The formats that are decoded, in the order in which Pillow tries them.

    Args:
        more: Pillow's names of further formats, such as "MPEG,WMF"; a package that adds one to Pillow has to be loaded.

    Raises:
        ValueError: one of them is unknown to this Pillow, or starts a program.
    """
    Image.preinit()
    Image.init()
    wanted = {name.strip().upper() for name in more.split(",") if name.strip()}
    further = f"name some of {', '.join(sorted(set(Image.OPEN) - _FORMATS - _START_PROGRAMS))}"
    if refused := wanted & _START_PROGRAMS:
        raise ValueError(
            f"images of the format {min(refused)} are not decoded, since Pillow starts a program for them: {further}"
        )
    if unknown := wanted - set(Image.OPEN):
        raise ValueError(f"this Pillow has no format {min(unknown)}: {further}")
    return tuple(name for name in Image.ID if name in _FORMATS | wanted)


def decoding_threads(instances: int = 1) -> int:
    """As many threads as keep this process's share of the cores busy, those that its container may use.

    Args:
        instances: processes that share the cores.
    """
    return max(1, usable_cores() // instances)


def decoding_memory(workers: int) -> int:
    """Bytes that a picture may take for a worker to decode it beside others; those of larger ones are decoded in turn.

    All workers' together are half of the memory of the machine, or of its container. With one larger picture more
    (`limit_pixels` bounds that), it is all that decoding takes at any moment.

    Args:
        workers: threads of all processes that decode.
    """
    return int(usable_memory() * _SHARE_OF_MEMORY / workers)


def _bytes_a_pixel(image: Image.Image) -> int:
    """The most that a pixel takes while it is decoded and resized, as it was seen of noise, by Pillow 11.3 to 13."""
    bands = len(image.getbands())
    if image.format == "JPEG2000":  # OpenJPEG holds each band in 32 bits
        return 7 * bands
    if image.format in ("WEBP", "AVIF"):
        return 21 if image.format == "WEBP" else 14
    if isinstance(image, JpegImageFile):  # coefficients of all that are progressive
        return 3 * bands
    if image.mode in ("1", "L", "P"):
        return 1
    return 9 if image.mode[-1] in "Aa" else 5  # what has alpha is multiplied with it in a copy


def _is_memory(size: int) -> bool:
    """Whether so many bytes could be had now; none of them is touched."""
    try:
        mmap.mmap(-1, size).close()
    except OSError:
        return False
    return True


@contextmanager
def _in_turn(image: Image.Image, memory: int) -> Iterator[None]:
    """Waits, before a picture that takes more bytes, until no thread of any process here decodes such a one.

    The lock is the kernel's: a process that dies gives it back.
    """
    if not memory or image.width * image.height * _bytes_a_pixel(image) <= memory:
        yield
        return
    import fcntl  # where there is one: clients of other systems ask for no bound

    try:
        folder = os.open(_SHARED_FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        folder = os.open(tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def limit_pixels(max_image_pixels: int) -> None:
    """Has Pillow refuse larger images from now on, before it decodes them, in this process.

    Args:
        max_image_pixels: width times height; an odd number counts as the even one below it.
    """
    Image.MAX_IMAGE_PIXELS = max_image_pixels // 2  # Pillow warns above this, and refuses above its double


def reduce_scale(image: Image.Image, resolution: int) -> None:
    """Has a JPEG that is not yet read decoded at 1/2, 1/4 or 1/8 of its size, whichever suffices; others stay.

    Args:
        image: just opened.
        resolution: of the encoder; both sides stay at least twice as long.
    """
    image.draft(None, (_REDUCED_SIDES * resolution, _REDUCED_SIDES * resolution))


def _require_quick(image: Image.Image, encoded: bytes) -> None:
    """Refuses a picture that would keep its decoder busy for long without another look at the file.

    Args:
        image: just opened.
        encoded: its file.

    Raises:
        BadImage: it is a JPEG of too many scans, or a plain PPM of too many comments, each of which costs a copy.
    """
    if any(part[0] == "ppm_plain" for part in getattr(image, "tile", ())) and encoded.count(b"#") > _MOST_COMMENTS:
        raise BadImage(f"more than {_MOST_COMMENTS} comments")
    if isinstance(image, JpegImageFile):
        scans = _scans(encoded)
    elif image.format == "TIFF" and "jpeg" in image.info.get("compression", ""):
        parts = image.tag_v2.get(_TILES) or image.tag_v2.get(_STRIPS) or (0,)  # type: ignore[attr-defined]
        scans = encoded.count(b"\xff\xda") // len(parts)
    elif image.format == "BLP":
        scans = encoded.count(b"\xff\xda")
    else:
        return
    if scans > _MOST_SCANS:
        raise BadImage(f"a JPEG of more than {_MOST_SCANS} scans")


def _scans(encoded: bytes) -> int:
    """How many scans a JPEG has; those far beyond the most are not counted."""
    scans = at = 0
    while scans <= _MOST_SCANS and (found := _MARKER.search(encoded, at)) is not None:
        kind, at = encoded[found.start() + 1], found.end()
        if kind == _END_OF_IMAGE:
            break
        scans += kind == _START_OF_SCAN
        if kind not in _WITHOUT_LENGTH:
            at += int.from_bytes(encoded[at : at + 2], "big")
    return scans


def decode_pixels(
    encoded: bytes,
    resolution: int,
    *,
    reduced: bool = False,
    formats: tuple[str, ...] | None = None,
    compiled: bool = True,
    streamed: bool = True,
    memory: int = 0,
) -> npt.NDArray[np.uint8]:
    """Decodes an image and resizes it as `cn_clip.clip.image_transform` does, up to its `ToTensor`.

    The order is cn_clip's: bicubic resize to a square in the image's own mode, then conversion to RGB. The other
    order gives other pixels for palette, alpha, CMYK and 16-bit images. EXIF orientation is ignored, and of an
    animation the first frame is taken, as there.

    Pillow warns of odd metadata; who decodes in threads turns that off once for the whole process.

    Args:
        encoded: the image file's bytes.
        resolution: side of the square, in pixels.
        reduced: whether to decode large JPEGs by `reduce_scale`: twice as fast, and near to cn_clip's pixels instead of
            equal.
        formats: those of `image_formats()` unless given.
        compiled: whether `cnclip_resize` may resize, if it is there; Pillow gives the same bytes.
        streamed: whether it may take a JPEG's rows as they are decoded; the same bytes again.
        memory: bytes above which pictures are decoded one after another, by all processes of this machine, from
            `decoding_memory`; 0 for no such bound.

    Returns:
        uint8 pixels of shape `[resolution, resolution, 3]`, RGB.

    Raises:
        BadImage: the bytes are no image of these formats, or a broken, truncated or oversized one, or one that takes
            too long to decode.
        MemoryError: there is no memory to decode it in, which says nothing of the image.
        OSError: there is none of the files that a process may have open left, which says nothing of it either.
    """
    if not encoded:
        raise BadImage("0 bytes")
    file, memory_taken = _Patient(encoded), _LEAST_MEMORY
    try:
        with Image.open(file, formats=formats or image_formats()) as image:
            file.allow(image.width * image.height)
            memory_taken += image.width * image.height * _bytes_a_pixel(image)
            _require_quick(image, encoded)
            if reduced:
                reduce_scale(image, resolution)
            with _in_turn(image, memory):
                if compiled and (square := resize(image, resolution, streamed=streamed)) is not None:
                    return np.frombuffer(square, np.uint8).reshape(resolution, resolution, 3)
                resized = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
        return np.asarray(resized.convert("RGB"))
    except BadImage:
        raise
    # Pillow's decoders raise nearly anything on hostile files: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        if file.refusal is not None:  # of what some make an error of their own
            raise file.refusal from error
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise OSError(error.errno, error.strerror) from error
        # The C libraries know no want of memory: to them it is a broken file. And where there is memory, a MemoryError
        # is of a file that claims more than it holds: asked for again, it would hold up all others for ever.
        if not _is_memory(min(memory_taken, _AMPLE_MEMORY)):
            raise MemoryError("there is no memory to decode images in") from error
        name, said = type(error).__name__, _OBJECT_ADDRESS.sub("", str(error)).strip()
        # What names a file, or the system's own words, are the server's affair.
        private = re.search(r"[/\\\n]", said) or getattr(error, "errno", None) is not None
        reason = f"{name}: {said}" if said and not private else name
        raise BadImage(reason, f"{name}: {said}" if said else name) from error
