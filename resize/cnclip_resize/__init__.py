"""Pillow's bicubic resize of whole pictures to a square, faster, and equal to the byte to that of the installed Pillow.

What is not known to be equal is left to Pillow: `resize` then gives None.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from functools import cache

import PIL
from PIL import Image, _imaging

try:
    from cnclip_resize import _native
except ImportError:  # The wheel was built without a C compiler, or for another processor.
    _native = None  # type: ignore[assignment]

__all__ = ["resize", "resizer"]


def _never(wide: int, high: int, side: int) -> bool:
    return False


def _hundred_times_as_high(wide: int, high: int, side: int) -> bool:
    return high > 100 * wide and high > side


def _shrunk_more_in_height(wide: int, high: int, side: int) -> bool:
    return high > side and high - side > 2 * (wide - side)


# Pillows that tests found equal, by their first two numbers, and which shapes they shrink in height first: the rounding
# between the two passes is seen in the bytes.
_KNOWN: dict[str, Callable[[int, int, int], bool]] = {
    **dict.fromkeys(("11.0", "11.1", "11.2", "11.3", "12.0", "12.1"), _never),
    **dict.fromkeys(("12.2", "12.3"), _hundred_times_as_high),
    "13.0": _shrunk_more_in_height,
}

# Bytes of a pixel in Pillow's memory.
_CHANNELS = {"RGB": 4, "L": 1}

# Their plugins leave mode and size as they were when a file was opened, once its pixels are read. None: made in memory.
_FORMATS = frozenset({"AVIF", "BMP", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "WEBP", None})

# Shapes that are tried once, on this machine: larger and smaller, and on both sides of every rule above.
_TRIED = ((640, 480), (50, 901), (901, 50), (33, 17), (3, 2), (3, 299), (3, 301), (40, 47), (40, 49), (448, 448))
_TRIED_SIDE = 32


def resize(image: Image.Image, side: int) -> bytes | None:
    """Resizes a whole picture as `image.resize((side, side), BICUBIC).convert("RGB")` does, and reads it for that.

    Args:
        image: any; of modes RGB and L, in one block of memory (up to 16 MB), is what is resized here.
        side: of the square, in pixels.

    Returns:
        The square's `side * side * 3` bytes, row by row, red, green and blue; None where Pillow has to do it.

    Raises:
        Exception: whatever Pillow raises while it reads the picture.
    """
    return None if _why_pillow() else _resize(image, side)


def resizer() -> str:
    """Says who resizes, for logs: `the compiled module (AVX2), as Pillow 13.0.0 does`, or Pillow and why."""
    why = _why_pillow()
    pillow = f"Pillow {PIL.__version__}"
    return f"{pillow}: {why}" if why else f"the compiled module (AVX2), as {pillow} does"


@cache
def _why_pillow() -> str | None:
    """Why Pillow resizes all; None if it does not."""
    if os.environ.get("CNCLIP_RESIZE") == "pillow":
        return "CNCLIP_RESIZE=pillow"
    if _native is None:
        return "cnclip_resize was installed without its compiled module"
    if _native.BEST != _native.AVX2:
        return "this processor has no AVX2"
    if _pillow() not in _KNOWN:
        return "the compiled module does not know this version"
    if not all(_equal(mode, size) for mode in _CHANNELS for size in _TRIED):
        return "this build of it gives other bytes than the compiled module"
    return None


def _pillow() -> str:
    """The installed Pillow's first two numbers."""
    numbers = re.fullmatch(r"(\d+\.\d+)(\.\d+)*", PIL.__version__)
    return numbers[1] if numbers else ""


def _equal(mode: str, size: tuple[int, int]) -> bool:
    """Whether a picture of noise comes out as from Pillow."""
    wide, high = size
    noise = random.Random(wide).randbytes(wide * high * len(mode))  # noqa: S311
    image = Image.frombytes(mode, size, noise)
    expected = image.resize((_TRIED_SIDE, _TRIED_SIDE), Image.Resampling.BICUBIC).convert("RGB").tobytes()
    return _resize(image, _TRIED_SIDE) == expected


def _resize(image: Image.Image, side: int) -> bytes | None:
    mode, size = image.mode, image.size
    # Pillow's export of memory that is mapped from a file, or that somebody else lent, is not for all versions.
    if mode not in _CHANNELS or image.format not in _FORMATS:
        return None
    image.load()
    if (image.mode, image.size) != (mode, size) or image.readonly or _imaging.get_alignment() != 1:
        return None
    (wide, high), channels = size, _CHANNELS[mode]
    schema = array = copied = None
    if _pillow() in ("11.0", "11.1", "11.2"):  # Their exports are missing, or young.
        copied = image.tobytes("raw", "RGBX" if mode == "RGB" else mode)
    else:
        try:
            schema, array = image.__arrow_c_array__()
        except ValueError:  # Several blocks of memory.
            return None
    vertical_first = _KNOWN[_pillow()](wide, high, side)
    return _native.resize(schema, array, copied, channels, wide, high, side, vertical_first, _native.BEST)
