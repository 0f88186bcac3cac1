"""From paths, bytes, PIL images and strings to the bytes that travel."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from cnclip_client._flow.items import Unsendable, image_bytes, text_bytes
from PIL import Image

LIMIT = 1 << 20


def _pixels(image: Any) -> np.ndarray:
    """What cn_clip's transform feeds to the model, before scaling: resized, then made RGB."""
    return np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB"))


def _image(mode: str) -> Image.Image:
    random = np.random.default_rng(7)
    noise = random.integers(0, 256, (37, 53, 4), np.uint8)
    rgb = Image.fromarray(np.ascontiguousarray(noise[..., :3]))
    if mode == "I":
        return Image.fromarray(random.integers(-70_000, 70_000, (37, 53)).astype(np.int32))
    if mode == "F":
        return Image.fromarray((random.random((37, 53)) * 300).astype(np.float32))
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65_536, (37, 53)).astype(np.uint16))
    if mode == "I;16B":
        return Image.frombytes("I;16B", (53, 37), random.bytes(37 * 53 * 2))
    if mode == "LAB":
        return Image.frombytes("LAB", (53, 37), random.bytes(37 * 53 * 3))
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    return (Image.fromarray(noise) if mode in ("RGBA", "LA") else rgb).convert(mode)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "F", "I;16", "I;16B"],
)
def test_a_pil_image_arrives_as_the_pixels_that_it_is(mode: str) -> None:
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("this Pillow reads no plain TIFF of YCbCr, not even its own")
    image = _image(mode)
    assert image.mode == mode
    with Image.open(io.BytesIO(image_bytes(image, LIMIT))) as arrived:
        np.testing.assert_array_equal(_pixels(arrived), _pixels(image))


def test_transparency_of_a_palette_arrives() -> None:
    image = _image("P")
    image.info["transparency"] = 3
    with Image.open(io.BytesIO(image_bytes(image, LIMIT))) as arrived:
        np.testing.assert_array_equal(np.asarray(arrived.convert("RGBA")), np.asarray(image.convert("RGBA")))


def test_a_lossy_source_compression_and_its_profile_are_not_taken_over() -> None:
    buffer = io.BytesIO()
    _image("RGB").convert("CMYK").save(buffer, "TIFF", compression="jpeg", icc_profile=b"p" * 5000)
    with Image.open(io.BytesIO(buffer.getvalue())) as source:
        source.load()
        data = image_bytes(source, LIMIT)
        with Image.open(io.BytesIO(data)) as arrived:
            np.testing.assert_array_equal(np.asarray(arrived), np.asarray(source))
            assert "icc_profile" not in arrived.info


@pytest.mark.parametrize("mode", ["HSV", "La", "RGBa"])
def test_a_mode_without_a_lossless_container_is_refused_with_the_fix(mode: str) -> None:
    image = _image("RGB").convert("RGBA").convert("LA").convert("La") if mode == "La" else None
    image = image or (_image("RGBA").convert("RGBa") if mode == "RGBa" else _image("RGB").convert("HSV"))
    with pytest.raises(Unsendable, match=rf"PIL mode '{mode}' is not supported; hand over image.convert\('RGB'\)"):
        image_bytes(image, LIMIT)


def test_a_truncated_pil_image_is_refused() -> None:
    buffer = io.BytesIO()
    _image("RGB").save(buffer, "JPEG")
    with (
        Image.open(io.BytesIO(buffer.getvalue()[:900])) as torn,
        pytest.raises(Unsendable, match="PIL cannot read or write it: .*truncated"),
    ):
        image_bytes(torn, LIMIT)


def test_a_pil_image_that_claims_to_be_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    with Image.open(io.BytesIO(b"P6 9000 9000 255\n")) as claims:
        monkeypatch.setattr(Image.core, "new", full)
        with pytest.raises(Unsendable, match="PIL cannot read or write it: MemoryError$"):
            image_bytes(claims, LIMIT)


def test_paths_and_bytes_travel_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "图片.jpg"
    file.write_bytes(b"content")
    for item in (file, str(file), b"content", bytearray(b"content"), memoryview(b"content")):
        assert image_bytes(item, LIMIT) == b"content"


def test_a_path_whose_name_is_no_utf8_is_read(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.jpg"
    Path(os.fsdecode(name)).write_bytes(b"content")
    assert image_bytes(os.fsdecode(name), LIMIT) == b"content"


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("no/such.jpg", "No such file or directory$"),
        ("图片\\a.jpg", r"No such file or directory; here folders end in /, not in \\$"),
        (os.fsdecode("黑猫.jpg".encode("gbk")), r"directory; its name is not UTF-8 \(GBK\?\): convert the list"),
        (".", "Is a directory"),
        ("iVBORw0KGgo" * 100, "File name too long; images in base64 are read from a .tsv, id<TAB>base64$"),
        ("a\0b", "is no path: .*embedded null"),
        (b"", "is empty"),
        (b"x" * (LIMIT + 1), "larger than 1,048,576 bytes; raise Limits.item_bytes"),
        (None, "expected a path, bytes or a PIL image, got NoneType"),
        (np.zeros((2, 2, 3), np.uint8), "got ndarray"),
    ],
)
def test_what_is_no_image_file_is_refused(item: object, reason: str) -> None:
    with pytest.raises(Unsendable, match=reason):
        image_bytes(item, LIMIT)


def test_an_endless_device_is_not_read_to_its_end() -> None:
    with pytest.raises(Unsendable, match="larger than"):
        image_bytes("/dev/zero", LIMIT)


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("ab\ud800", "lone surrogate at position 2$"),
        ("ab\udcba", r"^is not UTF-8 \(GBK\?\); convert the file \(iconv -f GB18030 -t UTF-8\)$"),
        (b"bytes", "expected a str, got bytes"),
        (3, "expected a str, got int"),
        ("x" * (LIMIT + 1), "larger than"),
    ],
)
def test_what_is_no_text_is_refused(item: object, reason: str) -> None:
    with pytest.raises(Unsendable, match=reason):
        text_bytes(item, LIMIT)


@pytest.mark.parametrize("text", ["", "a\0b", "皮卡丘", "\U0001f600"])
def test_texts_travel_as_utf8(text: str) -> None:
    assert text_bytes(text, LIMIT) == text.encode()
