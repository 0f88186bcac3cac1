"""What encoders and servers are given: pixels, token ids, and JPEGs of the sizes that users have."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from cnclip_builder.tensors import Tower

__all__ = ["BATCH_SIZES", "LENGTHS", "SIZES", "batches", "jpegs", "pixels", "token_ids"]

BATCH_SIZES = {"image": (1, 8, 32, 64), "text": (1, 8, 32, 64, 128)}
"""By the encoder; the largest are the largest that are served."""

LENGTHS = (24, 40, 52)
"""Tokens of the texts that are measured: a long caption, and the two lengths to which a GPU's texts are padded."""

SIZES = {"640x480": (640, 480), "1080p": (1920, 1080)}
"""Width and height of the JPEGs."""

_VARIANTS = 4
_QUALITY = 90
# cn_clip's vocabulary: [CLS], [SEP], and Chinese characters.
_CLS, _SEP, _CHARACTERS = 101, 102, (670, 7000)


def jpegs(size: tuple[int, int]) -> list[bytes]:
    """Makes some JPEGs of a width and height out of the builder's photograph, each another part of it."""
    from cnclip_builder.parity.samples import sample_images
    from PIL import Image

    with Image.open(io.BytesIO(sample_images()["photo.jpg"])) as image:
        photo = image.convert("RGB")
    made = []
    for number in range(_VARIANTS):
        part = photo.crop((4 * number, 3 * number, photo.width - 4, photo.height - 3))
        buffer = io.BytesIO()
        part.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_QUALITY)
        made.append(buffer.getvalue())
    return made


def pixels(count: int, resolution: int) -> npt.NDArray[np.uint8]:
    """Random pixels, uint8 `[count, resolution, resolution, 3]`."""
    return np.random.default_rng(0).integers(0, 256, (count, resolution, resolution, 3), dtype=np.uint8)


def token_ids(count: int, length: int) -> npt.NDArray[np.int32]:
    """Texts of random characters, all as long, int32 `[count, length]`."""
    ids = np.random.default_rng(0).integers(*_CHARACTERS, (count, length), dtype=np.int32)
    ids[:, 0], ids[:, -1] = _CLS, _SEP
    return ids


def batches(tower: Tower, resolution: int) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yields all that an encoder is timed with: the length, 0 of images, and rows of each batch size."""
    for length, size in product((0,) if tower == "image" else LENGTHS, BATCH_SIZES[tower]):
        yield length, token_ids(size, length) if length else pixels(size, resolution)
