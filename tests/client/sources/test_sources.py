"""Every source gives its items in one order, with the ids of the file, and a reason for each that cannot be had."""

from __future__ import annotations

import base64
import errno
import gzip
import json
import os
import random
import re
import resource
import string
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import BadFile, MissingExtra
from cnclip_client._flow.items import image_bytes, too_large
from cnclip_client._texts import NO_UTF8
from cnclip_client.sources import image_source, text_source
from cnclip_client.sources._item import parse_id
from cnclip_client.sources._lines import bounded_lines
from cnclip_client.sources._muge import decode_base64
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.client.sources.reading import as_read, values

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0", exclude_categories=("Cs",)), min_size=1)
CELLS = NAMES.filter(lambda name: name.strip() and len(name.encode()) < 400)


def test_a_path_that_cannot_be_looked_at_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    lines = [tmp_path / "a.jpg", "x" * 5000, tmp_path / "a.jpg" / "b", tmp_path / "loop", tmp_path / "pipe", tmp_path]
    (tmp_path / "list").write_text("".join(f"{line}\n" for line in lines) + "a\0b\n")
    found = values(image_source(tmp_path / "list", format="list"))
    assert [one for one, _ in found] == [*map(str, lines), "a\0b"]
    # A path is not looked at before it is read, and only then says what is wrong with it.
    assert [value for _, value in found] == [*map(str, lines), "a\0b"]
    read = [as_read(value) for _, value in found]
    assert read[:6] == [
        b"a",
        "!File name too long; images in base64 are read from a .tsv, id<TAB>base64",
        "!Not a directory",
        "!Too many levels of symbolic links",
        "!is no file, and nobody writes to it",
        "!Is a directory",
    ]
    assert str(read[6]).startswith("!is no path: ")
    assert len(values(image_source(f"{tmp_path}/*"))) == 4


def test_a_pattern_that_was_read_is_listed_anew(tmp_path: Path) -> None:
    """By the next job of the same process, to which files that came meanwhile were not there."""
    (tmp_path / "a.jpg").touch()
    source = image_source(f"{tmp_path}/*.jpg")
    assert len(values(source)) == 1
    (tmp_path / "b.jpg").touch()
    assert len(values(source)) == 2


