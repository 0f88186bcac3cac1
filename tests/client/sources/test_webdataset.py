"""Samples of WebDataset's tars, and of what img2dataset leaves beside them and in their place."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import BadFile
from cnclip_client._flow.items import too_large
from cnclip_client.sources import image_source, text_source
from cnclip_client.sources._webdataset import braces

from tests.client.sources.reading import as_read, values

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> None:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def sample(key: str, seed: int, size: int = 2000) -> list[tuple[str, bytes]]:
    """A sample as img2dataset writes it."""
    told = {"key": key, "caption": f"说明{seed}", "url": "https://example.org", "status": "success"}
    image = random.Random(seed).randbytes(size)
    return [(f"{key}.jpg", image), (f"{key}.json", json.dumps(told).encode()), (f"{key}.txt", f"文{seed}\n".encode())]


def dataset(folder: Path, tars: int = 3, samples: int = 4) -> dict[str, bytes]:
    """img2dataset's output of tars; returns the images by their keys."""
    folder.mkdir(exist_ok=True)
    images = {}
    for tar in range(tars):
        parts = []
        for number in range(samples):
            key = f"{tar:05d}{number:04d}"
            parts += sample(key, len(images))
            images[key] = parts[-3][1]
        write_tar(folder / f"{tar:05d}.tar", parts)
        (folder / f"{tar:05d}_stats.json").write_text('{"count": 4, "successes": 4}')
        table = {"key": list(images)[-samples:], "caption": ["x"] * samples, "status": ["success"] * samples}
        pq.write_table(pa.table(table), folder / f"{tar:05d}.parquet")
    return images


# --- Tars.


def test_img2datasets_tars_win_over_what_is_beside_them(tmp_path: Path) -> None:
    images = dataset(tmp_path / "d")
    source = image_source(tmp_path / "d")
    assert source.fingerprint["format"] == "webdataset"
    assert values(source) == list(images.items())
    assert source.total() == 12
    texts = text_source(tmp_path / "d")
    assert values(texts) == [(key, f"文{number}") for number, key in enumerate(images)]
    captions = text_source(tmp_path / "d", column="caption", id_column="key")
    assert values(captions) == [(key, f"说明{number}") for number, key in enumerate(images)]
    assert values(image_source(tmp_path / "d", id_column="caption"))[3][0] == "说明3"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_names_of_every_length_in_every_format_of_tar(tmp_path: Path, format: int, packed: bool) -> None:
    keys = ["a", "d/b", "目录/图片", "x" * 90, f"{'p' * 80}/{'q' * 90}", *([] if format == 0 else ["y" * 300])]
    parts = [(f"{key}.{ending}", f"{key}{ending}".encode()) for key in keys for ending in ("jpg", "txt")]
    write_tar(tmp_path / "a.tar", parts, format)
    path = tmp_path / "a.tar"
    if packed:
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert values(image_source(path)) == [(key, f"{key}jpg".encode()) for key in keys]
    assert values(text_source(path)) == [(key, f"{key}txt") for key in keys]


def test_a_pattern_of_braces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = dataset(tmp_path / "d")
    assert values(image_source(f"{tmp_path}/d/{{00000..00002}}.tar")) == list(images.items())
    assert len(values(image_source(f"{tmp_path}/d/{{00001,00002}}.tar"))) == 8
    assert values(image_source(f"{tmp_path}/d/*.tar")) == list(images.items())
    monkeypatch.chdir(tmp_path)
    assert len(values(image_source("d/00001.tar"))) == 4
    with pytest.raises(FileNotFoundError, match="00003"):
        image_source(f"{tmp_path}/d/{{00000..00003}}.tar")
    with pytest.raises(BadFile, match="no tar"):
        image_source(f"{tmp_path}/d/x*.tar")
    assert list(braces("{a,b}{08..11}")) == ["a08", "a09", "a10", "a11", "b08", "b09", "b10", "b11"]
    assert list(braces("{2..0}.tar")) == ["2.tar", "1.tar", "0.tar"]
    with pytest.raises(BadFile, match="mend the braces"):
        list(braces("{0..99999999999}"))


