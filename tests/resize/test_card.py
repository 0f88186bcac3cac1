"""Batches by way of a card: every row is what the exact way gives, whichever way it took.

nvImageCodec decodes on the processor here, and the kernels run there.
"""

from __future__ import annotations

import io
import random
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_card import Card, CardUnfit
from cnclip_card._decoder import NvImageCodec
from cnclip_card._jpegs import size_for_card
from cnclip_pixels import BadImage, decode_pixels, image_formats
from cnclip_resize import order_of_passes
from PIL import Image, features

from tests.resize.card_twin import Counting, Twin, can_compile, compile_twin

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed: the extra [gpu-decode] has it")

pytestmark = [
    pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler"),
    pytest.mark.skipif(order_of_passes() is None, reason="this Pillow's order of passes is not known"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

SIDE = 224


def picture(size: tuple[int, int] = (301, 203), seed: int = 0) -> Image.Image:
    """Large spots and some noise, so that all of a JPEG's parts count."""
    rng = random.Random(seed)
    spots = Image.frombytes("RGB", (5, 4), rng.randbytes(60)).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(spots, Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3)), 0.2)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def patched(jpeg: bytes, high: int | None = None, wide: int | None = None, **changes: int) -> bytes:
    """A JPEG whose frame header says something else: its size, its `kind` (the marker) or its `bits`."""
    at = next(at for marker in (b"\xff\xc0", b"\xff\xc2") if (at := jpeg.find(marker)) > 0)
    head = bytearray(jpeg)
    head[at + 1] = changes.get("kind", head[at + 1])
    head[at + 4] = changes.get("bits", head[at + 4])
    for offset, value in ((5, high), (7, wide)):
        if value is not None:
            head[at + offset : at + offset + 2] = struct.pack(">H", value)
    return bytes(head)


def with_scans(jpeg: bytes, count: int) -> bytes:
    """A progressive JPEG that has its last scan so many times more."""
    start, end = jpeg.rfind(b"\xff\xda"), len(jpeg) - 2
    return jpeg[:start] + jpeg[start:end] * (count + 1) + jpeg[end:]


def oriented() -> Image.Exif:
    turned = Image.Exif()
    turned[0x0112] = 6
    return turned


IMAGE = picture()
JPEG = encoded(IMAGE)
PROGRESSIVE = encoded(IMAGE, progressive=True)
GREY = IMAGE.convert("L")

