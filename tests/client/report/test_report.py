"""The page: what is right is marked by a word, nothing is fetched, nothing of the user's becomes markup."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import BadFile, MissingExtra
from cnclip_client._cli._pictures import _require_numbers, pictures_in
from cnclip_client.evaluation import Annotations, read_annotations
from cnclip_client.report import Thumbnail, html_report, image_ids, thumbnails
from cnclip_client.retrieval import Hits
from cnclip_client.sources import image_source
from cnclip_client.sources._muge import LinesSource
from cnclip_client.sources._parquet import ParquetSource
from PIL import EpsImagePlugin, Image

from tests.commands import run_command_text

HOSTILE = "<script>alert(1)</script> & \"引号\" 'x' {{ 7 * 7 }}"


def picture(colour: str, size: tuple[int, int] = (40, 30), format: str = "PNG", mode: str = "RGB") -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(encoded, format)
    return encoded.getvalue()


def hits(query: int | str, *ids: int | str) -> Hits:
    return Hits(query, ids, np.linspace(0.9, 0.5, len(ids), dtype=np.float32))


def in_english(page: str) -> str:
    return re.sub('<span class="said" lang="zh-CN">.*?</span>', "", page)


class Page(HTMLParser):
    """Collects tags, attributes and, by section, the text of every answer, as somebody sees it who reads English."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.sections: list[list[dict[str, str]]] = []
        self.headings: list[str] = []
        self._in = ""
        self.feed(in_english(page))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        given = {name: value or "" for name, value in attrs}
        if tag == "section":
            self.sections.append([])
        if tag == "li":
            self.sections[-1].append({"class": given["class"], "text": "", "image": ""})
        if tag == "img" and self._in == "li":
            self.sections[-1][-1]["image"] = given["src"]
        if tag in ("li", "h2", "style"):
            self._in = tag
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == self._in:
            self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "li":
            self.sections[-1][-1]["text"] += f" {data.strip()}"
        if self._in == "h2":
            self.headings[-1] += data


@pytest.fixture
def annotations() -> Annotations:
    texts = {1: HOSTILE, 2: "第二", 3: "第三"}
    return Annotations(texts, {1: {"a"}, 2: {"x", "y"}, 3: set()}, {"a": [1], "x": [2], "y": [2]})


def test_images_for_texts(annotations: Annotations) -> None:
    found = [hits(1, "b", "a", "c"), hits(2, "a", "x", "b"), hits(3, "a", "b", "c"), hits(4, "c", "b", "a")]
    assert image_ids(found, "text-to-image", annotations) == {"a", "b", "c", "x", "y"}
    source = iter([("a", picture("red")), ("zzz", b""), ("b", b"torn"), ("y", picture("blue"))])
    made = thumbnails(source, {"a", "b", "c", "x", "y"})
    page = Page(
        html_report(found, "text-to-image", annotations=annotations, pictures=made, queries=12345, searched=678)
    )
    assert page.headings == [HOSTILE, "第二", "第三", "4"]
    marks = [["✓ right" in one["text"] for one in section] for section in page.sections]
    assert marks == [[False, True, False], [False, True, False, True], [False] * 3, [False] * 3]
    assert [["right" in one["class"].split() for one in section] for section in page.sections] == marks
    assert page.sections[0][0]["text"].split() == ["no", "picture", "cannot", "be", "decoded", "1", "0.9000", "b"]
    assert page.sections[0][1]["image"] == made["a"].uri
    assert "not among the images" in page.sections[0][2]["text"]
    missed = page.sections[1][3]
    assert (missed["class"].split(), missed["image"]) == (["answer", "right", "missed"], made["y"].uri)


