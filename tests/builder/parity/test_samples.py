"""What a live server is compared on is as odd as it says: of what is not among it no comparison can fail."""

from __future__ import annotations

import io

from cnclip_builder.parity.samples import sample_images, sample_texts
from PIL import Image
from PIL.ExifTags import Base


def test_pictures_are_what_their_names_say() -> None:
    opened = {name: Image.open(io.BytesIO(data)) for name, data in sample_images().items()}
    plain = (300, 200)
    assert {name: (image.mode, image.size) for name, image in opened.items()} == {
        "photo.jpg": ("RGB", plain),
        "tall.png": ("RGB", (19, 411)),
        "wide.png": ("RGB", (603, 7)),
        "one-pixel.png": ("RGB", (1, 1)),
        "enlarged.jpg": ("RGB", (1500, 1000)),
        "turned-by-exif.jpg": ("RGB", plain),
        "grey.jpg": ("L", plain),
        "cmyk.jpg": ("CMYK", plain),
        "palette.png": ("P", plain),
        "alpha.png": ("RGBA", plain),
        "grey-alpha.png": ("LA", plain),
        "one-bit.png": ("1", plain),
        "sixteen-bit.png": ("I;16", plain),
        "animated.gif": ("P", plain),
        "lossy.webp": ("RGB", plain),
    }
    assert opened["turned-by-exif.jpg"].getexif()[Base.Orientation] == 6
    assert [opened[name].getchannel("A").getextrema() for name in ("alpha.png", "grey-alpha.png")] == [(0, 255)] * 2
    assert opened["sixteen-bit.png"].getextrema()[1] > 255
    assert opened["animated.gif"].n_frames == 2  # type: ignore[attr-defined]


def test_texts_are_of_every_length() -> None:
    lengths = list(map(len, sample_texts()))
    assert min(lengths) == 0
    assert max(lengths) > 52
    assert len(lengths) > 20
