"""Tars as people have them: nothing in one is lost in silence, however it was put together."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from cnclip_client.sources import image_source, text_source

from tests.client.sources.reading import values
from tests.client.sources.test_webdataset import sample, write_tar


@pytest.mark.parametrize("packed", [False, True])
def test_tars_that_were_put_together_by_cat(tmp_path: Path, packed: bool) -> None:
    images, whole = [], b""
    for number in range(3):
        parts = sample(str(number), number)
        images.append((str(number), parts[0][1]))
        write_tar(tmp_path / "one.tar", parts)
        one = (tmp_path / "one.tar").read_bytes()
        whole += gzip.compress(one) if packed else one
    path = tmp_path / ("all.tar.gz" if packed else "all.tar")
    path.write_bytes(whole)
    assert values(image_source(path)) == images


def test_a_hole_of_zeros_is_not_taken_for_the_end(tmp_path: Path) -> None:
    """Downloads of many connections leave them, in a file that has its whole size from the first."""
    write_tar(tmp_path / "a.tar", [(f"{number}.jpg", bytes([number + 1]) * 3000) for number in range(5)])
    whole = (tmp_path / "a.tar").read_bytes()
    member = 512 + 3072
    (tmp_path / "a.tar").write_bytes(whole[:member] + bytes(member + 512) + whole[2 * member + 512 :])
    found = values(image_source(tmp_path / "a.tar"))
    assert [one for one, _ in found] == ["0", str(tmp_path / "a.tar")]
    assert f"damaged at byte {2 * member + 512:,}" in found[1][1]


@pytest.mark.parametrize("more", [10_240, 2 * 1024 * 1024])
def test_zeros_to_the_end_are_filling_or_a_download_that_never_ended(tmp_path: Path, more: int) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", b"0")])
    with (tmp_path / "a.tar").open("ab") as file:
        file.truncate((tmp_path / "a.tar").stat().st_size + more)
    found = values(image_source(tmp_path / "a.tar"))
    assert [one for one, _ in found][:1] == ["0"]
    assert [("all zeros from byte" in why) for _, why in found[1:]] == ([True] if more > 1024 * 1024 else [])


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_files_fail_by_name_and_hide_no_other(tmp_path: Path, format: str) -> None:
    for name in ("0.jpg", "1.jpg"):
        with (tmp_path / name).open("wb") as file:
            for piece in range(40):  # more than a header has room for
                file.seek(piece * 65536)
                file.write(b"x" * 4096)
    (tmp_path / "2.jpg").write_bytes(b"2")
    if (tmp_path / "0.jpg").stat().st_blocks * 512 > 20 * 65536:
        pytest.skip("this disk keeps no sparse files")
    names = ["0.jpg", "1.jpg", "2.jpg"]
    subprocess.run(["tar", "-cSf", "a.tar", f"--format={format}", *names], cwd=tmp_path, check=True)
    told = "is sparse (pack it without tar's -S), and no plain file"
    assert values(image_source(tmp_path / "a.tar")) == [("0", f"!0.jpg {told}"), ("1", f"!1.jpg {told}"), ("2", b"2")]


def test_a_file_that_comes_again_is_an_item_of_its_own(tmp_path: Path) -> None:
    parts = [("1.jpg", b"a"), ("1.txt", b"A"), ("1.jpg", b"b"), ("2.JPG", b"c"), ("2.jpg", b"d")]
    write_tar(tmp_path / "a.tar", parts)
    assert values(image_source(tmp_path / "a.tar")) == [("1", b"a"), ("1", b"b"), ("2", b"c"), ("2", b"d")]
    assert values(text_source(tmp_path / "a.tar"))[:2] == [("1", "A"), ("1", "!has no .txt among .jpg")]


def test_names_with_dots_of_their_own_are_told(tmp_path: Path) -> None:
    parts = [(f"IMG_2023.01.{day:02}.jpg", b"x") for day in range(20)]
    write_tar(tmp_path / "a.tar", [*parts, ("v.1.jpg", b"one of that name")])
    (first, told), *others = values(image_source(tmp_path / "a.tar"))
    assert first == "IMG_2023"
    assert told.startswith("!has 20 images, .01.00.jpg, .01.01.jpg, ")
    assert " and 12 more: --column says which" in told
    assert others == [("v", b"one of that name")]
    assert values(image_source(tmp_path / "a.tar", column="01.07.jpg"))[0] == ("IMG_2023", b"x")


@pytest.mark.parametrize("order", [("depth.png", "jpg", "seg.png"), ("jpg", "depth.png", "seg.png")])
def test_the_image_is_the_one_with_a_plain_ending(tmp_path: Path, order: tuple[str, ...]) -> None:
    write_tar(tmp_path / "a.tar", [(f"{key}.{ending}", ending.encode()) for key in "12" for ending in order])
    assert values(image_source(tmp_path / "a.tar")) == [("1", b"jpg"), ("2", b"jpg")]
    assert values(image_source(tmp_path / "a.tar", column="seg.png")) == [("1", b"seg.png"), ("2", b"seg.png")]


def test_files_without_an_ending_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.tar", "b.tar"):
        write_tar(tmp_path / name, [("1", b"x"), ("d/2", b"x"), ("3.jpg", b"3")])
    with caplog.at_level(logging.WARNING):
        assert [item.id for item in image_source(tmp_path).items()] == ["3", "3"]
    (told,) = caplog.messages
    assert told.startswith("4 files in tars are of no sample")
    assert told.endswith("such as '1'")


def test_tars_that_are_packed_otherwise_fail_by_name_among_others(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("1.jpg", b"1")])
    raw = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar.bz2").write_bytes(bz2.compress(raw))
    (tmp_path / "c.TXZ").write_bytes(lzma.compress(raw))
    (tmp_path / "d.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(2000))
    shutil.copy(tmp_path / "a.tar", tmp_path / "e.tar")
    assert values(image_source(tmp_path)) == [
        ("1", b"1"),
        ("b.tar.bz2", "!is bzip2; unpack it first"),
        ("c.TXZ", "!is xz; unpack it first"),
        ("d.tar.zst", "!is Zstandard; unpack it first"),
        ("1", b"1"),
    ]


def test_a_packed_tar_that_is_damaged_at_its_very_beginning(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("1.jpg"))
    damaged = bytearray(gzip.compress(out.getvalue()))
    damaged[12:20] = b"\xff" * 8
    (tmp_path / "a.tar.gz").write_bytes(damaged)
    ((one, told),) = values(image_source(tmp_path / "a.tar.gz"))
    assert one == str(tmp_path / "a.tar.gz")
    assert "gzip stream is cut off or damaged" in told


@pytest.mark.parametrize("digits", [18, 30, 5000])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_a_size_that_no_disk_has_is_told_of_its_tar_alone(tmp_path: Path, format: int, digits: int) -> None:
    large = tarfile.TarInfo("2.jpg")
    if format == tarfile.PAX_FORMAT:
        large.pax_headers = {"size": "9" * digits}
    else:
        large.size = int("9" * min(digits, 26))  # its 11 bytes hold no more
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        archive.addfile(tarfile.TarInfo("1.jpg"))
        archive.addfile(large)
    write_tar(tmp_path / "b.tar", [("3.jpg", b"3")])
    (_, torn, last) = values(image_source(tmp_path))
    assert torn[0] == "a.tar"
    assert "is damaged at byte 512: a member of a terabyte or more" in torn[1]
    assert last == ("3", b"3")


@pytest.mark.parametrize(
    ("kind", "size", "told"),
    [
        (tarfile.REGTYPE, b"\xff" * 12, "is damaged: a size of -1"),
        (tarfile.REGTYPE, b"seven".ljust(12), "is damaged: a size that is no number"),
        (tarfile.XHDTYPE, b"%011o\0" % 10**9, "is damaged at byte 512: a header of 1,000,000,000 bytes"),
    ],
)
def test_a_size_that_is_none_is_told(tmp_path: Path, kind: bytes, size: bytes, told: str) -> None:
    header = bytearray(tarfile.TarInfo("1.jpg").tobuf())
    header[124:136], header[156:157] = size, kind
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    write_tar(tmp_path / "b.tar", [("3.jpg", b"3")])
    torn, last = values(image_source(tmp_path))
    assert torn[0] == "a.tar"
    assert told in torn[1]
    assert last == ("3", b"3")
