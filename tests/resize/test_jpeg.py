"""JPEGs whose rows go from Pillow's libjpeg straight into the resize: Pillow's bytes, or left to Pillow."""

from __future__ import annotations

import io
import os
import random
import resource
import subprocess
import sys
import threading
import warnings
from functools import lru_cache
from pathlib import Path

import cnclip_resize
import pytest
from cnclip_resize import resize, resizer
from PIL import Image, ImageFile, _imaging
from PIL.JpegImagePlugin import JpegImageFile

native = pytest.importorskip("cnclip_resize._native", reason="cnclip_resize was installed without a C compiler")

pytestmark = [
    pytest.mark.skipif(native.BEST == native.SCALAR, reason="this processor has no AVX2"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

VARIANTS: list[dict[str, object]] = [
    {"quality": 75},
    {"quality": 95, "subsampling": 0},
    {"quality": 90, "subsampling": 1},
    {"quality": 30, "optimize": True},
    {"quality": 75, "progressive": True},
    {"quality": 95, "progressive": True, "subsampling": 0},
    {"quality": 75, "restart_marker_blocks": 2},
    {"quality": 75, "restart_marker_rows": 1, "progressive": True},
    {"quality": 75, "keep_rgb": True},
    {"quality": 100},
]


@lru_cache(maxsize=8)
def picture(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """Noise over a few large spots."""
    rng = random.Random(seed)
    spots = Image.frombytes(mode, (5, 4), rng.randbytes(20 * len(mode))).resize(size, Image.Resampling.BILINEAR)
    noise = Image.frombytes(mode, size, rng.randbytes(size[0] * size[1] * len(mode)))
    return Image.blend(spots, noise, rng.choice([0.05, 0.3, 1.0]))


def jpeg(mode: str, size: tuple[int, int], seed: int = 0, **options: object) -> bytes:
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile, "MAXBLOCK", 1 << 25)  # Pillow would write no progressive noise with less.
        picture(mode, size, seed).save(file, "JPEG", **options)
    return file.getvalue()


def pillows(image: Image.Image, side: int) -> bytes:
    return image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB").tobytes()


def straight(encoded: bytes, side: int = 224, scale: int = 1) -> bytes | None:
    """What comes without Pillow's decoder; None where it is Pillow's affair. No picture is made in either case."""
    with Image.open(io.BytesIO(encoded)) as image:
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        square = cnclip_resize._jpeg(image, side)
        assert image._im is None
        return square


def whole(encoded: bytes, side: int = 224, scale: int = 1) -> bytes:
    with Image.open(io.BytesIO(encoded)) as image:
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        return pillows(image, side)


def ready() -> None:
    """Finds libjpeg, as the first image does."""
    assert cnclip_resize._why_pillow() is None
    assert cnclip_resize._why_whole() is None


def check(encoded: bytes, side: int = 224, scale: int = 1) -> bytes:
    found = straight(encoded, side, scale)
    assert found is not None
    assert found == whole(encoded, side, scale)
    return found


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_way_to_write_one(mode: str, options: dict[str, object]) -> None:
    ready()
    for seed, size in enumerate([(640, 480), (203, 317), (64, 900), (900, 64), (1, 1), (7, 9), (16, 17), (224, 225)]):
        check(jpeg(mode, size, seed, **options))


def test_random_sizes() -> None:
    ready()
    rng = random.Random(41)
    for seed in range(120):
        size = (rng.randint(1, 700), rng.randint(1, 700)) if seed % 3 else (rng.randint(1, 40), rng.randint(1, 40))
        options = rng.choice(VARIANTS)
        check(jpeg(rng.choice(["RGB", "RGB", "L"]), size, seed, **options), rng.choice([224, 336, 32, 1]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_random_sizes() -> None:
    ready()
    rng = random.Random(42)
    for seed in range(3000):
        size = rng.choice([(1500, 1000), (60, 60), (300, 2500), (2500, 300)])
        size = rng.randint(1, size[0]), rng.randint(1, size[1])
        check(jpeg(rng.choice(["RGB", "RGB", "L"]), size, seed, **rng.choice(VARIANTS)), rng.choice([224, 336, 33]))


@pytest.mark.parametrize("size", [(65500, 1), (1, 65500), (65500, 9), (9, 65500), (300, 20_000), (5000, 3600)])
def test_the_longest(size: tuple[int, int]) -> None:
    """Also above 16 MB, and where columns are shrunk first, of which only a window is held."""
    ready()
    check(jpeg("RGB", size, 5))


@pytest.mark.parametrize("path", ["SCALAR", "AVX2", "VNNI"])
def test_every_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready()
    if getattr(native, path) > native.BEST:
        pytest.skip(f"this processor has no {path}")
    monkeypatch.setattr(native, "BEST", getattr(native, path))
    for seed, size in enumerate([(641, 481), (100, 700), (700, 100)]):
        check(jpeg("RGB", size, seed))
        check(jpeg("L", size, seed))


def test_reduced_decoding() -> None:
    ready()
    for seed, size in enumerate([(960, 540), (801, 603), (333, 1999)]):
        for options in VARIANTS:
            encoded = jpeg("RGB", size, seed, **options)
            full = straight(encoded)
            for scale in (2, 4, 8):
                assert check(encoded, scale=scale) != full


def test_real_images(shared_images: list[Path]) -> None:
    ready()
    taken, left = [], []
    for path in shared_images:
        try:
            with Image.open(path) as image:
                if type(image) is not JpegImageFile:
                    continue
        except Exception:  # noqa: S112 - Pillow refuses it by its header.
            continue
        found = straight(path.read_bytes())
        if found is None:
            left.append(path.name)
            continue
        assert found == whole(path.read_bytes()), path.name
        taken.append(path.name)
    assert len(taken) > 20
    assert {"sharp__truncated.jpg", "pillow__pil_sample_cmyk.jpg"} <= set(left)


class TestLeftToPillow:
    """And `resize` then gives what Pillow gives."""

    def check(self, encoded: bytes) -> None:
        ready()
        assert straight(encoded) is None
        with Image.open(io.BytesIO(encoded)) as one, Image.open(io.BytesIO(encoded)) as other:
            expected = error = None
            try:
                expected = pillows(other, 224)
            except OSError as said:
                error = str(said)
            if error is None:
                assert resize(one, 224) in (None, expected)
            else:
                with pytest.raises(OSError, match="truncated|broken") as caught:
                    resize(one, 224)
                assert str(caught.value) == error

    def test_truncated_anywhere(self) -> None:
        encoded = jpeg("RGB", (320, 240))
        for length in range(len(encoded) // 8, len(encoded), len(encoded) // 8):
            self.check(encoded[:length])
        for missing in (1, 2, 3, 4):
            self.check(encoded[:-missing])

    def test_with_rubbish_between_markers(self) -> None:
        encoded = jpeg("RGB", (320, 240))
        at = encoded.index(b"\xff\xdb")
        self.check(encoded[:at] + b"rubbish" + encoded[at:])

    @pytest.mark.parametrize("adobe", [True, False])
    def test_cmyk(self, adobe: bool) -> None:
        file = io.BytesIO()
        Image.frombytes("CMYK", (64, 48), random.Random(1).randbytes(64 * 48 * 4)).save(file, "JPEG")
        encoded = file.getvalue()
        at = encoded.index(b"\xff\xee")
        assert b"Adobe" in encoded[at : at + 16]
        if not adobe:
            encoded = encoded[:at] + encoded[at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big") :]
        self.check(encoded)

    def test_a_second_header(self) -> None:
        """Pillow goes by the last one, libjpeg refuses."""
        encoded = jpeg("RGB", (64, 48))
        at = encoded.index(b"\xff\xc0")
        header = encoded[at : at + 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")]
        self.check(encoded[:at] + header + encoded[at:])

    def test_restarts_out_of_order(self) -> None:
        encoded = jpeg("RGB", (320, 240), restart_marker_rows=1)
        at = encoded.index(b"\xff\xd2")
        self.check(encoded[:at] + b"\xff\xd5" + encoded[at + 2 :])

    def test_twelve_bits(self) -> None:
        encoded = bytearray(jpeg("L", (64, 48)))
        encoded[encoded.index(b"\xff\xc0") + 4] = 12
        with pytest.raises(OSError, match="cannot identify"):
            Image.open(io.BytesIO(encoded))

    def test_files_subclasses_and_pictures_that_are_read(self, tmp_path: Path) -> None:
        ready()
        encoded = jpeg("RGB", (64, 48))
        (tmp_path / "one.jpg").write_bytes(encoded)
        with Image.open(tmp_path / "one.jpg") as image:
            assert cnclip_resize._jpeg(image, 224) is None
            assert resize(image, 224) == whole(encoded)
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            assert cnclip_resize._jpeg(image, 224) is None
            assert resize(image, 224) == whole(encoded)
        with Image.open(io.BytesIO(encoded)) as image:
            image.tile = [("jpeg", (0, 0, 32, 48), 0, ("RGB", ""))]
            assert cnclip_resize._jpeg(image, 224) is None
        with Image.open(io.BytesIO(encoded)) as image:
            image.decoderconfig = (1, 1)
            assert cnclip_resize._jpeg(image, 224) is None

    def test_grey_out_of_colour(self) -> None:
        ready()
        with Image.open(io.BytesIO(jpeg("RGB", (64, 48)))) as image:
            image.draft("L", None)
            assert cnclip_resize._jpeg(image, 224) is None


def test_trailing_data_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ready()
    encoded = jpeg("RGB", (320, 240))
    check(encoded + b"trailing" * 100)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    check(encoded)


def test_exif_is_no_matter() -> None:
    ready()
    exif = Image.Exif()
    exif[0x0112] = 6
    check(jpeg("RGB", (320, 240), exif=exif.tobytes()))


def test_damage() -> None:
    """Flipped bytes and other lengths: Pillow's pixels, or Pillow's affair. Most files are then Pillow's."""
    ready()
    rng = random.Random(43)
    seeds = [
        jpeg("RGB", (90, 70), 1),
        jpeg("L", (70, 90), 2, progressive=True),
        jpeg("RGB", (64, 64), 3, restart_marker_rows=1),
    ]
    taken = left = 0
    for _ in range(1500):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] = rng.choice([0, 0xFF, rng.randrange(256)])
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            found = straight(bytes(data), 32)
        except Exception:  # noqa: S112 - Pillow refuses it by its header.
            continue
        if found is None:
            left += 1
        else:
            taken += 1
            assert found == whole(bytes(data), 32)
    assert taken > 100
    assert left > 100


class TestWhetherItIsTaken:
    def test_it_can_be_turned_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CNCLIP_RESIZE", "whole")
        assert "JPEGs once Pillow has decoded them: CNCLIP_RESIZE=whole" in resizer()
        encoded = jpeg("RGB", (64, 48))
        with Image.open(io.BytesIO(encoded)) as image:
            assert resize(image, 224) == whole(encoded)
            assert image._im is not None

    def test_by_the_caller_too(self) -> None:
        encoded = jpeg("RGB", (64, 48))
        for streamed in (True, False):
            with Image.open(io.BytesIO(encoded)) as image:
                assert resize(image, 224, streamed=streamed) == whole(encoded)
                assert (image._im is None) == streamed

    @pytest.mark.parametrize("name", ["_imagingmath", "libc"])
    def test_a_pillow_without_a_libjpeg_in_reach(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if name == "_imagingmath":
            from PIL import _imagingmath

            monkeypatch.setattr(_imaging, "__file__", _imagingmath.__file__)
            reason = "its libjpeg is out of reach"
        else:
            monkeypatch.setattr(_imaging, "__file__", "/nowhere/_imaging.so")
            reason = "it is not loaded"
        assert resizer().endswith(f"JPEGs once Pillow has decoded them: {reason}")
        with Image.open(io.BytesIO(jpeg("RGB", (64, 48)))) as image:
            assert resize(image, 224) is not None
            assert image._im is not None

    def test_a_libjpeg_that_decodes_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "jpeg", lambda *_: bytes(32 * 32 * 3))
        assert resizer().endswith("this build of its libjpeg gives other bytes")

    @pytest.mark.parametrize(("version", "bytes_"), [(80, 632), (62, 656)])
    def test_another_abi(self, version: int, bytes_: int, tmp_path: Path) -> None:
        """A libjpeg that checks for another version, or another structure, as all do."""
        source = tmp_path / "other.c"
        source.write_text(OTHER_LIBJPEG % (version, bytes_))
        built = subprocess.run(["cc", "-shared", "-fPIC", source, "-o", tmp_path / "other.so"], check=False)
        if built.returncode:
            pytest.skip("there is no C compiler cc")
        said = subprocess.run(
            [sys.executable, "-c", LOOK_FOR_IT, str(tmp_path / "other.so")], capture_output=True, text=True, check=True
        )
        assert said.stdout.strip() == "its libjpeg has another ABI than 6.2"

    def test_before_it_is_found_nothing_is_decoded(self) -> None:
        code = "from cnclip_resize import _native as n; print(n.jpeg(b'', 4, 1, 1, 1, 8, False, n.BEST))"
        assert (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "None\n"
        )


# What libjpeg's own jpeg_CreateDecompress does first.
OTHER_LIBJPEG = """
#include <stddef.h>
struct errors { void (*error_exit)(void *); char others[160]; };
struct errors *jpeg_std_error(struct errors *errors) { return errors; }
void jpeg_CreateDecompress(void *one, int version, size_t bytes) {
    if (version != %d || bytes != %d) { (*(struct errors **)one)->error_exit(one); }
}
void jpeg_read_header(void) {} void jpeg_start_decompress(void) {} void jpeg_read_scanlines(void) {}
void jpeg_finish_decompress(void) {} void jpeg_destroy_decompress(void *one) {} void jpeg_resync_to_restart(void) {}
"""
LOOK_FOR_IT = """
import ctypes, sys
from cnclip_resize import _native
loaded = ctypes.CDLL(sys.argv[1])
print(_native.find_jpeg(sys.argv[1]))
"""


def test_a_path_that_is_no_utf8_is_a_path() -> None:
    """To Python in the C locale, as in Triton's stub, the folder of a Chinese name is such bytes."""
    ready()
    assert native.find_jpeg(os.fsdecode(b"/\xb9\xa4\xb3\xcc/_imaging.so")) == "it is not loaded"
    assert native.find_jpeg("/工程/_imaging.so") == "it is not loaded"


def test_the_module_checks_what_it_is_given() -> None:
    ready()
    encoded = jpeg("RGB", (30, 20))
    best = native.BEST
    assert len(native.jpeg(encoded, 4, 30, 20, 1, 8, False, best)) == 192
    for channels, wide, high, scale, side, path in (
        (1, 30, 20, 1, 8, best), (3, 30, 20, 1, 8, best), (4, 31, 20, 1, 8, best), (4, 30, 19, 1, 8, best),
        (4, 30, 20, 2, 8, best), (4, 30, 20, 3, 8, best), (4, 30, 20, 0, 8, best), (4, 30, 20, -1, 8, best),
        (4, 30, 20, 1, 0, best), (4, 30, 20, 1, 4097, best), (4, 30, 20, 1, 8, 7), (4, 0, 20, 1, 8, best),
        (4, -30, -20, 1, 8, best), (4, 1 << 30, 20, 1, 8, best),
    ):  # fmt: skip
        assert native.jpeg(encoded, channels, wide, high, scale, side, False, path) is None
    for nothing in (b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xd9", bytes(1000)):
        assert native.jpeg(nothing, 4, 30, 20, 1, 8, False, best) is None


def test_threads() -> None:
    ready()
    files = [jpeg("RGB", (400 + number, 300), number, progressive=number == 1) for number in range(3)]
    broken = files[0][:2000]
    expected = [whole(file) for file in files]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(15):
            wrong.extend(i for i, file in enumerate(files) if straight(file) != expected[i])
            wrong.extend([-1] if straight(broken) is not None else [])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_is_given_back() -> None:
    """Of files that are taken, and of those that are given up half-way."""
    ready()
    encoded = jpeg("RGB", (1200, 900))
    files = [encoded, encoded[: len(encoded) // 2], jpeg("RGB", (900, 900), progressive=True)]
    files.append(files[2][: len(files[2]) // 2])

    def work() -> None:
        for _ in range(12):
            for file in files:
                straight(file)

    with warnings.catch_warnings():
        work()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        work()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB; a leak would be 100,000.