def test_no_more_open_files_is_no_items_fault(tmp_path: Path) -> None:
    """Nor the machine's other wants: all that is left to read would fail of them."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.jpg").touch()
    (tmp_path / "list").write_text(f"{tmp_path}/a.jpg\n")
    listed = image_source(tmp_path / "list", format="list")
    sources = [image_source(place, format="folder") for place in (tmp_path, tmp_path / "below")]
    ((_, path),) = values(listed)
    reads = [lambda: image_bytes(path, 99), lambda: image_source(f"{tmp_path}/*/*.jpg")]
    reads += [lambda source=one: values(source) for one in sources]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        for read in reads:
            with pytest.raises(OSError, match="Too many open files"):
                read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_links_to_a_disk_that_is_away_are_no_items_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").symlink_to("a.jpg")
    assert values(image_source(tmp_path)) == [("a.jpg", "!Too many levels of symbolic links")]
    monkeypatch.setattr("cnclip_client._blame._OF_THE_DISK", (errno.ELOOP,))
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        values(image_source(tmp_path))


def test_ids_and_texts_that_are_encoded_by_a_dictionary(tmp_path: Path) -> None:
    words = pa.array(["一", "二", "一"]).dictionary_encode()
    columns = {"text_id": pa.array(["a", "b", "c"]).dictionary_encode(), "text": words, "path": words}
    pq.write_table(
        pa.table({**columns, "id": pa.array([7, 8, 9], pa.int32()).dictionary_encode()}), tmp_path / "a.parquet"
    )
    expected = ["一", "二", "一"]
    assert values(text_source(tmp_path / "a.parquet")) == list(zip("abc", expected, strict=True))
    assert values(image_source(tmp_path / "a.parquet")) == list(zip([7, 8, 9], expected, strict=True))


# --- Ids.


@settings(deadline=None)
@given(st.integers(-(10**39), 10**39))
def test_an_integer_comes_back_an_integer(number: int) -> None:
    assert parse_id(str(number)) == number


@settings(deadline=None)
@given(st.one_of(st.text(), st.from_regex(r"[0-9 +\-_.]+", fullmatch=True)))
def test_an_id_comes_back_as_it_is_written(text: str) -> None:
    assert str(parse_id(text)) == text


@pytest.mark.parametrize("text", ["007", "-0", "+1", "1_000", "1.0", " 1", "１", "", "-", "9" * 41])
def test_what_python_would_not_write_so_stays_a_string(text: str) -> None:
    assert parse_id(text) == text


# --- Base64.


@settings(deadline=None)
@given(st.binary(), st.booleans(), st.booleans())
def test_base64_of_either_alphabet(data: bytes, url_safe: bool, padded: bool) -> None:
    text = base64.urlsafe_b64encode(data) if url_safe else base64.b64encode(data)
    assert decode_base64(text if padded else text.rstrip(b"="), 1000) == data


@settings(deadline=None)
@given(st.binary(min_size=1), st.data())
def test_what_is_no_base64_is_refused(data: bytes, draw: st.DataObject) -> None:
    text = bytearray(base64.b64encode(data))
    place = draw.draw(st.integers(0, len(text.rstrip(b"=")) - 1))
    text[place] = draw.draw(
        st.sampled_from(
            sorted(set(range(256)) - set(string.ascii_letters.encode() + string.digits.encode() + b"+/-_="))
        )
    )
    with pytest.raises(ValueError, match="is no base64"):
        decode_base64(bytes(text), 1000)


def test_base64_past_the_limit_is_refused() -> None:
    assert decode_base64(base64.b64encode(b"x" * 100), 100) == b"x" * 100
    with pytest.raises(ValueError, match="is larger than 100 bytes"):
        decode_base64(base64.b64encode(b"x" * 103), 100)


# --- Lines.


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=30)),
    st.booleans(),
    st.booleans(),
)
def test_lines_come_back(lines: list[str], crlf: bool, ended: bool) -> None:
    end = "\r\n" if crlf else "\n"
    content = end.join(lines) + (end if ended and lines else "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_bytes(content.encode())
        found = list(bounded_lines(path, 200))
        if lines and not ended and not lines[-1]:
            lines = lines[:-1]
        bom = "\ufeff"
        expected = [lines[0].removeprefix(bom), *lines[1:]] if lines else []
        expected = expected if found and len(found) == len(expected) else expected[1:]  # a file of a mark alone
        assert [line.text.decode() for line in found] == expected
        assert [line.number for line in found] == list(range(1, len(expected) + 1))
        assert all(line.whole for line in found)
        for place, line in enumerate(found):
            assert list(bounded_lines(path, 200, line.after)) == found[place + 1 :]


def test_a_long_line_is_cut_off_and_the_next_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10 + b"\r\n" + b"y" * 3_000_000 + b"\nz\n" + b"w" * 13)
    assert [(line.text[:3], line.whole) for line in bounded_lines(path, 10)] == [
        (b"xxx", True),
        (b"yyy", False),
        (b"z", True),
        (b"www", False),
    ]


# --- Folders, globs, lists.


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def test_a_folder_with_all_in_it(tmp_path: Path) -> None:
    folder = tree(
        tmp_path / "photos", "b.jpg", "a/2.JPG", "a/10.png", "图/一.webp", "README", ".DS_Store", ".git/x.jpg"
    )
    (folder / "broken.jpg").symlink_to("nowhere")
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to("self")
    tree(tmp_path / "elsewhere", "linked.jpg")
    (folder / "c").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe")
    found = values(image_source(folder))
    good = ["README", "a/10.png", "a/2.JPG", "b.jpg", "c/linked.jpg", "图/一.webp"]
    assert [one for one, value in found if not value.startswith("!")] == good
    assert dict(found)["a/10.png"] == str(folder / "a/10.png")
    assert {one: value for one, value in found if value.startswith("!")} == {
        "broken.jpg": "!is no file, or a broken link",
        "pipe": "!is no file, or a broken link",
        "self": dict(found)["self"],
    }
    assert image_source(folder).total() == 9


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.jpg"
    Path(os.fsdecode(path)).write_bytes(b"x")
    assert values(image_source(tmp_path)) == [("\udcff\udcfe.jpg", os.fsdecode(path))]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        image_source(tmp_path / "none")


def test_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "b/1.jpg", "a/c/2.jpg", "a/3.png", "a/x.jpg/4.txt")
    monkeypatch.chdir(tmp_path)
    assert values(image_source("**/*.jpg")) == [("a/c/2.jpg", "a/c/2.jpg"), ("b/1.jpg", "b/1.jpg")]
    assert [one for one, _ in values(image_source(f"{tmp_path}/a/*.png"))] == [f"{tmp_path}/a/3.png"]
    with pytest.raises(BadFile, match=r"\*\.gif: no file matches it; check the pattern"):
        image_source("*.gif")


def test_a_list_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a.jpg", "d/b.jpg")
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_bytes(b"a.jpg\r\n\nnone.jpg\nd/b.jpg\nd\n\xff.jpg\n" + b"y" * 100_000)
    assert values(image_source("list.txt")) == [
        ("a.jpg", "a.jpg"),
        ("none.jpg", "none.jpg"),
        ("d/b.jpg", "d/b.jpg"),
        ("d", "d"),  # a folder, which reading it tells
        ("\udcff.jpg", "\udcff.jpg"),
        ("line 7", "!is longer than 65,536 bytes"),
    ]


# --- MUGE and cn_clip.


@settings(deadline=None)
@given(st.dictionaries(st.one_of(CELLS, st.integers()), st.binary(min_size=1, max_size=60)), st.booleans())
def test_a_tsv_comes_back(images: dict[Any, bytes], url_safe: bool) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imgs.tsv"
        path.write_bytes(b"".join(b"%b\t%b\n" % (str(one).encode(), encode(image)) for one, image in images.items()))
        if str(next(iter(images), "")).startswith("\ufeff"):
            return  # a byte order mark, for all that can be told
        assert values(image_source(path)) == [(parse_id(str(one)), image) for one, image in images.items()]


def test_a_tsv_with_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "imgs.tsv"
    big = base64.b64encode(bytes(2000))
    lines = [b"7\t/+8=", b"007\t_-8", b"", b"no tab", b"\tAAAA", b"8\tA$AA", b"9\t" + big, b"10\t" + big * 40, b"11\t"]
    path.write_bytes(b"\r\n".join(lines))
    assert values(image_source(path, item_bytes=1000)) == [
        (7, b"\xff\xef"),
        ("007", b"\xff\xef"),
        ("line 4", "!is not id<TAB>base64"),
        ("line 5", "!is not id<TAB>base64"),
        (8, "!is no base64"),
        (9, f"!{too_large(1000)}"),
        (10, f"!{too_large(1000)}"),
        (11, b""),
    ]


def lmdb_of(path: Path, images: dict[Any, bytes]) -> Path:
    """As cn_clip's preprocess/build_lmdb_dataset.py writes it."""
    import lmdb

    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
        for one, image in images.items():
            transaction.put(str(one).encode(), base64.urlsafe_b64encode(image))
        transaction.put(b"num_images", str(len(images)).encode())
    return path


