"""Preprocessing: to the bit what cn_clip's transform gives, for every image that it accepts."""

from __future__ import annotations

import errno
import io
import mmap
import os
import re
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cnclip_pixels
import numpy as np
import pytest
from cn_clip.clip import image_transform
from cnclip_builder.parity.probes import normalise
from cnclip_builder.parity.samples import sample_images
from cnclip_pixels import (
    BadImage,
    decode_pixels,
    decoding_memory,
    decoding_threads,
    image_formats,
    limit_pixels,
)
from PIL import EpsImagePlugin, Image, features

# The server turns Pillow's warnings off for its whole process; so do these tests.
pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]

# A picture in PostScript, with words in it that would run a program if anything read them.
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 10
%%EndComments
(%pipe%touch /tmp/pwned) (w) file
showpage
%%EOF
"""


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
    ours = normalise(pixels[None])[0]
    if not np.array_equal(ours, expected):
        # Pillow 12 and older leave what a damaged TIFF does not fill as it was in memory, which is nobody's to repeat.
        again = [cn_clip_pixels(encoded, resolution) for _ in range(5)]
        if all(one is not None and np.array_equal(one, expected) for one in again):
            np.testing.assert_array_equal(ours, expected)
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


def outcome(encoded: bytes, resolution: int, *, compiled: bool) -> bytes | str:
    """The pixels, or why there are none."""
    try:
        return decode_pixels(encoded, resolution, compiled=compiled).tobytes()
    except BadImage as error:
        return f"{error}\n{error.details}"


def damaged(encoded: bytes) -> Iterator[bytes]:
    """Cut off, and with 4 other bytes, at every eighth of a file."""
    rng = np.random.default_rng(len(encoded))
    for place in range(0, len(encoded), max(len(encoded) // 8, 1)):
        yield encoded[:place]
        yield encoded[:place] + rng.bytes(4) + encoded[place + 4 :]


def check_damage(encoded: bytes) -> list[bytes | str]:
    """Compares the compiled resize, where it is there, with Pillow's, on files that somebody broke."""
    outcomes = []
    for broken in damaged(encoded):
        expected = outcome(broken, 64, compiled=False)
        # An address, or a time, is another one each time.
        assert re.sub(r"0x\w+", "", str(outcome(broken, 64, compiled=True))) == re.sub(r"0x\w+", "", str(expected))
        outcomes.append(expected)
    return outcomes


def test_damage_is_told_alike_whoever_resizes() -> None:
    outcomes = [one for encoded in sample_images().values() for one in check_damage(encoded)]
    assert {type(one) for one in outcomes} == {bytes, str}


@pytest.mark.slow
def test_damage_to_real_images(shared_images: list[Path]) -> None:
    outcomes = [one for path in shared_images for one in check_damage(path.read_bytes())]
    assert {type(one) for one in outcomes} == {bytes, str}


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


def test_more_pixels_than_the_limit() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50)).save(buffer, "PNG")
    limit_pixels(5000)
    assert decode_pixels(buffer.getvalue(), 32).shape == (32, 32, 3)
    limit_pixels(4999)
    with pytest.raises(BadImage, match="5000 pixels. exceeds limit of 4998 pixels"):
        decode_pixels(buffer.getvalue(), 32)


