"""Damaged images, by the thousand: each gives cn_clip's pixels or a reason, and costs neither process nor memory."""

from __future__ import annotations

import io
import random
import resource
import struct
import zlib
from collections.abc import Iterator

import pytest
from cnclip_builder.parity.samples import sample_images
from PIL import Image

from tests.templates.test_pixels import check

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
SEED = 20261124


def seeds(name: str) -> list[bytes]:
    """A few files of one format, of different modes and inner layouts."""
    photo = Image.open(io.BytesIO(sample_images()["photo.jpg"])).resize((97, 61))
    variants: dict[str, list[tuple[str, dict[str, object]]]] = {
        "JPEG": [("RGB", {}), ("L", {"progressive": True}), ("CMYK", {"quality": 20})],
        "PNG": [("RGBA", {}), ("P", {}), ("LA", {"compress_level": 0})],
        "WEBP": [("RGB", {"lossless": True}), ("RGBA", {"quality": 30})],
        "GIF": [("P", {}), ("L", {"interlace": 0})],
        "TIFF": [("RGB", {"compression": "tiff_lzw"}), ("CMYK", {}), ("1", {"compression": "group4"})],
    }
    files = []
    for mode, options in variants[name]:
        buffer = io.BytesIO()
        photo.convert(mode).save(buffer, name, **options)  # type: ignore[arg-type]
        files.append(buffer.getvalue())
    return files


def damaged(name: str, count: int, seed: int) -> Iterator[bytes]:
    """Files with bytes flipped, cut out, doubled, swapped with those of others, or missing from the end."""
    rng = random.Random(f"{name} {seed}")
    files = seeds(name)
    for _ in range(count):
        data = bytearray(rng.choice(files))
        for _ in range(rng.choice([1, 1, 2, 5, 20])):
            # Headers decide more than pixels do: half of the damage is done there.
            at = rng.randrange(min(len(data), 64) if rng.random() < 0.5 else len(data))
            kind = rng.randrange(5)
            if kind == 0:
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            elif kind == 1:
                del data[at : at + rng.randrange(1, 16)]
            elif kind == 2:
                data[at:at] = data[at : at + rng.randrange(1, 64)]
            elif kind == 3:
                other = rng.choice(files)
                start = rng.randrange(len(other))
                data[at : at + 8] = other[start : start + 8]
            else:
                del data[max(at, 1) :]
            if len(data) < 2:
                break
        yield bytes(data)


def with_right_checksums(png: bytes) -> bytes:
    """A damaged PNG whose chunks claim to be whole: without this nearly all are refused for their checksums."""
    out, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        length = min(int.from_bytes(png[at : at + 4], "big"), len(png) - at - 12)
        body = png[at + 4 : at + 8 + length]
        out += length.to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out)


@pytest.mark.parametrize("count", [1000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(name: str, count: int) -> None:
    accepted = [check(data, 32) for data in damaged(name, count, SEED)]
    if name == "PNG":
        accepted += [check(with_right_checksums(data), 32) for data in damaged(name, count, SEED + 1)]
    assert accepted.count(True) > 50
    assert accepted.count(False) > 50


@pytest.mark.parametrize("name", FORMATS)
def test_the_seeds_are_whole(name: str) -> None:
    assert all(check(data, 32) for data in seeds(name))


def test_memory_stays() -> None:
    """Files that fail half-way give back what they took."""
    files = [data for name in FORMATS for data in damaged(name, 40, SEED + 2)]
    for data in files:
        check(data, 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        for data in files:
            check(data, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_huge_image_costs_nothing_before_it_is_refused() -> None:
    """Headers that promise a gigapixel are refused by their promise, though the file keeps it."""
    width, height = 40_000, 20_000
    header = b"IHDR" + struct.pack(">2L5B", width, height, 1, 0, 0, 0, 0)  # of one bit, black and white
    rows = zlib.compress(bytes((1 + width // 8) * height), 1)
    chunks = (header, b"IDAT" + rows, b"IEND")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(chunk) - 4) + chunk + struct.pack(">L", zlib.crc32(chunk)) for chunk in chunks
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not check(png, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