@pytest.mark.parametrize("more", [0, 5, 1000])
@pytest.mark.parametrize("size", [30, 5000])
def test_a_cn_clip_lmdb(tmp_path: Path, more: int, size: int) -> None:
    """Of one page or of a tree of them; values that are in the page, and such as take pages of their own."""
    rng = random.Random(0)
    images: dict[Any, bytes] = {row: rng.randbytes(size) for row in range(0, 3 * more, 3)} | {"图1": b"x", "zz": b"y"}
    folder = lmdb_of(tmp_path / "imgs", images)
    expected = sorted(images.items(), key=lambda pair: str(pair[0]).encode())
    for path in (folder, tmp_path):
        source = image_source(path)
        assert values(source) == expected
        assert source.total() == len(images)


def test_an_lmdb_with_a_bad_value_and_one_that_is_none(tmp_path: Path) -> None:
    import lmdb

    folder = lmdb_of(tmp_path / "imgs", {1: b"x"})
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"2", b"a$c")
    assert values(image_source(folder)) == [(1, b"x"), (2, "!is no base64")]
    with pytest.raises(BadFile, match=r"no data\.mdb in it or in its imgs"):
        image_source(tmp_path / "none", format="lmdb")
    (folder / "data.mdb").write_bytes(b"x" * 10_000)
    with pytest.raises(BadFile, match="no LMDB"):
        list(image_source(folder).items())