def iptc(inside: bytes) -> bytes:
    """An IPTC file, which holds an image of whatever format."""

    def field(record: int, dataset: int, data: bytes) -> bytes:
        return bytes([0x1C, record, dataset]) + len(data).to_bytes(2, "big") + data

    size = b"".join(field(3, dataset, (20).to_bytes(2, "big")) for dataset in (20, 30))
    return field(3, 60, b"\x01\x00") + size + field(3, 120, b"\x05") + field(8, 10, inside)


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program named `gs` on PATH that leaves a file behind when it is started."""
    left = tmp_path / "started"
    script = tmp_path / "bin" / "gs"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\ntouch {left}\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    return left


@pytest.mark.parametrize("encoded", [EPS, iptc(EPS)], ids=["EPS", "EPS in IPTC"])
def test_no_format_starts_a_program(encoded: bytes, ghostscript: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadImage):
        decode_pixels(encoded, 32)
    # Not even where somebody lets the format in.
    with pytest.raises(BadImage):
        decode_pixels(encoded, 32, formats=("EPS", "IPTC"))
    assert not ghostscript.exists()
    # The file would start it: what holds it back is what is tested.
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises((OSError, subprocess.CalledProcessError)):
        Image.open(io.BytesIO(encoded)).load()
    assert ghostscript.exists()


def test_every_plugin_of_pillow_that_starts_programs_is_known() -> None:
    """A Pillow that has more of them fails here."""
    folder = Path(str(EpsImagePlugin.__file__)).parent
    starters = {
        path.stem.removesuffix("ImagePlugin")
        for path in folder.glob("*ImagePlugin.py")
        if re.search(
            r"^(?!\s*(#|\")).*(subprocess\.|from subprocess|os\.system|os\.popen)", path.read_text(), re.MULTILINE
        )
    }
    # Gif's, in older ones, is a way to save, and Jpeg's `load_djpeg` is called by nobody.
    assert {"Eps"} <= starters <= {"Eps", "Gif", "Jpeg"}
    assert not {"EPS", "IPTC", "FPX", "WMF"} & set(image_formats())


def test_formats_of_everyday_are_decoded(shared_images: list[Path]) -> None:
    found = set()
    for path in shared_images:
        try:
            decode_pixels(path.read_bytes(), 32)
        except BadImage:
            continue
        found.add(Image.open(path).format)
    # MPO is JPEG with more behind it.
    assert found == {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "TIFF", "WEBP"}


@pytest.mark.parametrize("name", ["BMP", "DDS", "GIF", "ICO", "JPEG2000", "PCX", "PPM", "SGI", "TGA", "TIFF", "WEBP"])
def test_what_pillow_decodes_by_itself_is_decoded(name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 48), (9, 99, 199)).save(buffer, name)
    assert check(buffer.getvalue(), 32)


def test_the_list_can_be_widened_but_not_by_programs() -> None:
    assert set(image_formats("mpeg, WMF")) - set(image_formats()) == {"MPEG", "WMF"}
    with pytest.raises(
        ValueError, match="format EPS are not decoded, since Pillow starts a program for them: name some of BUFR, .*WMF"
    ):
        image_formats("MPEG,EPS")
    with pytest.raises(ValueError, match="has no format HEIC: name some of BUFR, "):
        image_formats("HEIC")


def test_reasons_hold_no_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Pillow raises goes to the log; a client gets what it may know."""

    def fails(error: Exception) -> BadImage:
        def raises(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(Image, "open", raises)
        with pytest.raises(BadImage) as caught:
            decode_pixels(b"x", 32)
        return caught.value

    command = subprocess.CalledProcessError(1, ["gs", "-sOutputFile=/tmp/tmpabc"])
    missing = FileNotFoundError(2, "No such file or directory", "/opt/secret/profile.icc")
    for error, name in ((command, "CalledProcessError"), (missing, "FileNotFoundError")):
        bad = fails(error)
        assert str(bad) == name
        assert str(error) in bad.details
    assert str(fails(OSError("Truncated File Read"))) == "OSError: Truncated File Read"


def test_a_want_of_memory_is_no_word_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """To libwebp and others it is a broken file: what tells is whether the memory could be had."""
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 2000)).save(buffer, "PNG")
    torn = buffer.getvalue()[:-100]
    with pytest.raises(BadImage):
        decode_pixels(torn, 32)
    with monkeypatch.context() as claiming, pytest.raises(BadImage):  # a file that claims more than it holds
        claiming.setattr(cnclip_pixels, "resize", Mock(side_effect=MemoryError))
        decode_pixels(buffer.getvalue(), 32)
    there_is, most_bytes = mmap.mmap, 3000 * 2000 * 5

    def mapped(handle: int, size: int) -> mmap.mmap:
        if size > most_bytes:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return there_is(handle, size)

    monkeypatch.setattr(mmap, "mmap", mapped)
    with pytest.raises(MemoryError):
        decode_pixels(torn, 32)
    with pytest.raises(BadImage):
        decode_pixels(b"no image", 32)
    most_bytes = 500_000_000
    with pytest.raises(BadImage):  # it may never find so much: a job would end at it, each time that it goes on
        decode_pixels(b"P6 12000 12000 255\n", 32)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "/dev/shm")

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(OSError, match="^.Errno 24. Too many open files$"):
        decode_pixels(buffer.getvalue(), 32, memory=1)


