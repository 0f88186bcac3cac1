"""Preprocessing: to the bit what cn_clip's transform gives, for every image that it accepts."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from cn_clip.clip import image_transform
from cnclip_builder.parity.probes import normalise
from cnclip_builder.parity.samples import sample_images
from cnclip_templates.cnclip_pixels import BadImage, decode_pixels, limit_pixels
from PIL import Image


def cn_clip_pixels(encoded: bytes, resolution: int) -> np.ndarray | None:
    """What cn_clip makes of an image, float32 [3, R, R]; None if it refuses it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return np.asarray(image_transform(resolution)(Image.open(io.BytesIO(encoded))))
        except Exception:
            return None


def check(encoded: bytes, resolution: int) -> bool:
    """Compares ours with cn_clip's; returns whether the image is accepted."""
    expected = cn_clip_pixels(encoded, resolution)
    if expected is None:
        with pytest.raises(BadImage) as caught:
            decode_pixels(encoded, resolution)
        assert " at 0x" not in str(caught.value)
        return False
    pixels = decode_pixels(encoded, resolution)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (resolution, resolution, 3))
    np.testing.assert_array_equal(normalise(pixels[None])[0], expected)
    return True


@pytest.mark.parametrize("name", sorted(sample_images()))
@pytest.mark.parametrize("resolution", [224, 64])
def test_odd_shapes_and_modes(name: str, resolution: int) -> None:
    assert check(sample_images()[name], resolution)


@pytest.mark.parametrize("resolution", [224, 336])
def test_real_images(shared_images: list[Path], resolution: int) -> None:
    accepted = [check(path.read_bytes(), resolution) for path in shared_images]
    assert sum(accepted) > 40
    assert accepted.count(False) > 10


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_every_mode_in_tiff_or_png(mode: str) -> None:
    rng = np.random.default_rng(3)
    base = Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    image = base.convert("L").convert("I").convert("I;16") if mode == "I;16" else base.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if mode in ("1", "P") else "TIFF")
    check(buffer.getvalue(), 32)


@pytest.mark.parametrize("name", sorted(sample_images()))
def test_reduced_decoding_of_what_is_no_large_jpeg_is_exact(name: str) -> None:
    encoded = sample_images()[name]
    with Image.open(io.BytesIO(encoded)) as image:
        small = image.format != "JPEG" or min(image.size) < 4 * 112
    same = np.array_equal(decode_pixels(encoded, 112), decode_pixels(encoded, 112, reduced=True))
    assert same == small


def test_reduced_decoding_is_near(shared_images: list[Path]) -> None:
    """Above twice the resolution JPEGs are read at a smaller scale: near to cn_clip's pixels, seldom equal."""
    differences = []
    for path in shared_images:
        try:
            exact = decode_pixels(path.read_bytes(), 224)
        except BadImage:
            with pytest.raises(BadImage):
                decode_pixels(path.read_bytes(), 224, reduced=True)
            continue
        reduced = decode_pixels(path.read_bytes(), 224, reduced=True)
        differences.append(np.abs(reduced.astype(int) - exact).mean())
    assert 5 < np.count_nonzero(differences) < len(differences) / 2
    assert max(differences) < 2


def test_more_pixels_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back after the test
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50)).save(buffer, "PNG")
    limit_pixels(5000)
    assert decode_pixels(buffer.getvalue(), 32).shape == (32, 32, 3)
    limit_pixels(4999)
    with pytest.raises(BadImage, match="5000 pixels. exceeds limit of 4998 pixels"):
        decode_pixels(buffer.getvalue(), 32)


@pytest.mark.parametrize("encoded", [b"", b"\x00", b"no image", b"\xff\xd8\xff\xe0", b"GIF89a" + b"\xff" * 20])
def test_no_images(encoded: bytes) -> None:
    with pytest.raises(BadImage):
        decode_pixels(encoded, 224)