def test_an_lmdb_that_was_changed_often(tmp_path: Path) -> None:
    """Transactions use pages again; what was deleted, and a value that replaced another, leave free ones."""
    import lmdb

    rng = random.Random(1)
    expected: dict[bytes, bytes] = {}
    with lmdb.open(str(tmp_path), map_size=1 << 28) as environment:
        for _ in range(20):
            with environment.begin(write=True) as transaction:
                for _ in range(50):
                    key, value = b"%d" % rng.randrange(500), rng.randbytes(rng.choice([3, 1500, 9000]))
                    if rng.random() < 0.4:
                        transaction.delete(key)
                        expected.pop(key, None)
                    else:
                        transaction.put(key, base64.b64encode(value))
                        expected[key] = value
            assert values(image_source(tmp_path)) == [(int(key), expected[key]) for key in sorted(expected)]


def test_an_lmdb_of_several_values_or_none(tmp_path: Path) -> None:
    import lmdb

    with lmdb.open(str(tmp_path / "none")):
        pass
    assert values(image_source(tmp_path / "none")) == []
    assert image_source(tmp_path / "none").total() == 0
    with lmdb.open(str(tmp_path / "named"), max_dbs=1) as environment:
        environment.open_db(b"inner")
    with pytest.raises(BadFile, match=r"named.data\.mdb: b'inner' holds more than one value; make it as cn_clip does"):
        values(image_source(tmp_path / "named"))


