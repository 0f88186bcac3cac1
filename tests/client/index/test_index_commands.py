"""`cnclip index`, and `search` and `evaluate` with what it makes, as a user types them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cnclip_client._cli import app
from typer.testing import CliRunner, Result

from tests.client.index.making import OTHER_SHA, SHA, best, clustered, parquet

ROWS, TEXTS = 600, 200


def cnclip(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return parquet(tmp_path / "images" / "a.parquet", list(range(ROWS)), clustered(ROWS), sha=SHA).parent


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    ids = list(range(1000, 1000 + TEXTS))
    return parquet(tmp_path / "texts.parquet", ids, clustered(TEXTS, seed=1), kind="text", sha=SHA)


def test_an_index_is_made_searched_evaluated_and_added_to(tmp_path: Path, images: Path, texts: Path) -> None:
    index = tmp_path / "photos.index"
    made = cnclip("index", "images", images, "-o", index, "--factory", "IVF8,PQ8x4fs", "--queries", texts)
    assert made.exit_code == 0, made.output
    assert made.stderr == ""
    record = json.loads((index / "index.json").read_text())
    measured = record["measured"]
    assert "600 images of 16 numbers, 600 of them new" in made.stdout
    assert f"recall@10  {measured['recall_at_10']:.3f}, by 100 given queries" in made.stdout
    assert f"IVF8,PQ8x4fs ({measured['parameters']})" in made.stdout
    assert "checkpoint aaaaaaaaaaaa (vit-b-16)" in made.stdout
    assert "ms; exact search" in made.stdout
    assert f"{record['memory_bytes_a_row']:,.0f} bytes of memory" in made.stdout

    page = tmp_path / "found.html"
    search = ("search", "--index", index, "--text-feats", texts, "--scores", "-o", tmp_path / "found.jsonl")
    found = cnclip(*search, "--html", page)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "by an index, whose index.json has its recall<" in page.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    right = best(clustered(TEXTS, seed=1), clustered(ROWS), 10)
    assert [line["text_id"] for line in lines] == list(range(1000, 1000 + TEXTS))
    shares = [len(set(line["image_ids"]) & set(rows)) / 10 for line, rows in zip(lines, right.tolist(), strict=True)]
    assert np.mean(shares) == pytest.approx(measured["recall_at_10"], abs=0.04)
    assert all(len(line["scores"]) == len(line["image_ids"]) <= 10 for line in lines)

    annotations = tmp_path / "annotations.jsonl"
    annotations.write_text(
        "".join(
            json.dumps({"text_id": 1000 + row, "text": "x", "image_ids": [int(rows[0])]}) + "\n"
            for row, rows in enumerate(right)
        )
    )
    sure = ("--index-parameters", "nprobe=8,rescore=600")
    evaluated = cnclip(
        "evaluate", "--annotations", annotations, "--index", index, "--text-feats", texts, "--json", *sure
    )
    assert evaluated.exit_code == 0, evaluated.output
    figures = json.loads(evaluated.stdout)
    assert list(figures) == ["text_to_image"]
    assert figures["text_to_image"]["r10"] == 100.0
    assert figures["text_to_image"]["r1"] >= 98.0  # near neighbours can change places in float16

    again = cnclip("index", "images", images, "-o", index)
    assert again.exit_code == 0
    assert f"cnclip: {index} has all of that already; nothing to do\n" == again.stderr
    parquet(images / "b.parquet", list(range(ROWS, 2 * ROWS)), clustered(ROWS, seed=2), sha=SHA)
    added = cnclip("index", "images", images, "-o", index, "--json")
    assert (added.exit_code, added.stderr) == (0, "")
    told = json.loads(added.stdout)
    assert (told["added"], told["rows"], told["parts"]) == (ROWS, 2 * ROWS, 2)
    assert told["measured"] == json.loads((index / "index.json").read_text())["measured"]


def test_an_index_of_texts(tmp_path: Path, images: Path, texts: Path) -> None:
    index = tmp_path / "captions.index"
    assert cnclip("index", "texts", texts, "-o", index).exit_code == 0
    file = tmp_path / "found.jsonl"
    found = cnclip("search", "--index", index, "--image-feats", images, "--top-k", 1, "-o", file)
    assert found.exit_code == 0, found.output
    right = best(clustered(ROWS), clustered(TEXTS, seed=1), 1)[:, 0] + 1000
    assert [json.loads(line)["text_ids"] for line in file.read_text().splitlines()] == [[one] for one in right.tolist()]
    assert file.read_text().startswith('{"image_id": 0, "text_ids": [')


def test_a_recall_that_is_not_reached_is_said(tmp_path: Path, images: Path) -> None:
    done = cnclip(
        "index", "images", images, "-o", tmp_path / "i", "--factory", "PQ4x4fs", "--no-rescore", "--recall", "0.99"
    )
    assert done.exit_code == 0
    assert "cnclip: recall@10 is 0." in done.stderr
    assert "and 0.99 could not be reached; give more --memory, allow --rescore" in done.stderr
    assert not (tmp_path / "i" / "features.npy").exists()


def test_wrong_usage_is_told_in_a_line(tmp_path: Path, images: Path, texts: Path) -> None:
    index = tmp_path / "photos.index"
    assert cnclip("index", "images", images, "-o", index).exit_code == 0
    other = parquet(tmp_path / "other.parquet", [1], clustered(1), kind="text", sha=OTHER_SHA)
    wide = parquet(tmp_path / "wide.parquet", [1], clustered(1, size=32), kind="text", sha=SHA)
    search, ask = ("search", "--index", index, "-o", tmp_path / "found.jsonl"), ("--text-feats", texts)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("search", *ask), "give --image-feats and --text-feats, or --index and the features that ask it"),
        ((*search, "--image-feats", images), "is an index of images; give --text-feats with it, and no others"),
        ((*search, *ask, "--image-feats", images), "is an index of images; give --text-feats with it, and no others"),
        (search, "is an index of images; give --text-feats with it, and no others"),
        ((*search, *ask, "--image-to-text"), "is an index of images; leave out --image-to-text"),
        ((*search, *ask, "--index-parameters", "foo=1"), "the index has nothing to turn for 'foo=1'"),
        (("search", "--index", images, *ask), "images: no index; `cnclip index` makes one"),
        ((*search, "--text-feats", other), "its features are of checkpoint bbbbbbbbbbbb (vit-b-16), and the index"),
        ((*search, "--text-feats", wide), "queries of 32 numbers, and"),
        (("index", "images", images, "-o", index, "--memory", "lots"), "'lots' is no size of memory"),
        (("index", "images", images, "-o", index, "--memory", "1MB", "--overwrite"), "give --memory "),
        (("index", "images", texts, "-o", tmp_path / "new"), "no column image_id"),
        (("index", "texts", texts, "-o", index), "is an index of images; give the texts another --output"),
        (("index", "images", images, "-o", images), "images: is there and no index; give another --output"),
    ]
    for arguments, message in cases:
        done = cnclip(*arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        assert done.stderr.startswith("cnclip: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    with (index / "index.faiss").open("ab") as file:
        file.write(b"x")
    done = cnclip(*search, *ask)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "index.faiss: has " in done.stderr
    assert done.stderr.endswith("make the index anew with --overwrite\n")


def test_without_faiss_it_says_what_to_install(
    tmp_path: Path, images: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for arguments in (("index", "images", images), ("search", "--text-feats", texts, "--index", tmp_path / "i")):
        done = cnclip(*arguments, "-o", tmp_path / "new")
        assert done.exit_code == 2
        assert done.stderr.endswith("needs faiss, which is not installed; pip install 'cn-clip-triton[index]'\n")