def test_threads_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnclip_pixels, "usable_cores", lambda: 3)
    assert [decoding_threads(instances) for instances in (1, 2, 3, 8)] == [3, 1, 1, 1]


def test_memory_is_shared_by_all_that_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, bounds in ((0, [0, 0, 0]), (800_000_000, [400_000_000, 100_000_000, 6_250_000])):
        monkeypatch.setattr(cnclip_pixels, "usable_memory", lambda memory=memory: memory)
        assert [decoding_memory(workers) for workers in (1, 4, 64)] == bounds


def test_large_pictures_are_decoded_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the threads of all processes: another one holds the lock here, until it is killed."""
    monkeypatch.setattr(cnclip_pixels, "_SHARED_FOLDER", tmp_path)
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50)).save(buffer, "PNG")  # 25,000 bytes while it is decoded
    large = buffer.getvalue()
    hold = (
        "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(decode_pixels, large, 32, memory=24_999) for _ in range(3)]
            for free in (25_000, 0):
                assert pool.submit(decode_pixels, large, 32, memory=free).result(timeout=60).shape == (32, 32, 3)
            assert not any(one.done() for one in waiting)
            holder.kill()
            assert all(one.result(timeout=60).shape == (32, 32, 3) for one in waiting)
    # What fails gives the lock back, and the folder need not be there.
    for _ in range(2):
        with pytest.raises(BadImage):
            decode_pixels(large[:-40], 32, memory=1)
    monkeypatch.setattr(cnclip_pixels, "_SHARED_FOLDER", tmp_path / "missing")
    assert decode_pixels(large, 32, memory=1).shape == (32, 32, 3)


# Decodes a file, and prints by how much that raised the most memory that the process had.
PEAK = """
import io, pathlib, sys
from PIL import Image
from cnclip_pixels import decode_pixels
def most():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
for form in ("JPEG", "PNG"):
    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, form)
    decode_pixels(small.getvalue(), 32)
encoded = pathlib.Path(sys.argv[1]).read_bytes()
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = most()
decode_pixels(encoded, 32)
print(most() - before)
"""


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0}),
        ("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}),
        ("JPEG2000", "RGBA", {}),
    ],
)
def test_no_picture_takes_more_than_it_counts_as(tmp_path: Path, form: str, mode: str, options: dict[str, Any]) -> None:
    """Else several together would take more than there is: a small file of JPEG 2000 holds 24 bytes a pixel."""
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    noise = np.random.default_rng(1).integers(0, 256, (1000, 1500, len(mode)), dtype=np.uint8)
    Image.frombytes(mode, (1500, 1000), noise.tobytes()).save(tmp_path / "noise", form, **options)
    with Image.open(tmp_path / "noise") as image:
        counted = cnclip_pixels._bytes_a_pixel(image) * image.width * image.height
    command = [sys.executable, "-c", PEAK, str(tmp_path / "noise")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    taken = int(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    assert counted / 5 < taken < counted + 2_000_000


def test_one_large_picture_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnclip_pixels, "_SHARED_FOLDER", tmp_path)
    under_way, most = 0, 0

    def resize(image: Image.Image, side: int, *, streamed: bool) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        image.load()
        time.sleep(0.01)
        under_way -= 1
        return bytes(side * side * 3)

    monkeypatch.setattr(cnclip_pixels, "resize", resize)
    buffer = io.BytesIO()
    Image.new("RGB", (100, 50)).save(buffer, "PNG")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: decode_pixels(buffer.getvalue(), 32, memory=1), range(12)))
        assert most == 1
        list(pool.map(lambda _: decode_pixels(buffer.getvalue(), 32), range(40)))
    assert most > 1


def jpeg(scans: int, *, progressive: bool = True) -> bytes:
    """A JPEG whose last scan is there again and again, as short as scans are: a pass over the whole picture each."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG", progressive=progressive)
    whole = buffer.getvalue()
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded() -> None:
    """A megabyte of them kept a processor busy for minutes, and with it all that was asked beside it."""
    assert check(jpeg(100), 32)
    for encoded in (jpeg(101), jpeg(5000)):
        with pytest.raises(BadImage, match="^a JPEG of more than 100 scans$"):
            decode_pixels(encoded, 32)