def test_what_is_no_image_is_told_by_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in [*sample("./a", 0), (".hidden.jpg", b""), ("README", b"x"), ("b.txt", b"only a text")]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, kind in {"d": tarfile.DIRTYPE, "c.jpg": tarfile.SYMTYPE, "e.jpg": tarfile.LNKTYPE}.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            archive.addfile(member)
        member = tarfile.TarInfo("f.JPG")
        member.size = 5000
        archive.addfile(member, io.BytesIO(b"f" * 5000))
    found = values(image_source(tmp_path / "a.tar", item_bytes=4000))
    assert [one for one, _ in found] == ["a", "b", "c", "e", "f"]
    assert [value for _, value in found[1:]] == [
        "!has no image among .txt",
        "!c.jpg is a link (pack it with tar's -h --hard-dereference), and no plain file",
        "!e.jpg is a link (pack it with tar's -h --hard-dereference), and no plain file",
        f"!{too_large(4000)}",
    ]
    texts = values(text_source(tmp_path / "a.tar"))
    assert [value for _, value in texts] == [
        "文0",
        "only a text",
        "!has no .txt among .jpg",
        "!has no .txt among .jpg",
        "!has no .txt among .jpg",
    ]
    assert values(text_source(tmp_path / "a.tar", column="url"))[:2] == [
        ("a", "https://example.org"),
        ("b", "!has no .json among .txt"),
    ]


def test_samples_whose_json_is_none(tmp_path: Path) -> None:
    parts = [("a.jpg", b"a"), ("a.json", b"{"), ("b.jpg", b"b"), ("b.json", b'{"id": 7}'), ("c.jpg", b"c")]
    write_tar(tmp_path / "a.tar", [*parts, ("d.jpg", b"d"), ("d.json", b"[]")])
    found = values(image_source(tmp_path / "a.tar", id_column="id"))
    assert [one for one, _ in found] == ["a", 7, "c", "d"]
    assert found[0][1].startswith("!its .json is none: ")
    assert found[1:] == [
        (7, b"b"),
        ("c", "!its .json has no 'id' that is an integer or a string"),
        ("d", "!its .json has no 'id' that is an integer or a string"),
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_that_is_cut_anywhere_gives_what_is_before_and_is_told(tmp_path: Path, packed: bool) -> None:
    images = list(dataset(tmp_path / "d", tars=2).items())
    path = tmp_path / "d" / "00000.tar"
    whole = path.read_bytes()
    if packed:
        path.unlink()
        path = path.with_suffix(".tar.gz")
        whole = gzip.compress(whole)
    rng = random.Random(0)
    ends = whole.rstrip(b"\0") if not packed else whole
    for cut in sorted(rng.sample(range(1, len(ends)), 25)):
        path.write_bytes(whole[:cut])
        found = values(image_source(tmp_path / "d"))
        # What is before the cut comes whole, the one that is cut, if one is, fails, and the next tar is read.
        assert found[-4:] == images[4:]
        name, failure = found[-5]
        assert name == path.name
        assert failure.startswith("!")
        assert "cut off" in failure or "damaged" in failure
        for one, value in found[:-5]:
            assert (one, value) in images or str(value).startswith("!"), cut
        assert [one for one, _ in found[:-5]] == [one for one, _ in images[: len(found) - 5]]


def test_a_packed_tar_that_is_damaged_anywhere_fails_by_itself(tmp_path: Path) -> None:
    images = dict(dataset(tmp_path / "d", tars=2))
    path = tmp_path / "d" / "00000.tar"
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    path = path.with_suffix(".tar.gz")
    source = image_source(tmp_path / "d", format="webdataset")
    for place in range(16, len(whole) - 8, 89):
        path.write_bytes(whole[:place] + b"\xff" * 8 + whole[place + 8 :])
        items = list(source.items())
        # Once images are not what they were, the stream's sum is not either: the last one, or the tar itself, fails.
        *read, torn = items[:-4]
        assert torn.id == path.name
        assert "damaged" in torn.failure or "cut off" in torn.failure
        assert [item.id for item in read] == list(images)[: len(read)]
        assert {item.id: item.value for item in items[-4:]} == dict(list(images.items())[4:])
        # Who goes on behind one, without its value or with it, meets the same ones.
        for start, item in enumerate(items, 1):
            behind = source.items(1, start=start, after=item.after)
            assert [one.id for one in behind] == [one.id for one in items[start:]]


def test_a_damaged_header_is_told_and_not_taken_for_the_end(tmp_path: Path) -> None:
    images = list(dataset(tmp_path / "d", tars=2).items())
    path = tmp_path / "d" / "00000.tar"
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        place = archive.getmember("000000002.jpg").offset
    data[place + 10] ^= 255
    path.write_bytes(data)
    found = values(image_source(tmp_path / "d"))
    assert found[:2] == images[:2]
    assert found[2] == (
        "00000.tar",
        f"!is damaged at byte {place:,}, or no tar archive; fetch it again, or leave it out",
    )
    assert found[3:] == images[4:]


def test_what_is_no_tar_and_one_that_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "b.tar").write_bytes(b"")
    write_tar(tmp_path / "c.tar", [("README", b"")])
    found = dict(values(image_source(tmp_path)))
    assert list(found) == ["a.tar", "b.tar", "c.tar"]
    assert found["a.tar"].startswith("!is damaged at byte 0, or no tar archive")
    assert found["b.tar"].startswith("!is cut off at byte 0")
    assert found["c.tar"].startswith("!holds no sample")


