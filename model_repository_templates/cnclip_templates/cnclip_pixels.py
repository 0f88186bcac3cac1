"""From an encoded image to the pixels of the image encoder, equal to the byte to cn_clip's transform."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

# Reduced decoding keeps this many times the resolution: with one, features were off 20 times further.
_REDUCED_SIDES = 2

_OBJECT_ADDRESS = re.compile(r"<[\w.]+ object at 0x[0-9a-f]+>")


class BadImage(ValueError):
    """The bytes are no image that Pillow decodes; the message says why."""


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


def decode_pixels(encoded: bytes, resolution: int, *, reduced: bool = False) -> npt.NDArray[np.uint8]:
    """Decodes an image and resizes it as `cn_clip.clip.image_transform` does, up to its `ToTensor`.

    The order is cn_clip's: bicubic resize to a square in the image's own mode, then conversion to RGB. The other
    order gives other pixels for palette, alpha, CMYK and 16-bit images. EXIF orientation is ignored, and of an
    animation the first frame is taken, as there.

    Args:
        encoded: the image file's bytes, of any format that the installed Pillow reads.
        resolution: side of the square, in pixels.
        reduced: whether to decode large JPEGs by `reduce_scale`: twice as fast, and near to cn_clip's pixels instead of
            equal.

    Returns:
        uint8 pixels of shape `[resolution, resolution, 3]`, RGB.

    Raises:
        BadImage: the bytes are no image, or a broken, truncated or oversized one.
    """
    if not encoded:
        raise BadImage("0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the pixels are what counts
            with Image.open(io.BytesIO(encoded)) as image:
                if reduced:
                    reduce_scale(image, resolution)
                resized = image.resize((resolution, resolution), Image.Resampling.BICUBIC)
            return np.asarray(resized.convert("RGB"))
    # Pillow's decoders raise nearly anything on hostile files: OSError, SyntaxError, struct.error, MemoryError, ...
    except Exception as error:
        reason = _OBJECT_ADDRESS.sub("", str(error)).strip()
        raise BadImage(f"{type(error).__name__}: {reason}" if reason else type(error).__name__) from error