def test_texts_for_images(annotations: Annotations) -> None:
    found = [hits("a", 2, 1), hits("b", 3, 1)]
    assert image_ids(found, "image-to-text", annotations) == {"a", "b"}
    page = Page(html_report(found, "image-to-text", annotations=annotations, pictures={"a": Thumbnail("data:,")}))
    assert page.headings == ["a", "b"]
    assert [[HOSTILE in one["text"] for one in section] for section in page.sections] == [[False, True], [False, True]]
    assert [["✓ right" in one["text"] for one in section] for section in page.sections] == [[False, True], [False] * 2]


def test_without_annotations_nothing_is_called_right_or_wrong() -> None:
    page = in_english(html_report([hits(1, "a"), hits(2, "b")], "text-to-image"))
    body = page[page.index("<body") :]
    assert "✓" not in body
    assert "✗" not in body
    assert body.count("right answers are not known") == 2
    assert "no picture" not in body  # where none was asked for, none is missed
    assert html_report([], "text-to-image").count("<section") == 0


def test_ids_that_are_no_unicode_are_escaped() -> None:
    page = html_report([hits("\ud800", "caf\udce9.jpg")], "text-to-image")
    assert r"\ud800" in page.encode().decode()
    assert r"caf\udce9.jpg" in page


def test_it_counts(annotations: Annotations) -> None:
    found = [hits(1, "a", "b"), hits(2, "a", "x"), hits(3, "a", "b")]
    page = html_report(found, "text-to-image", annotations=annotations, queries=9999, searched=1234567)
    header = page[page.index("<header") : page.index("</header")]

    def words(header: str) -> str:
        return " ".join(re.sub(r"<[^>]*>", "", header).split())

    assert words(in_english(header)) == (
        "Images found for texts The first 2 of 1,234,567 images · 3 of 9,999 queries shown · exact inner products "
        "Of the 2 annotated, the first answer is right for 1, one of the first 2 for 2."
    )
    assert words(re.sub('<span class="said" lang="en">.*?</span>', "", header)) == (
        "文搜图结果 1,234,567 张图片中的前 2 张 · 9,999 个查询，显示 3 个 · 精确检索，分数为内积 "
        "其中 2 个有标注：第一名就正确的有 1 个，前 2 名里有正确答案的有 2 个。"
    )
    assert "✓ first right answer at #2" in re.sub(r"<[^>]*>", "", page)
    nothing = html_report([hits(1, "b", "c")], "text-to-image", annotations=annotations)
    assert "✗ none of the 2 is right" in re.sub(r"<[^>]*>", "", nothing)


def test_nothing_is_fetched_and_nothing_becomes_markup(annotations: Annotations) -> None:
    hostile = "\"><img src=x onerror='alert(1)'>"
    found = [hits(1, hostile, "a"), hits(hostile, "a", "b")]
    made = {"a": thumbnails([("a", picture("red"))], {"a"})["a"], hostile: Thumbnail(reason=hostile)}
    text = html_report(found, "text-to-image", annotations=annotations, pictures=made)
    page = Page(text)
    assert page.tags.count("script") == 1
    assert not {"link", "iframe", "object", "base", "form"} & set(page.tags)
    assert page.tags.count("img") == 2
    assert all(
        value.startswith("data:image/jpeg;base64,") for name, value in page.attributes if name in ("src", "href")
    )
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (value for name, value in page.attributes if name == "content" and "src" in value)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-")
    assert "prefers-color-scheme: dark" in style
    assert "49" not in page.headings[0]