@pytest.mark.parametrize("more", [3, 2000])
@pytest.mark.parametrize("size", [30, 5000])
def test_an_lmdb_that_is_cut_off_is_told_before_any_item(tmp_path: Path, more: int, size: int) -> None:
    folder = lmdb_of(tmp_path / "imgs", {row: bytes(size) for row in range(more)})
    data = (folder / "data.mdb").read_bytes()
    for part in range(8):
        (folder / "data.mdb").write_bytes(data[: len(data) * part // 8])
        with pytest.raises(BadFile, match=r"data\.mdb: it is cut off, or damaged: it has .* make it anew, or copy it"):
            next(image_source(folder).items())


def test_a_damaged_lmdb_is_told(tmp_path: Path) -> None:
    """Bytes turned anywhere: the file is told, or an item, or (in a picture's own bytes) nothing can be."""
    rng = random.Random(2)
    folder = lmdb_of(tmp_path / "imgs", {row: rng.randbytes(rng.choice([20, 3000])) for row in range(150)})
    data = (folder / "data.mdb").read_bytes()
    told = 0
    for _ in range(100):
        damaged = bytearray(data)
        start = rng.randrange(len(data)) & ~4095  # a page's head, where the numbers are
        for _ in range(rng.choice([1, 1, 8])):
            damaged[start + rng.randrange(48)] ^= 1 << rng.randrange(8)
        (folder / "data.mdb").write_bytes(damaged)
        try:
            assert len(values(image_source(folder))) <= 150
        except BadFile as error:
            told += 1
            assert str(folder) in str(error)  # noqa: PT017 - not all of them raise
    assert told > 10


TEXTS = st.lists(st.tuples(st.one_of(st.integers(), st.text()), st.text(st.characters(codec="utf-8"))), max_size=20)


@settings(deadline=None)
@given(TEXTS, st.booleans())
def test_muges_jsonl_comes_back(texts: list[tuple[Any, str]], ascii_only: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        lines = [
            json.dumps({"text_id": one, "text": text, "image_ids": [1]}, ensure_ascii=ascii_only) for one, text in texts
        ]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        assert values(text_source(path)) == texts


def test_a_jsonl_with_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    lines = [b'{"text_id": 1, "text": 42}', b"{", b"", b"[1]", b'{"text": "a"}', b'{"text_id": true, "text": "a"}', b'{"text_id": 2}', b'{"text_id": "3", "text": null}', b"[" * 100_000, b'{"text_id": 4, "text": "\xff"}', b'{"text_id": 5, "text": "' + b"x" * 5_000_000 + b'"}', b'{"text_id": 6, "text": "ok"}']  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    found = values(text_source(path))
    assert [one for one, _ in found] == [1, "line 2", "line 4", "line 5", "line 6", 2, "3", "line 9", "line 10", "line 11", 6]  # fmt: skip
    assert (found[0][1], found[-1][1]) == ("42", "ok")
    assert all(value.startswith("!is no JSON object with") for one, value in found[1:5])
    assert found[3][1] == "!is no JSON object with 'text_id'; name one with --id-column: text"
    assert found[5][1] == "!its 'text' is missing or no string; name one with --column: text_id"
    assert found[8][1] == f"!{NO_UTF8}"
    assert found[9][1] == "!is longer than 4,194,304 bytes"


def test_a_jsonls_numbers_are_texts_but_nan_and_bools_are_none(tmp_path: Path) -> None:
    texts = ["7", "1.5", "NaN", "Infinity", "true", "null"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text_id": {row}, "text": {text}}}\n' for row, text in enumerate(texts)))
    none = "!its 'text' is missing or no string"  # and no word of other columns, where it has that one
    assert [value for _, value in values(text_source(path))] == ["7", "1.5", none, none, none, none]


@pytest.mark.parametrize("charset", ["utf-16-le", "utf-16-be"])
def test_a_jsonl_of_utf_16_without_a_mark_is_refused(tmp_path: Path, charset: str) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"text_id": 1, "text": "猫"}\n'.encode(charset))
    with pytest.raises(BadFile, match="UTF-16"):
        text_source(tmp_path / "a.jsonl")


def test_a_text_that_is_no_utf8_says_how_to_make_it_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("好\n".encode() + "你好\n".encode("gb18030"))
    assert values(text_source(tmp_path / "a.txt")) == [
        (1, "好"),
        (2, f"!{NO_UTF8}"),
    ]


@pytest.mark.parametrize("source", [image_source, text_source])
def test_no_path_is_not_the_current_folder(source: Any) -> None:
    with pytest.raises(BadFile, match="no path was given"):
        source("")


@pytest.mark.parametrize("names", [["text_id", "text_id", "text"], ["text_id", "text", "text"]])
def test_columns_of_one_name_are_told(tmp_path: Path, names: list[str]) -> None:
    columns = [pa.array([1]), *(pa.array(["a"]) for _ in names[1:])]
    pq.write_table(pa.Table.from_arrays(columns, names), tmp_path / "a.parquet")
    with pytest.raises(BadFile, match=f"several columns {names[1]}"):
        list(text_source(tmp_path / "a.parquet").items())


def test_jsonl_of_other_keys(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"id": "a", "caption": "猫"}\n', encoding="utf-8")
    assert values(text_source(path, id_column="id", column="caption")) == [("a", "猫")]


def test_a_text_a_line_counts_from_one_blank_ones_included(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeff猫\r\n\n{狗}\n".encode() + b"\xff")
    assert values(text_source(path)) == [(1, "猫"), (2, ""), (3, "{狗}"), (4, f"!{NO_UTF8}")]
    assert text_source(path).total() == 4


def test_a_line_that_is_too_long_is_no_text_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_client.sources._muge._MOST_TEXT_BYTES", 6)
    path = tmp_path / "texts.txt"
    path.write_text("猫猫\n猫猫猫\n狗\n", encoding="utf-8")
    assert values(text_source(path)) == [(1, "猫猫"), (2, "!is longer than 6 bytes"), (3, "狗")]


# --- Parquet.


def test_parquet_of_bytes_paths_and_hugging_faces_structs(tmp_path: Path) -> None:
    both = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "bytes": pa.array([b"a", None, b"c"]),
        "path": pa.array(["a.jpg", None, "c.jpg"]),
        "image": pa.array([{"bytes": b"a", "path": "x"}, None, {"bytes": None, "path": "c.jpg"}], both),
    }
    expected: dict[str, list[Any]] = {
        "bytes": [b"a", "!is null", b"c"],
        "path": ["a.jpg", "!is null", "c.jpg"],
        "image": [b"a", "!is null", "c.jpg"],
    }
    for name, column in columns.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"image_id": pa.array([7, 8, 9], pa.uint8()), name: column}), path)
        assert values(image_source(path)) == list(zip([7, 8, 9], expected[name], strict=True))
        pq.write_table(pa.table({name: column, "name": ["x", None, "z"]}), path)
        assert [one for one, _ in values(image_source(path))] == [0, 1, 2]
        named = values(image_source(path, id_column="name"))
        assert named[0] == ("x", expected[name][0])
        assert named[1] == ("row 1", "!its id is null, neither an integer nor a string")


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("ids", [True, False])
def test_a_folder_of_parquet_files_with_row_groups(tmp_path: Path, kind: str, rows: int, ids: bool) -> None:
    folder = tmp_path / "set"
    expected: list[tuple[Any, Any]] = []
    for part in range(3):
        cells = [f"第{part}-{row}" for row in range(50)]
        path = folder / f"{part % 2}" / f"{part}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {kind: [cell.encode() for cell in cells] if kind == "image" else cells}
        if ids:
            table["id"] = [f"{part}/{row}" for row in range(50)]
        pq.write_table(pa.table(table), path, row_group_size=rows)
    for part in (0, 2, 1):
        for row in range(50):
            cell = f"第{part}-{row}"
            one = f"{part}/{row}" if ids else len(expected)
            expected.append((one, cell.encode() if kind == "image" else cell))
    make = image_source if kind == "image" else text_source
    source = make(folder, format="parquet")
    assert values(source) == expected
    assert source.total() == 150