def test_a_folder_of_photographs_with_a_tar_in_it_is_one_of_photographs(tmp_path: Path) -> None:
    write_tar(tmp_path / "backup.tar", sample("a", 0))
    (tmp_path / "a.jpg").write_bytes(b"a")
    assert image_source(tmp_path).fingerprint["format"] == "folder"


def test_what_a_tar_is_told_by(tmp_path: Path) -> None:
    dataset(tmp_path / "d")
    before = image_source(tmp_path / "d").fingerprint
    assert image_source(tmp_path / "d").fingerprint == before
    path = tmp_path / "d" / "00001.tar"
    path.write_bytes(path.read_bytes())
    now = image_source(tmp_path / "d").fingerprint
    assert {name for name in now if now[name] != before[name]} == {"files"}


# --- img2dataset's other outputs.


def test_img2datasets_parquet(tmp_path: Path) -> None:
    table = {
        "url": ["u"] * 3,
        "key": ["000000000", "000000001", "000000002"],
        "status": ["success", "failed_to_download", "success"],
        "caption": ["一", "二", None],
        "jpg": pa.array([b"a", None, b"c"], pa.binary()),
    }
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert values(image_source(tmp_path)) == [("000000000", b"a"), ("000000001", "!is null"), ("000000002", b"c")]
    assert values(text_source(tmp_path)) == [("000000000", "一"), ("000000001", "二"), ("000000002", "!is null")]


def test_img2datasets_folders(tmp_path: Path) -> None:
    images: dict[str, Any] = {}
    for shard in range(2):
        (tmp_path / f"{shard:05d}").mkdir()
        for number in range(3):
            key = f"{shard:05d}{number:04d}"
            for name, data in sample(key, len(images)):
                (tmp_path / f"{shard:05d}" / name).write_bytes(data)
            images[key] = data, (tmp_path / f"{shard:05d}" / f"{key}.jpg").read_bytes()
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
        pq.write_table(pa.table({"key": ["x"], "caption": ["x"]}), tmp_path / f"{shard:05d}.parquet")
    source = image_source(tmp_path)
    assert source.fingerprint["format"] == "samples"
    found = values(source)
    assert [one for one, _ in found] == list(images)
    assert [as_read(value) for _, value in found] == [image for _, image in images.values()]
    assert source.total() == 6
    assert values(text_source(tmp_path)) == [(key, f"文{number}") for number, key in enumerate(images)]
    assert values(text_source(tmp_path, column="caption"))[5] == ("000010002", "说明5")


def test_texts_of_img2datasets_folders_that_cannot_be_read_fail_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "00000").mkdir()
    (tmp_path / "00000_stats.json").write_text("{}")
    for key in "0123":
        (tmp_path / "00000" / f"{key}.jpg").write_bytes(b"image")
    (tmp_path / "00000" / "0.txt").write_text("文")
    (tmp_path / "00000" / "1.txt").symlink_to("nowhere")
    (tmp_path / "00000" / "2.txt").write_text("文")
    with (tmp_path / "00000" / "3.txt").open("wb") as file:
        file.truncate(8 << 20)
    opened = Path.open

    def forbidden(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "2.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    assert values(text_source(tmp_path)) == [
        ("0", "文"),
        ("1", "!00000/1.txt is a link that leads nowhere, or a device, and no plain file"),
        ("2", "!00000/2.txt cannot be read: Permission denied"),
        ("3", "!00000/3.txt is larger than 4,194,304 bytes"),
    ]