def test_what_only_looks_like_scans_is_none() -> None:
    """What follows a picture, as the film of a phone's moving photograph, and what is kept beside it."""
    noise = b"\xff\xda\x00\x08" * 1000
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "JPEG", progressive=True, comment=noise, icc_profile=noise)
    assert check(buffer.getvalue() + noise, 32)
    frames = io.BytesIO()
    Image.linear_gradient("L").save(
        frames, "MPO", save_all=True, append_images=[Image.radial_gradient("L")] * 150, quality=20
    )
    assert check(frames.getvalue(), 32)


def tiff(side: int, rows: int, data: bytes, *, compression: int = 1, times: int = 1) -> bytes:
    """A grey TIFF of one strip after another, each of which is said to be all the data, so many of them."""
    tags = {256: side, 257: side, 258: 8, 259: compression, 262: 1, 277: 1, 278: rows}
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    offsets, sizes = at, at + 4 * times
    start = sizes + 4 * times
    if times == 1:
        offsets, sizes = start, len(data)
    entries = [(tag, 4, 1, value) for tag, value in tags.items()] + [(273, 4, times, offsets), (279, 4, times, sizes)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *one) for one in sorted(entries)) + bytes(4)
    lists = struct.pack("<I", start) * times + struct.pack("<I", len(data)) * times
    return b"II*\0" + struct.pack("<I", 8) + ifd + lists + data


def test_the_same_inside_a_tiff() -> None:
    assert check(tiff(256, 256, jpeg(20), compression=7), 32)
    with pytest.raises(BadImage, match="more than 100 scans"):
        decode_pixels(tiff(256, 256, jpeg(500), compression=7), 32)


def two_halves(times: int) -> bytes:
    """A TIFF that lists its two halves again and again, all of which Pillow decodes."""
    return tiff(64, 32, bytes(64 * 32), times=times)


def short_rows(high: int) -> bytes:
    """A BMP of rows whose first pixel is there, and the rest of which Pillow fills in one by one, in Python."""
    wide, rows, palette = 5000, b"\x01\0\0\0" * high, bytes(1024)
    head = struct.pack("<IiiHHIIiiII", 40, wide, high, 1, 8, 1, len(rows), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + head + palette + rows


def many_markers(count: int) -> bytes:
    """A JPEG whose EXIF is in pieces, each of which Pillow copies all before it for."""
    whole = jpeg(1, progressive=False)
    return whole[:2] + b"\xff\xe1\x00\x09Exif\0\0x" * count + whole[2:]


@pytest.mark.parametrize(
    "hostile",
    [two_halves(100_000), short_rows(4000), many_markers(400_000)],
    ids=["two halves", "short rows", "many markers"],
)
def test_what_takes_long_is_stopped(hostile: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnclip_pixels, "_SECONDS", 0.2)
    monkeypatch.setattr(cnclip_pixels, "_SECONDS_A_PIXEL", 1e-12)
    began = time.thread_time()
    with pytest.raises(BadImage, match=r"^takes more than 0\.2 s to decode$"):
        decode_pixels(hostile, 32)
    assert time.thread_time() - began < 30


def test_comments_of_a_plain_ppm() -> None:
    assert check(b"P2\n9 9\n255\n" + b"#\n" * 1000 + b"7 " * 81, 32)
    with pytest.raises(BadImage, match="^more than 1000 comments$"):
        decode_pixels(b"P2\n9 9\n255\n" + b"#\n" * 2_000_000 + b"7 " * 81, 32)


def test_what_takes_no_longer_than_it_may_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnclip_pixels, "_SECONDS_A_PIXEL", 1.0)  # and each pixel adds to that
    for harmless in (two_halves(10), short_rows(10), many_markers(10)):
        assert check(harmless, 32)


@pytest.mark.parametrize("encoded", [b"", b"\x00", b"no image", b"\xff\xd8\xff\xe0", b"GIF89a" + b"\xff" * 20])
def test_no_images(encoded: bytes) -> None:
    with pytest.raises(BadImage):
        decode_pixels(encoded, 224)
