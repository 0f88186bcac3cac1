"""What two models are compared on, and what is said of files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from cnclip_builder.comparison.inputs import open_inputs
from cnclip_builder.errors import BuildError, SettingError

from tests.conftest import DEMO


def ids(inputs: object, tower: str) -> list[object]:
    return [item.id for item in inputs.sources[tower].items()]  # type: ignore[attr-defined]


def test_the_demos_captions() -> None:
    found = open_inputs(None, None, DEMO / "captions.tsv")
    assert len(ids(found, "image")) == len(ids(found, "text")) == 6
    assert found.right_images is not None
    assert found.right_texts is not None
    assert found.right_images[2] == ["three-red-circles-top-left-on-white.png"]
    assert found.right_texts["three-red-circles-top-left-on-white.png"] == [2]
    first = next(iter(found.sources["image"].items()))
    assert Path(str(first.value)).read_bytes()


def test_an_image_with_several_captions_is_one_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "pairs.tsv").write_text("a.png\t一\n\na.png\t二\n", encoding="utf-8")
    found = open_inputs(None, None, tmp_path / "pairs.tsv")
    assert ids(found, "image") == ["a.png"]
    assert found.right_texts == {"a.png": [1, 3]}


def test_pairs_of_a_spreadsheet(tmp_path: Path) -> None:
    """They begin with a byte order mark, and a line's end is no other of Unicode's separators."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "pairs.tsv").write_bytes("\ufeffa.png\t一\u2028二\r\nb.png\t三\x85四\r\n".encode())
    found = open_inputs(None, None, tmp_path / "pairs.tsv")
    assert ids(found, "image") == ["a.png", "b.png"]
    assert [item.value for item in found.sources["text"].items()] == ["一\u2028二", "三\x85四"]


def test_muges_jsonl(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text_id": 5, "text": "猫", "image_ids": ["a.png"]}\n', encoding="utf-8")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"x")
    found = open_inputs(str(tmp_path / "images"), None, tmp_path / "texts.jsonl")
    assert (ids(found, "image"), ids(found, "text")) == (["a.png"], [5])
    assert found.right_images == {5: frozenset({"a.png"})}
    with pytest.raises(SettingError, match="give them with --images"):
        open_inputs(None, None, tmp_path / "texts.jsonl")


def test_images_alone_and_texts_alone(tmp_path: Path) -> None:
    assert list(open_inputs(str(DEMO / "images"), None, None).sources) == ["image"]
    (tmp_path / "texts.txt").write_text("一\n二\n", encoding="utf-8")
    found = open_inputs(None, str(tmp_path / "texts.txt"), None)
    assert ids(found, "text") == [1, 2]
    assert found.right_images is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no pairs"),
        (b"file\tcaption\n", "holds no pairs"),
        (b"a.png\t\xe7\x8c\xab\n", "line 1: write an image's file, a tab and its caption"),
        (b"there.png\n", "line 1: write an image's file"),
        (b"there.png\t\n", "line 1: write an image's file"),
        (b"there.png\t\xff\n", "is not in UTF-8"),
    ],
)
def test_bad_pairs(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "there.png").write_bytes(b"x")
    (tmp_path / "pairs.tsv").write_bytes(content)
    with pytest.raises(SettingError, match=complaint):
        open_inputs(None, None, tmp_path / "pairs.tsv")


def test_nothing_and_too_much(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nothing to compare on"):
        open_inputs(None, None, None)
    with pytest.raises(SettingError, match="leave out --texts"):
        open_inputs(None, "texts.txt", DEMO / "captions.tsv")
    with pytest.raises((BuildError, OSError), match="absent"):
        open_inputs(str(tmp_path / "absent"), None, None)
