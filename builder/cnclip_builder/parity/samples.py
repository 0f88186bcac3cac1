"""Real pictures of odd shapes and modes, and real and odd texts, for comparing a live server with PyTorch."""

from __future__ import annotations

import importlib.resources
import io
from collections.abc import Mapping
from functools import cache
from typing import Any

from cnclip_templates import templates_folder
from PIL import Image


@cache
def sample_images() -> Mapping[str, bytes]:
    """Gives encoded images by a name that says what is odd about each; all are made from one photograph."""
    photo = (templates_folder() / "warmup.jpg").read_bytes()
    with Image.open(io.BytesIO(photo)) as image:
        rgb = image.convert("RGB")
    alpha = Image.linear_gradient("L").resize(rgb.size)
    with_alpha = rgb.copy()
    with_alpha.putalpha(alpha)
    grey = rgb.convert("L")
    grey_alpha = grey.copy()
    grey_alpha.putalpha(alpha)
    palette = rgb.quantize(64, Image.Quantize.FASTOCTREE)  # Pillow's other ways take half a second
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: cn_clip ignores it, and so must the server
    return {
        "photo.jpg": photo,
        "tall.png": _encode(rgb.resize((19, 411)), "PNG"),
        "wide.png": _encode(rgb.resize((603, 7)), "PNG"),
        "one-pixel.png": _encode(rgb.resize((1, 1)), "PNG"),
        "enlarged.jpg": _encode(rgb.resize((1500, 1000)), "JPEG", quality=85),
        "turned-by-exif.jpg": _encode(rgb, "JPEG", quality=85, exif=turned),
        "grey.jpg": _encode(grey, "JPEG", quality=85),
        "cmyk.jpg": _encode(rgb.convert("CMYK"), "JPEG", quality=85),
        "palette.png": _encode(palette, "PNG"),
        "alpha.png": _encode(with_alpha, "PNG"),
        "grey-alpha.png": _encode(grey_alpha, "PNG"),
        "one-bit.png": _encode(rgb.convert("1"), "PNG"),
        "sixteen-bit.png": _encode(grey.convert("I").point(lambda value: value * 257).convert("I;16"), "PNG"),
        "animated.gif": _encode(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "lossy.webp": _encode(rgb, "WEBP", quality=60),
    }


def sample_texts() -> list[str]:
    """Gives real captions, and texts at the edges of what a tokeniser meets."""
    captions = importlib.resources.files("cnclip_builder.parity") / "data" / "captions.txt"
    return [
        *captions.read_text(encoding="utf-8").splitlines(),
        "",
        "杰尼龟",
        "A PIKACHU,　全角：ＡＢＣ１２３！",
        "naïve café — ΌΔΟΣ, Ёлки 🐼🎋",
        "红色的连衣裙\t新款\n2024 夏季 V领 ¥199.00",
        "很长的描述" * 30,
    ]


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