@pytest.mark.parametrize(
    ("format", "mode"),
    [("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "CMYK"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("GIF", "P")],
)
def test_thumbnails_are_small_jpegs_of_the_same_shape(format: str, mode: str) -> None:
    uri = thumbnails([(1, picture("red", (2000, 500), format, mode))], {1})[1].uri
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))) as image:
        assert (image.format, image.size) == ("JPEG", (256, 64))
        red, green, blue = image.convert("RGB").getpixel((128, 32))  # type: ignore[misc]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize(
    "error", [OSError, ValueError, SyntaxError, KeyError, struct.error, zlib.error, EOFError, RuntimeError, MemoryError]
)
def test_whatever_a_decoder_raises_ends_one_picture_and_not_the_page(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    real = Image.open
    calls: list[None] = []

    def opened(data: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise error("a decoder's own words")
        return real(data)

    monkeypatch.setattr(Image, "open", opened)
    made = thumbnails([(1, b"damaged"), (2, picture("red"))], {1, 2})
    assert made[1].reason == "cannot be decoded"
    assert made[2].uri


def test_a_picture_that_cannot_be_read_does_not_end_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(picture("red"))
    real = Path.read_bytes

    def read(self: Path) -> bytes:
        if self == tmp_path / "1.png":
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert {one for one, _ in pictures_in(image_source(tmp_path), {1, 2})} == {2}
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "2.png").write_bytes(picture("blue"))
    (tmp_path / "2.png").rename(tmp_path / "0" / "1.png")
    assert [one for one, _ in pictures_in(image_source(tmp_path), {"1.png", "0/2.png"})] == ["0/2.png"]


def test_a_picture_goes_by_the_digits_of_its_id(tmp_path: Path) -> None:
    (tmp_path / "imgs.tsv").write_bytes(b"7\t%b\n" % base64.b64encode(picture("red")))
    assert ("7", picture("red")) in pictures_in(image_source(tmp_path / "imgs.tsv"), {"7"})


def test_no_thumbnail_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that were made elsewhere may be of a file in PostScript, which the server refuses."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert thumbnails([(1, postscript)], {1})[1].reason == "cannot be decoded"
    assert not started.exists()


def test_thumbnails_stop_reading_once_all_are_found() -> None:
    def images() -> Any:
        yield "a", picture("red")
        yield "a", picture("blue")
        yield "b", picture("red")
        raise AssertionError("read on")

    made = thumbnails(images(), {"a", "b"})
    assert made["a"] == made["b"]
    assert thumbnails(iter([("a", b"")]), set()) == {}


def test_without_its_libraries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match=r"needs jinja2, .*; pip install 'cn-clip-triton\[report\]'"):
        html_report([], "text-to-image")