FOR_THE_CARD: dict[str, bytes] = {
    "420": JPEG,
    "422": encoded(IMAGE, subsampling=1),
    "444": encoded(IMAGE, subsampling=0),
    "grey": encoded(GREY),
    "progressive": PROGRESSIVE,
    "progressive grey": encoded(GREY, progressive=True),
    "restarts": encoded(IMAGE, restart_marker_blocks=3),
    "optimised": encoded(IMAGE, optimize=True, quality=40),
    "turned by EXIF": encoded(IMAGE, exif=oriented()),
    "with a comment": encoded(IMAGE, comment=b"\xff\xd9 is no end here"),
    "more behind its end": JPEG + b"and so on\xff\xd8\xff",
    "a pixel": encoded(picture((1, 1), 1)),
    "tall": encoded(picture((7, 500), 2)),
    "wide": encoded(picture((900, 9), 3)),
    "large": encoded(picture((1500, 1100), 4), quality=90),
    "upscaled": encoded(picture((50, 31), 5)),
}
BESIDE_IT: dict[str, bytes] = {
    "CMYK": encoded(IMAGE.convert("CMYK")),
    "RGB in a JPEG": encoded(IMAGE, keep_rgb=True),
    "MPO": encoded(IMAGE, "MPO", save_all=True, append_images=[picture(seed=9)]),
    "PNG": encoded(IMAGE, "PNG"),
    "palette": encoded(IMAGE.convert("P"), "PNG"),
    "GIF": encoded(GREY, "GIF"),
    "BMP": encoded(IMAGE, "BMP"),
    "WebP": encoded(IMAGE, "WEBP"),
    "TIFF of a JPEG": encoded(IMAGE, "TIFF", compression="jpeg"),
    "nothing": b"",
    "no image": b"\xff\xd8\xff\xe0 not a JPEG",
    "a start": b"\xff\xd8",
    "text": "一只猫".encode(),
    "arithmetic": patched(JPEG, kind=0xC9),
    "lossless": patched(JPEG, kind=0xC3),
    "extended": patched(JPEG, kind=0xC1),
    "12 bits": patched(JPEG, bits=12),
    "no height": patched(JPEG, high=0),
    "more pixels than are allowed": patched(JPEG, high=65500, wide=65500),
    "more pixels than it has bits": patched(JPEG, high=9000, wide=9000),
    "a thousand scans": with_scans(PROGRESSIVE, 1000),
    "no end": JPEG[:-2],
    "no end but zeros": JPEG[:-2] + bytes(100),
    "no scan": JPEG[: JPEG.find(b"\xff\xda")] + b"\xff\xd9",
    "two frames": JPEG[: JPEG.find(b"\xff\xda")] + JPEG[JPEG.find(b"\xff\xc0") :],
    **{f"{eighths} eighths": JPEG[: len(JPEG) * eighths // 8] for eighths in range(1, 8)},
    **{f"{eighths} progressive eighths": PROGRESSIVE[: len(PROGRESSIVE) * eighths // 8] for eighths in range(1, 8)},
}
# What no header tells: nvImageCodec on the processor makes of these what Pillow does. On a GPU they were not tried.
LIES: dict[str, bytes] = {
    "higher than it is": patched(JPEG, high=450),
    "lower than it is": patched(JPEG, high=100),
    "wider than it is": patched(JPEG, wide=450),
    "cut, with an end": JPEG[: len(JPEG) // 2] + b"\xff\xd9",
}
ALL = {**FOR_THE_CARD, **BESIDE_IT, **LIES}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_twin(tmp_path_factory.mktemp("twin"))


@pytest.fixture
def twin(library: Path) -> Twin:
    return Twin(library)


@pytest.fixture
def decoder() -> Counting:
    return Counting(NvImageCodec(None, 1))


@pytest.fixture
def card(twin: Twin, decoder: Counting) -> Card:
    made = Card(twin, decoder, side=SIDE, formats=image_formats(), memory=1 << 30)
    decoder.asked.clear()  # of what it tries first
    return made


def exactly(image: bytes) -> Any:
    return under_a_limit(image, Image.MAX_IMAGE_PIXELS)


@cache
def under_a_limit(image: bytes, limit: int) -> Any:
    try:
        return decode_pixels(image, SIDE)
    except BadImage as error:
        return error


def exact(images: Sequence[bytes]) -> Iterator[Any]:
    return map(exactly, images)


def require_as_exact(card: Card, images: dict[str, bytes]) -> Any:
    """Whatever way rows take, they are what the exact way makes of them; and those that have pixels lie on the card."""
    prepared = card.prepare(list(images.values()), exact)
    for row, (name, image) in enumerate(images.items()):
        expected, made = exactly(image), prepared.rows[row]
        if isinstance(expected, BadImage):
            assert (str(made), made.details) == (str(expected), expected.details), name
            continue
        assert made is None or np.array_equal(made, expected), name
        if prepared.squares is not None:
            assert np.array_equal(prepared.squares.read(row), expected), name
    return prepared


@pytest.mark.parametrize("name", FOR_THE_CARD)
def test_jpegs_of_everyday_kinds_go_to_the_card(card: Card, name: str) -> None:
    prepared = require_as_exact(card, {name: FOR_THE_CARD[name]})
    assert (prepared.on_card, prepared.rows, prepared.why_not) == (1, [None], "")


@pytest.mark.parametrize("name", BESIDE_IT)
def test_all_else_goes_beside_it(card: Card, decoder: Counting, name: str) -> None:
    prepared = require_as_exact(card, {name: BESIDE_IT[name]})
    assert (prepared.on_card, prepared.squares, decoder.asked) == (0, None, [])


def test_a_batch_of_all_kinds(card: Card) -> None:
    names = list(ALL)
    for seed in range(3):
        random.Random(seed).shuffle(names)
        prepared = require_as_exact(card, {name: ALL[name] for name in names})
        made = {name for name, row in zip(names, prepared.rows, strict=True) if row is None}
        assert made >= set(FOR_THE_CARD)
        assert not made & set(BESIDE_IT)


def test_pictures_at_hand(card: Card, shared_images: list[Path]) -> None:
    prepared = require_as_exact(card, {path.name: path.read_bytes() for path in shared_images})
    assert prepared.on_card > 10


def test_rows_are_handed_on_as_tensors(card: Card) -> None:
    """A view of the rows that are asked for; it outlives what it was taken from."""
    images = {name: ALL[name] for name in ("420", "PNG", "grey", "wide")}
    squares = card.prepare(list(images.values()), exact).squares
    tensors = [np.from_dlpack(Capsule(squares.tensor(first, 2))) for first in (0, 2)]
    del squares
    expected = np.stack([exactly(image) for image in images.values()])
    assert np.array_equal(np.concatenate(tensors), expected)
    assert tensors[0].dtype == np.uint8


class Capsule:
    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def test_formats_that_are_not_decoded_are_not_on_the_card_either() -> None:
    assert size_for_card(JPEG, ["JPEG"]) == IMAGE.size
    assert size_for_card(JPEG, ["PNG"]) is None


def test_a_limit_of_pixels_holds_before_anything_is_decoded(
    card: Card, decoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 301 * 203 // 2 - 1)
    prepared = require_as_exact(card, {"420": JPEG, "upscaled": ALL["upscaled"]})
    assert "exceeds limit" in str(prepared.rows[0])
    assert [sizes for sizes in decoder.asked if IMAGE.size in sizes] == []


def test_what_the_decoder_leaves_is_decoded_exactly(twin: Twin) -> None:
    """It gives None for one, and a picture of another size for another: neither is believed."""

    class Half:
        about = "half a decoder"

        def decode(self, jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Any]:
            decoder = NvImageCodec(None, 1)
            wrong = [(wide + 1, high) if row == 2 else (wide, high) for row, (wide, high) in enumerate(sizes)]
            return [None if row == 1 else one for row, one in enumerate(decoder.decode(jpegs, wrong))]

    card = Card(twin, Half(), side=SIDE, formats=image_formats(), memory=1 << 30)
    prepared = require_as_exact(card, {name: ALL[name] for name in ("420", "422", "444", "grey")})
    assert [row is None for row in prepared.rows] == [True, False, False, True]
    assert (prepared.on_card, prepared.why_not) == (2, "")


def test_the_exact_way_works_beside_the_card(twin: Twin) -> None:
    """It has been asked before the card decodes, and both are under way at once."""
    under_way = threading.Event()

    class Waiting:
        about = "a decoder that waits"
        waits = False

        def decode(self, jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Any]:
            assert not self.waits or under_way.wait(60)
            return NvImageCodec(None, 1).decode(jpegs, sizes)

    def begin(image: bytes) -> Any:
        under_way.set()
        return exactly(image)

    decoder = Waiting()
    card = Card(twin, decoder, side=SIDE, formats=image_formats(), memory=1 << 30)
    decoder.waits = True
    with ThreadPoolExecutor(1) as pool:
        prepared = card.prepare([JPEG, ALL["PNG"]], lambda images: pool.map(begin, images))
    assert prepared.on_card == 1


def test_a_batch_is_decoded_in_portions_that_the_memory_bounds(twin: Twin, decoder: Counting) -> None:
    images = {f"{seed}": encoded(picture((400, 300), seed)) for seed in range(5)}
    images |= {"large": ALL["large"], "small": ALL["upscaled"]}
    card = Card(twin, decoder, side=SIDE, formats=image_formats(), memory=1_500_000)
    twin.largest = 0
    decoder.asked.clear()
    prepared = require_as_exact(card, images)
    assert [len(sizes) for sizes in decoder.asked] == [2, 2, 2]
    assert prepared.rows[5] is not None, "a picture that alone is more than the bound goes the exact way"
    assert prepared.on_card == 6
    assert twin.largest < 1_500_000


FAILURES: dict[str, tuple[Exception, bool]] = {
    "full": (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: The API call failed"), True),
    "full, in other words": (MemoryError("std::bad_alloc: out of memory"), True),
    "ill": (RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS"), False),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("after", range(4))
def test_when_the_card_fails_the_batch_goes_the_exact_way(twin: Twin, decoder: Counting, kind: str, after: int) -> None:
    """At the first allocation, that of the squares, or at one of the portions' (three): what was made before counts."""
    card = Card(twin, decoder, side=SIDE, formats=image_formats(), memory=500_000)
    images = {f"{seed}": encoded(picture((300, 200), seed)) for seed in range(3)} | {"PNG": ALL["PNG"]}
    twin.error, full = FAILURES[kind]
    twin.fails = after
    prepared = require_as_exact(card, images)
    assert prepared.on_card == max(0, after - 1)
    assert (prepared.full, str(twin.error) in prepared.why_not) == (full, True)
    again = require_as_exact(card, images)
    assert (again.on_card, again.why_not) == (3, "")


class Spoilt:
    """A decoder from which `spoil` makes another, once it is there."""

    about = "a decoder that is spoilt"

    def __init__(self, spoil: Callable[[list[Any]], list[Any]] = list) -> None:
        self.spoil = spoil

    def decode(self, jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Any]:
        return self.spoil(NvImageCodec(None, 1).decode(jpegs, sizes))


def failing(_: list[Any]) -> list[Any]:
    raise RuntimeError("nvimgcodec: cudaMallocAsync failed: out of memory")


def in_another_order(pictures: list[Any]) -> list[Any]:
    for picture in pictures:
        pixels = np.asarray(picture.owner)
        pixels[:] = pixels[..., ::-1].copy()
    return pictures


def grey_in_one_channel(pictures: list[Any]) -> list[Any]:
    for picture in pictures:
        pixels = np.asarray(picture.owner)
        if (pixels == pixels[..., :1]).all():
            pixels[..., 1:] = 0
    return pictures


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda pictures: [None for _ in pictures],
            r"it decodes no JPEG \(nvImageCodec gives none: is its nvJPEG installed",
        ),
        (failing, r"it decodes no JPEG \(RuntimeError: nvimgcodec: cudaMallocAsync failed: out of memory\)"),
        (in_another_order, r"its pictures differ by \d\d grey levels from Pillow"),
        (grey_in_one_channel, r"its pictures differ by \d\d grey levels from Pillow .* \(JPEG, L\)"),
    ],
)
def test_a_card_that_decodes_nothing_or_another_picture_is_refused(twin: Twin, spoil: Any, why: str) -> None:
    """nvImageCodec starts without nvJPEG's library, and then gives nothing for each picture."""
    with pytest.raises(CardUnfit, match=f"{why}.*; mend this, or build the repository with"):
        Card(twin, Spoilt(spoil), side=SIDE, formats=image_formats(), memory=1 << 30)


def test_when_the_decoder_fails_too(twin: Twin) -> None:
    decoder = Spoilt()
    card = Card(twin, decoder, side=SIDE, formats=image_formats(), memory=1 << 30)
    decoder.spoil = failing
    prepared = require_as_exact(card, {"420": JPEG, "PNG": ALL["PNG"]})
    assert (prepared.on_card, prepared.full, prepared.squares) == (0, True, None)


def test_when_exact_rows_find_no_way_onto_the_card(card: Card, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are the exact way's then: nothing is on the card of which something is missing there."""
    write: Callable[[int, bytes], None] = twin.write

    def refuse(address: int, data: bytes) -> None:
        if len(data) == 3 * SIDE * SIDE:
            raise RuntimeError("CUDA_ERROR_UNKNOWN")
        write(address, data)

    monkeypatch.setattr(twin, "write", refuse)
    prepared = require_as_exact(card, {"420": JPEG, "PNG": ALL["PNG"], "nothing": b""})
    assert (prepared.on_card, prepared.squares, prepared.full) == (0, None, False)
    assert prepared.why_not == "RuntimeError: CUDA_ERROR_UNKNOWN"


def test_a_card_whose_resize_is_another_is_refused(
    twin: Twin, decoder: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = twin.launch
    monkeypatch.setattr(twin, "launch", lambda kernel, *rest: launch(kernel, *rest) if kernel == "weigh" else None)
    with pytest.raises(
        CardUnfit, match=r"its resize of \(640, 480\) gives other bytes than Pillow .*; mend this, or build"
    ):
        Card(twin, decoder, side=SIDE, formats=image_formats(), memory=1 << 30)


def test_a_pillow_that_is_not_known_is_refused(twin: Twin, decoder: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_resize._pillow", lambda: "14.0")
    with pytest.raises(CardUnfit, match="is not one whose resize is known: pip install 'pillow<14'"):
        Card(twin, decoder, side=SIDE, formats=image_formats(), memory=1 << 30)


def test_this_codec_knows_what_it_is() -> None:
    assert features.check("jpg")
    assert NvImageCodec(None, 1).about.startswith("nvImageCodec 0.")
