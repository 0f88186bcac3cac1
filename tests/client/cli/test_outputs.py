"""An output that would take the place of what is read for it is refused, and what is read stays as it is."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cnclip_client._cli import _dedup, app
from typer.testing import CliRunner


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features of images and of texts, a link to the first, an index's folder, lists of lines, and a picture's folder."""
    for name in ("images.npy", "texts.npy"):
        np.save(tmp_path / name, np.eye(4, dtype=np.float32))
        (tmp_path / name).with_suffix(".ids.jsonl").write_text("1\n2\n3\n4\n")
    (tmp_path / "link.npy").symlink_to("images.npy")
    (tmp_path / "lines.npy").write_text("猫\n", encoding="utf-8")
    (tmp_path / "right.jsonl").write_text('{"text_id": 1, "text": "猫", "image_ids": [1]}\n', encoding="utf-8")
    for place in ("photos.index/index.json", "photos/a.jpg"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text("{}")
    record = SimpleNamespace(parts=[SimpleNamespace(path=str(tmp_path / "images.npy"))])
    index = contextlib.nullcontext(SimpleNamespace(record=record))
    monkeypatch.setattr(_dedup, "Index", SimpleNamespace(open=lambda path: index))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SEARCH = ("search", "--image-feats", "images.npy", "--text-feats", "texts.npy", "--annotations", "right.jsonl")
READ = [
    *(
        (*SEARCH, "--html", "page.html", "-o", name)
        for name in ("images.npy", "./texts.npy", "link.npy", "images.ids.jsonl", "right.jsonl", "photos/../texts.npy")
    ),
    (*SEARCH, "-o", "found.jsonl", "--html", "images.npy"),
    ("search", "--index", "photos.index", "--text-feats", "texts.npy", "-o", "photos.index/found.jsonl"),
    ("dedup", "photos.index", "--cosine", "0.9", "-o", "images.npy"),
    ("dedup", "photos.index", "--cosine", "0.9", "-o", "photos.index/index.json"),
    ("classify", "photos", "--labels", "lines.npy", "-o", "lines.npy"),
    ("classify", "photos", "--label", "猫", "-o", "photos/found.jsonl"),
    ("classify", "--file", "lines.npy", "--label", "猫", "-o", "lines.npy"),
    ("features", "texts", "-f", "lines.npy", "-o", "lines.npy"),
    ("features", "images", "-f", "lines.npy", "-o", "lines.npy"),
]


@pytest.mark.parametrize("arguments", READ, ids=" ".join)
def test_what_is_read_is_not_replaced(folder: Path, arguments: tuple[str, ...]) -> None:
    before = content(folder)
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == 2, done.output
    assert "would take the place of what is read of" in done.output
    assert content(folder) == before


def test_two_outputs_are_two_files(folder: Path) -> None:
    done = CliRunner().invoke(app, [*SEARCH, "-o", "found", "--html", "./found"])
    assert (done.exit_code, "--output and --html are both found" in done.output) == (2, True)


def test_what_has_no_place_to_take_is_written(folder: Path) -> None:
    done: Any = CliRunner().invoke(app, [*SEARCH[:5], "-o", "/dev/null"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*SEARCH[:5], "-o", "photos/found.jsonl"])
    assert done.exit_code == 0, done.output
    assert json.loads((folder / "photos" / "found.jsonl").read_text().splitlines()[0])["text_id"] == 1