def test_the_command_writes_it(tmp_path: Path) -> None:
    features = np.eye(3, dtype=np.float32)
    ids = ["sub/red.png", 7, "blue"]
    for name, kind, named in [("imgs", "image", ids), ("texts", "text", [1, 2, 3])]:
        lines = [{f"{kind}_id": one, "feature": row} for one, row in zip(named, features.tolist(), strict=True)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for path, colour in [("sub/red.png", "red"), ("007.png", "green"), ("blue.gif.png", "blue"), ("blue.jpg", "blue")]:
        (tmp_path / "pictures" / path).write_bytes(picture(colour))
    annotations = tmp_path / "annotations.jsonl"
    lines = [{"text_id": one, "text": f"第{one}句", "image_ids": [ids[one - 1]]} for one in (1, 2)]
    annotations.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def search(*more: object) -> subprocess.CompletedProcess[str]:
        sides = ("--image-feats", tmp_path / "imgs.jsonl", "--text-feats", tmp_path / "texts.jsonl")
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
        return run_command_text("cnclip", "search", *sides, *more, env=environment)

    plain = search("--top-k", 2)
    assert plain.returncode == 0, plain.stderr
    assert [json.loads(line)["image_ids"][0] for line in plain.stdout.splitlines()] == ids
    page = tmp_path / "report.html"
    shown = ("--html", page, "--images", tmp_path / "pictures", "--annotations", annotations, "--html-queries", 2)
    done = search("--top-k", 2, *shown)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    assert done.stderr.startswith("cnclip: no telling which checkpoint the features of ")
    assert done.stderr.count("\n") == 1
    read = Page(page.read_text(encoding="utf-8"))
    assert read.headings == ["第1句", "第2句"]
    assert [[bool(one["image"]) for one in section] for section in read.sections] == [[True, True]] * 2
    assert read_annotations(annotations).texts[2] == "第2句"
    tsv = tmp_path / "imgs.tsv"
    encoded = {one: base64.urlsafe_b64encode(picture("red")).decode() for one in ids}
    tsv.write_text("".join(f"{one}\t{data}\n" for one, data in encoded.items()))
    assert search("--html", page, "--images", tsv).returncode == 0
    early = search("--html", tmp_path / "absent" / "report.html")  # before it has searched
    assert (early.returncode, early.stdout) == (2, "")
    assert f"{tmp_path}/absent/report.html" in early.stderr
    (tmp_path / "gbk.txt").write_text("黑猫\n白狗\n", encoding="gbk")
    early = search("--html", page, "--texts", tmp_path / "gbk.txt")
    assert (early.returncode, early.stdout) == (2, "")
    assert f"{tmp_path}/gbk.txt: is not UTF-8 (GBK?); convert the file" in early.stderr
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 9
    refused = search("--images", tmp_path)
    assert refused.returncode == 2
    assert "name it with --html" in refused.stderr


def test_an_id_is_that_of_its_own_file_before_it_is_another_ones_name(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    colours = {"0/1.png": "red", "1.png": "blue", "0/2.png": "green"}
    for name, colour in colours.items():
        (tmp_path / name).write_bytes(picture(colour))
    made = thumbnails(pictures_in(image_source(tmp_path), {*colours, 2}), {*colours, 2})
    expected = {**colours, 2: "green"}
    assert made == thumbnails([(one, picture(colour)) for one, colour in expected.items()], set(expected))


@pytest.mark.parametrize("direction", ["--text-to-image", "--image-to-text"])
@pytest.mark.parametrize(
    ("option", "source", "first"),
    [("--texts", "texts.txt", 1), ("--texts", "texts.parquet", 0), ("--images", "images.parquet", 0)],
)
def test_what_goes_by_its_number_is_what_the_features_are_of(
    tmp_path: Path, direction: str, option: str, source: str, first: int
) -> None:
    """Beside features that count from elsewhere the page would show another one's text or picture."""
    words = ["黑猫", "白狗", "红花"]
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "texts.txt").write_text("\n".join(words), encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": words}), tmp_path / "texts.parquet")
    images = [picture(colour) for colour in ("black", "white", "red")]
    parquet.write_table(pyarrow.table({"image": images}), tmp_path / "images.parquet")

    def search(first: int) -> subprocess.CompletedProcess[str]:
        for kind in ("image", "text"):
            lines = [{f"{kind}_id": one, "feature": [float(one), 1.0]} for one in range(first, first + 3)]
            (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sides = ("--image-feats", "image.jsonl", "--text-feats", "text.jsonl", "--normalize", direction)
        return run_command_text("cnclip", "search", *sides, "--html", "found.html", option, source, cwd=tmp_path)

    assert search(first).returncode == 0
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert all(one in page for one in words) if option == "--texts" else page.count("data:image/") >= 3
    shifted = search(1 - first)
    assert (shifted.returncode, shifted.stdout) == (2, "")
    missing = 0 if first else 3
    assert f"s go by their numbers, {first} to {first + 2}, and there is a feature of {missing}: give" in shifted.stderr
    assert (tmp_path / "found.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("one", ["02", "٢", "9" * 5000])
def test_what_is_written_in_another_way_is_no_number(tmp_path: Path, one: str) -> None:
    """No text has such an id, so the page would have none; and of thousands of digits Python makes no integer."""
    _require_numbers(source := LinesSource(tmp_path / "texts.txt"), range(1, 4), [2, "3"])
    with pytest.raises(BadFile, match="go by their numbers, 1 to 3, and there is a feature of"):
        _require_numbers(source, range(1, 4), [1, one])


def test_files_that_parquet_lists_go_by_their_names(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"path": [str(tmp_path / "a.png")]}), tmp_path / "images.parquet")
    assert ParquetSource(tmp_path / "images.parquet", "image").numbers() is None