def test_parquet_that_is_not_as_it_should_be(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1.5], "text": ["a"], "n": [1], "x": ["b"]}), path)
    for options, message in [
        ({}, "ids are integers or strings, and id is double"),
        ({"column": "none"}, "no column none among id, text, n, x"),
        ({"id_column": "x", "column": "n"}, "n is int64, and not of strings"),
    ]:
        with pytest.raises(BadFile, match=message):
            list(text_source(path, **options).items())
    with pytest.raises(BadFile, match="which column holds the images"):
        list(image_source(path).items())
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(BadFile, match="no parquet file"):
        list(text_source(path).items())


def test_a_large_row_group_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rng = random.Random(0)
    table = pa.table({"image": [rng.randbytes(50_000) for _ in range(800)]})  # 40 MB in one row group
    pq.write_table(table, path, compression="none", row_group_size=800, use_dictionary=False, write_batch_size=16)
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in image_source(path).items())
    assert most < 15_000_000


# --- Which it is.


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tsv", b"1\tAAAA\n", "tsv"),
        ("noname", b"1\tAAAA\n", "tsv"),
        ("noname", b"a.jpg\n", "list"),
        ("a.txt", b"a\tb.jpg\n", "list"),
        ("a.PARQUET", b"", "parquet"),
        ("noname", b"PAR1", "parquet"),
        ("a[1].tsv", b"", "tsv"),
    ],
)
def test_what_holds_images_is_told(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert image_source(tmp_path / name).fingerprint["format"] == expected
    assert image_source(tmp_path / name, format="list").fingerprint["format"] == "list"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b"", "jsonl"),
        ("noname", b'\n{"text_id": 1, "text": "a"}', "jsonl"),
        ("a.txt", b"{}", "lines"),
        ("noname", b"x", "lines"),
        ("noname", b"PAR1", "parquet"),
    ],
)
def test_what_holds_texts_is_told(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert text_source(tmp_path / name).fingerprint["format"] == expected


def test_what_commands_wrote_is_refused_at_once(tmp_path: Path) -> None:
    """Each file and each line failed by itself."""
    for folder, names in {
        "parts": ["job.json", "part-00000.npy", "part-00000.ids.jsonl"],
        "index": ["ids.jsonl", "index.faiss", "index.json", "queries.npz"],
        "saved": ["data-00000-of-00001.arrow", "dataset_info.json", "state.json"],  # by datasets.save_to_disk
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
        with pytest.raises(BadFile, match="holds no image, but files such as .*; give what its images are in"):
            image_source(tmp_path / folder)
        assert len(values(image_source(tmp_path / folder, format="folder"))) == len(names)
        (tmp_path / folder / "a picture without an ending").touch()
        assert len(values(image_source(tmp_path / folder))) == len(names) + 1
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "loop.csv").symlink_to("loop.csv")
    with pytest.raises(BadFile, match="holds no image, but files such as loop.csv"):
        image_source(tmp_path / "links")
    (tmp_path / "links" / "set.txt").symlink_to(tmp_path / "index")
    assert len(values(image_source(tmp_path / "links"))) == 6
    features = tmp_path / "features.jsonl"
    features.write_text('{"image_id": 1, "feature": [0.5]}\n' * 20)
    with pytest.raises(BadFile, match="none of its first lines is a text: line 1 is no .*: image_id, feature"):
        text_source(features)
    with features.open("a") as file:
        file.write('{"text_id": 1, "text": "a"}\n')
    assert len(values(text_source(features, format="jsonl"))) == 21
    features.write_text('{"text_id": 1, "text": null}\n' * 10 + '{"text_id": 2, "text": "a"}\n')
    assert len(values(text_source(features))) == 11
    (tmp_path / "ids.jsonl").write_text('"a.jpg"\n')
    with pytest.raises(BadFile, match="is JSON, and not a path a line"):
        image_source(tmp_path / "ids.jsonl")


_ARRAY = json.dumps([{"text_id": 5, "text": "猫"}, {"text_id": 6, "text": "狗"}])
_INDENTED = json.dumps([{"text_id": 5, "text": "猫"}], indent=2)
_CSV = "text_id,text\n5,一只猫\n6,一只狗，和猫\n"
_NUMBERED = "".join(f"{row}\t第{row}句\n" for row in range(5))
_NO_LINES = [
    ("a.txt", _ARRAY, "is JSON"),
    ("a.json", _ARRAY, "is JSON"),
    ("noname", _INDENTED, "is JSON"),
    ("a.txt", _INDENTED, "is JSON"),
    ("a.txt", '\ufeff["一", "二"]', "is JSON"),
    ("a.txt", '[["一", 1]', "is JSON"),
    ("a.txt", '{"texts": ["一"]}', "is JSON"),
    ("a.txt", '{"text_id": 1, "text": "一"}\n', "is JSON"),
    ("noname", '{\n  "text_id": 5,\n', "is JSON"),
    ("noname", '{"text_id": 5,\n "text": "一"}', "is JSON"),
    ("a.txt", '[{"text_id": 1, "text": "' + "长" * 100_000 + '"}]', "is JSON"),
    ("a.csv", "一\n二\n", "is a table"),
    ("noname", _CSV, "is a table"),
    ("a.txt", _CSV, "is a table"),
    ("a.txt", _CSV.replace(",", "\t"), "is a table"),
    ("a.txt", '\ufeff"ID";"Caption"\n1;"一"\n', "is a table"),
    ("a.txt", _NUMBERED, "is a table"),
    ("a.txt", "image_id,path\n1,a.jpg\n", "is a table"),
    ("a.txt", "图片,描述\na.jpg,一只猫\n", "is a table"),
    ("noname", "文本;编号\n一只猫;a\n", "is a table"),
]


@pytest.mark.parametrize(("name", "content", "told"), _NO_LINES, ids=map(str, range(len(_NO_LINES))))
def test_what_is_no_file_of_lines_is_not_taken_for_one(tmp_path: Path, name: str, content: str, told: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    for take, lines in ((text_source, "lines"), (image_source, "list")):
        if take is image_source and name == "noname" and "\t" in content:
            continue  # a MUGE TSV
        with pytest.raises(BadFile, match=f"{name}: {told}.*; give .*, or --format {lines} if its lines are meant"):
            take(path)
        assert take(path, format=lines).fingerprint["format"] == lines  # type: ignore[operator]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.tsv", "a.tsv.gz", "noname"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(b"1\tAAAA\n" * 1000), "is gzip; unpack it first"),
        (b"PK\x03\x04\t\0", "is a zip archive or an Excel sheet"),
        ("一\n二\n".encode("utf-16"), "is UTF-16; convert it to UTF-8"),
    ],
    ids=["gzip", "zip", "UTF-16"],
)
def test_what_is_packed_is_told(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    for take in (text_source, image_source):
        with pytest.raises(BadFile, match=told):
            take(tmp_path / name)


@pytest.mark.parametrize("charset", ["gbk", "gb18030", "big5"])
@pytest.mark.parametrize(
    ("name", "content", "anyway"),
    [
        ("a.txt", "一隻貓\r\n12\r\n紅色的圓形\r\n一\r\n", "lines"),
        ("noname", "一隻貓在路上", "lines"),
        ("a.jsonl", '{"text_id": 1, "text": "紅色的圓形"}\n', "jsonl"),
        ("noname", '{"text_id": 1, "text": "紅色的圓形"}\n', "jsonl"),
        ("a.tsv", "圖一\tAAAA\n2\tAAAA\n", "tsv"),
        ("noname", "圖一\tAAAA\n2\tAAAA\n", "tsv"),
    ],
)
def test_a_file_in_another_charset_is_refused_with_what_to_do(
    tmp_path: Path, name: str, content: str, anyway: str, charset: str
) -> None:
    """Of GBK some lines are UTF-8 by chance, and would be other texts and other ids; the others would fail one by one."""
    (tmp_path / name).write_bytes(content.encode(charset))
    take: Any = image_source if anyway == "tsv" else text_source
    with pytest.raises(
        BadFile, match=rf"{name}: is not UTF-8 \(GBK\?\); convert the file \(iconv -f GB18030 -t UTF-8\)$"
    ):
        take(tmp_path / name)
    found = values(take(tmp_path / name, format=anyway))
    if anyway == "tsv":  # ids may be any bytes, as those of paths may be
        assert os.fsencode(found[0][0]) == "圖一".encode(charset)
    else:
        assert f"!{NO_UTF8}" in [value for _, value in found]


def test_a_line_here_and_there_in_another_charset_fails_by_itself(tmp_path: Path) -> None:
    """Were it the only ones that are not ASCII: the others are what they say, in any charset."""
    lines = [b"a cat", b"a dog", "café".encode("latin-1"), b"a bird", b"a fish"]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    found = [value for _, value in values(text_source(tmp_path / "a.txt"))]
    assert found == ["a cat", "a dog", f"!{NO_UTF8}", "a bird", "a fish"]


def test_ids_here_and_there_in_another_charset_are_kept_in_a_tsv(tmp_path: Path) -> None:
    """Jobs from before go on by them: were such an item a failure, the source would have changed."""
    ids = [b"7", "café".encode("latin-1"), "图".encode(), b"b"]
    (tmp_path / "a.tsv").write_bytes(b"".join(one + b"\tAAAA\n" for one in ids))
    source = image_source(tmp_path / "a.tsv")
    assert values(source) == [(one, b"\0\0\0") for one in (7, "caf\udce9", "图", "b")]


def test_a_text_cut_off_within_a_character_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" + "长" * 50_000, encoding="utf-8")
    assert text_source(tmp_path / "a.txt").fingerprint["format"] == "lines"


@pytest.mark.parametrize("content", [_ARRAY, _INDENTED])
def test_a_jsonl_that_is_no_object_a_line_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(BadFile, match=r"a\.jsonl: is JSON, but not an object a line; convert it \(jq"):
        text_source(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "content",
    [
        "[微笑] 今天真好\n[大哭]\n",
        "[1] 一只猫\n",
        "一只猫, 一只狗\n一只鸟, 一匹马\n一条鱼, 一头牛\n",
        "a cat, a dog\nmice\n",
        "1, 2, 3\n木头人\n",
        "text\n一\n",
        "标题\t内容\n一\n二\t三\n",
        "",
        "{开心}\n",
        "2024 5,000 米\n3 千\n",
    ],
)
def test_texts_that_only_look_a_little_like_it_are_taken(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    assert text_source(tmp_path / "a.txt").fingerprint["format"] == "lines"


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for take in (text_source, image_source):
        with pytest.raises(BadFile, match="is no file, and cannot be read again"):
            take(tmp_path / "pipe.jsonl")
        with pytest.raises(BadFile, match="-: standard input cannot be read again to go on; write it to a file first"):
            take("-")


def test_parquet_in_folders_below(tmp_path: Path) -> None:
    for name in ("day=1/a.parquet", "day=2/b.parquet", ".trash/c.parquet", "day=1/._a.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text_id": [1], "text": [name], "image": [b"x"]}), tmp_path / name)
    assert [item.value for item in text_source(tmp_path).items()] == ["day=1/a.parquet", "day=2/b.parquet"]
    assert [item.value for item in image_source(tmp_path).items()] == [b"x", b"x"]
    (tmp_path / "day=0").mkdir()
    (tmp_path / "day=0" / "a.jpg").touch()
    assert image_source(tmp_path).fingerprint["format"] == "folder"


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\0")
    with pytest.raises(BadFile, match="is it an image\\? give a folder"):
        image_source(tmp_path / "a.jpg")
    with pytest.raises(BadFile, match="no .parquet file in this folder"):
        text_source(tmp_path)
    with pytest.raises(BadFile, match="folder has no columns; leave out --id-column"):
        image_source(tmp_path, column="x")


@pytest.mark.parametrize(("module", "extra"), [("pyarrow", "parquet")])
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str) -> None:
    lmdb_of(tmp_path / "imgs", {1: b"x"})
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, module, None)
    source = image_source(tmp_path / ("imgs" if module == "lmdb" else "a.parquet"))
    with pytest.raises(MissingExtra, match=re.escape(f"pip install 'cn-clip-triton[{extra}]'")):
        list(source.items())


def test_memory_is_that_of_one_item(tmp_path: Path) -> None:
    path = tmp_path / "imgs.tsv"
    line = base64.b64encode(bytes(100_000))
    path.write_bytes(b"".join(b"%d\t%b\n" % (row, line) for row in range(100)))
    tracemalloc.start()
    assert sum(1 for _ in image_source(path).items()) == 100
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000  # of 13 MB
