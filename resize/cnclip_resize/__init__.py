"""Pillow's bicubic resize of whole pictures to a square, faster, and equal to the byte to that of the installed Pillow.

JPEGs are decoded by the libjpeg that Pillow is linked with, and resized row by row meanwhile: no whole picture is
made. What is not known to be equal is left to Pillow: `resize` then gives None.
"""

from __future__ import annotations

import io
import os
import random
import re
from collections.abc import Callable, Iterator
from functools import cache

import PIL
from PIL import Image, _imaging
from PIL.JpegImagePlugin import JpegImageFile

try:
    from cnclip_resize import _native
except ImportError:  # The wheel was built without a C compiler, or for another processor.
    _native = None  # type: ignore[assignment]

__all__ = ["TRIED", "TRIED_SIDE", "order_of_passes", "resize", "resizer"]


def _never(wide: int, high: int, side: int) -> bool:
    return False


def _hundred_times_as_high(wide: int, high: int, side: int) -> bool:
    return high > 100 * wide and high > side


def _shrunk_more_in_height(wide: int, high: int, side: int) -> bool:
    return high > side and high - side > 2 * (wide - side)


# Pillows that tests found equal, by their first two numbers, and which shapes they shrink in height first: the rounding
# between the two passes is seen in the bytes.
_KNOWN: dict[str, Callable[[int, int, int], bool]] = {
    **dict.fromkeys(("11.3", "12.0", "12.1"), _never),
    **dict.fromkeys(("12.2", "12.3"), _hundred_times_as_high),
    "13.0": _shrunk_more_in_height,
}

# Bytes of a pixel in Pillow's memory.
_CHANNELS = {"RGB": 4, "L": 1}

