"""Which files go to the card: JPEGs of the everyday kinds, judged without decoding them."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

__all__ = ["size_for_card"]

_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
# Start Of Frame of the other kinds (extended, lossless, arithmetic), Define Number of Lines, hierarchical JPEG.
_ODD = frozenset({0xC1, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xDC, 0xDE, 0xDF})
_SCAN, _END = 0xDA, 0xD9

# Encoders write progressive JPEGs in about ten scans; each one more is a pass over the whole picture.
_MOST_SCANS = 32

# In a scan's data: what is neither a stuffed byte nor a restart, nor a fill byte. It begins with one certain byte, for
# which alone Python searches fast.
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")

# Chroma has one sample for so many of luma, across and down.
_SAMPLINGS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2)})


def size_for_card(encoded: bytes, formats: Sequence[str]) -> tuple[int, int] | None:
    """Gives the width and height of a JPEG that the card may decode; None for all else.

    It is one that Pillow opens as RGB or L, and refuses neither for its size nor for its header; baseline or
    progressive with Huffman codes, of few scans; in YCbCr or grey, with a usual sampling; that ends where it says, and
    is long enough to hold so many pixels.

    Args:
        encoded: the file.
        formats: Pillow's names of those that are decoded.
    """
    if not encoded.startswith(b"\xff\xd8"):
        return None
    try:
        with Image.open(io.BytesIO(encoded), formats=tuple(formats)) as image:
            # An MPO is of a class of its own.
            if type(image) is not JpegImageFile or image.mode not in ("RGB", "L") or not _is_plain(image):
                return None
            size = image.size
            kind = _frame_of_whole(encoded)
    except Exception:  # whatever is wrong, the exact way says it
        return None
    blocks = _blocks(image)
    # A block has a code for its mean and, if it is not in scans of its own, one for its end: a bit each at least.
    return size if kind and len(encoded) * 8 >= blocks * (2 if kind == _BASELINE else 1) else None


def _is_plain(image: JpegImageFile) -> bool:
    """Whether it is grey, or YCbCr by libjpeg's rules and sampled as usual."""
    samplings = [(across, down) for _, across, down, _ in image.layer]
    if image.mode == "L":
        return len(samplings) == 1
    names = [name for name, *_ in image.layer]
    said = image.info.get("adobe_transform") if "adobe" in image.info else None
    is_ycc = said == 1 or (said is None and ("jfif" in image.info or names == [1, 2, 3]))
    return is_ycc and samplings[0] in _SAMPLINGS and samplings[1:] == [(1, 1), (1, 1)]


def _blocks(image: JpegImageFile) -> int:
    """How many blocks of 8 x 8 samples a file of its size has at least."""
    blocks = -(-image.width // 8) * -(-image.height // 8)
    if image.mode == "L":
        return blocks
    _, across, down, _ = image.layer[0]
    return blocks + 2 * -(-image.width // (8 * across)) * -(-image.height // (8 * down))


def _frame_of_whole(encoded: bytes) -> int | None:
    """The kind of a JPEG's one frame, if its markers lead from its start to its end; None if they do not."""
    at, frame, scans = 2, None, 0
    while at + 4 <= len(encoded) or encoded[at : at + 2] == b"\xff\xd9":
        if encoded[at] != 0xFF:
            return None
        marker = encoded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _END:
            return frame if scans else None
        if marker in _ODD or marker < 0xC0 or (marker in (_BASELINE, _PROGRESSIVE) and frame is not None):
            return None
        if marker in (_BASELINE, _PROGRESSIVE):
            frame = marker
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
        if marker == _SCAN:
            scans += 1
            found = _MARKER.search(encoded, at)
            if frame is None or scans > _MOST_SCANS or found is None:
                return None
            at = found.start()
    return None