# Formats whose mode and size are the same before and after the pixels are read. None: an image made in memory.
_FORMATS = frozenset({"AVIF", "BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "WEBP", None})

# Pictures of several blocks of memory are cut into strips of so many bytes, which stay in a processor's cache.
_STRIP_BYTES = 1 << 20

# Shapes that are tried once, on this machine, by all that resizes as Pillow does: larger and smaller, and on both sides
# of every rule above.
TRIED = ((640, 480), (50, 901), (901, 50), (33, 17), (3, 2), (3, 299), (3, 301), (40, 47), (40, 49), (448, 448))
TRIED_SIDE = 32

# JPEGs that are tried once: mode, size, how they are written, and the scale at which they are decoded.
_TRIED_JPEGS: tuple[tuple[str, tuple[int, int], dict[str, int], int], ...] = (
    ("RGB", (203, 97), {"quality": 75}, 1),
    ("RGB", (97, 203), {"quality": 95, "subsampling": 0}, 1),
    ("RGB", (130, 70), {"quality": 90, "subsampling": 1, "restart_marker_blocks": 3}, 1),
    ("RGB", (77, 211), {"quality": 50, "progressive": 1}, 1),
    ("RGB", (301, 203), {"quality": 75}, 2),
    ("L", (203, 97), {"quality": 75}, 1),
    ("L", (97, 301), {"quality": 75, "progressive": 1}, 8),
)


def resize(image: Image.Image, side: int, *, streamed: bool = True) -> bytes | None:
    """Resizes a whole picture as `image.resize((side, side), BICUBIC).convert("RGB")` does, and reads it for that.

    Args:
        image: any; of modes RGB and L is what is resized here.
        side: of the square, in pixels.
        streamed: whether the rows of a JPEG that is not yet read, and whose file is a `BytesIO`, may go straight from
            libjpeg into the resize. The image is then left unread.

    Returns:
        The square's `side * side * 3` bytes, row by row, red, green and blue; None where Pillow has to do it.

    Raises:
        Exception: whatever Pillow raises while it reads the picture.
    """
    if _why_pillow():
        return None
    if streamed and not _why_whole() and (square := _jpeg(image, side)) is not None:
        return square
    return _resize(image, side)


def resizer() -> str:
    """Says who resizes, for logs: `the compiled module (AVX2), as Pillow 13.0.0 does; ...`, or Pillow and why."""
    pillow = f"Pillow {PIL.__version__}"
    if why := _why_pillow():
        return f"{pillow}: {why}"
    why = _why_whole()
    jpegs = f"JPEGs once Pillow has decoded them: {why}" if why else "JPEGs as its libjpeg decodes them"
    path = {_native.AVX2: "AVX2", _native.VNNI: "AVX-512 VNNI"}[_native.BEST]
    return f"the compiled module ({path}), as {pillow} does; {jpegs}"


def order_of_passes() -> Callable[[int, int, int], bool] | None:
    """Tells which pictures the installed Pillow shrinks in height first, for others who do as it does.

    Returns:
        What says so of a picture by its width, its height and the square's side; None where that is not known.
    """
    return _KNOWN.get(_pillow())


@cache
def _why_pillow() -> str | None:
    """Why Pillow resizes all; None if it does not."""
    if os.environ.get("CNCLIP_RESIZE") == "pillow":
        return "CNCLIP_RESIZE=pillow"
    if _native is None:
        return "cnclip_resize was installed without its compiled module"
    if _native.BEST == _native.SCALAR:
        return "this processor has no AVX2"
    if _pillow() not in _KNOWN:
        return "the compiled module does not know this version"
    if not all(_equal(mode, size) for mode in _CHANNELS for size in TRIED):
        return "this build of it gives other bytes than the compiled module"
    return None


@cache
def _why_whole() -> str | None:
    """Why Pillow decodes JPEGs before they are resized; None if it does not."""
    if os.environ.get("CNCLIP_RESIZE") == "whole":
        return "CNCLIP_RESIZE=whole"
    if why := _native.find_jpeg(_imaging.__file__):
        return why
    if not all(_equal_jpeg(*one) for one in _TRIED_JPEGS):
        return "this build of its libjpeg gives other bytes"
    return None


def _pillow() -> str:
    """The installed Pillow's first two numbers."""
    numbers = re.fullmatch(r"(\d+\.\d+)(\.\d+)*", PIL.__version__)
    return numbers[1] if numbers else ""


def _noise(mode: str, size: tuple[int, int]) -> Image.Image:
    wide, high = size
    return Image.frombytes(mode, size, random.Random(wide).randbytes(wide * high * len(mode)))  # noqa: S311


def _pillows(image: Image.Image, side: int) -> bytes:
    return image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB").tobytes()


def _equal(mode: str, size: tuple[int, int]) -> bool:
    """Whether a picture of noise comes out as from Pillow."""
    image = _noise(mode, size)
    return _resize(image, TRIED_SIDE) == _pillows(image, TRIED_SIDE)


def _equal_jpeg(mode: str, size: tuple[int, int], options: dict[str, int], scale: int) -> bool:
    """Whether a JPEG comes out as from Pillow. Noise over a few large spots, so that its colours count, too."""
    spots = _noise(mode, (5, 4)).resize(size, Image.Resampling.BILINEAR)
    file = io.BytesIO()
    Image.blend(spots, _noise(mode, size), 0.2).save(file, "JPEG", **options)
    results = []
    for one in (_jpeg, _pillows):
        file.seek(0)
        with JpegImageFile(file) as image:  # not by Image.open, which may have been told to refuse so many pixels
            if scale > 1:
                image.draft(None, (size[0] // scale, size[1] // scale))
            results.append(one(image, TRIED_SIDE))
    return results[0] == results[1]


def _jpeg(image: Image.Image, side: int) -> bytes | None:
    """Decodes and resizes a JPEG of which Pillow has read the header alone, and has nothing to say."""
    if type(image) is not JpegImageFile or not isinstance(image.fp, io.BytesIO) or image.mode not in _CHANNELS:
        return None
    scale = image.decoderconfig[0] if image.decoderconfig else 1
    if image.decoderconfig not in ((), (scale, 0)) or image.tile != [
        ("jpeg", (0, 0, *image.size), 0, (image.mode, ""))
    ]:
        return None
    (wide, high), channels = image.size, _CHANNELS[image.mode]
    vertical_first = _KNOWN[_pillow()](wide, high, side)
    return _native.jpeg(image.fp.getvalue(), channels, wide, high, scale, side, vertical_first, _native.BEST)


def _resize(image: Image.Image, side: int) -> bytes | None:
    mode, size = image.mode, image.size
    # Pillow's export of memory that is mapped from a file, or that somebody else lent, is not for all versions.
    if mode not in _CHANNELS or image.format not in _FORMATS:
        return None
    image.load()
    if (image.mode, image.size) != (mode, size) or image.readonly or _imaging.get_alignment() != 1:
        return None
    (wide, high), channels = size, _CHANNELS[mode]
    vertical_first = _KNOWN[_pillow()](wide, high, side)
    try:
        schema, array = image.__arrow_c_array__()
    except ValueError:  # Several blocks of memory.
        strips = _strips(image, max(8, _STRIP_BYTES // (wide * channels) // 8 * 8))
        try:
            return _native.strips(strips, channels, wide, high, side, vertical_first, _native.BEST)
        except ValueError:  # A strip has several, too.
            return None
    return _native.resize(schema, array, channels, wide, high, side, vertical_first, _native.BEST)


def _strips(image: Image.Image, rows: int) -> Iterator[tuple[object, object, int]]:
    """Gives copies of so many of a picture's rows at a time, as Arrow's schema and array, and how many they are."""
    wide, high = image.size
    for top in range(0, high, rows):
        bottom = min(top + rows, high)
        strip = image.im.crop((0, top, wide, bottom))
        yield strip.__arrow_c_schema__(), strip.__arrow_c_array__(), bottom - top
