"""Files that were cut off, and files with bytes turned: each reader names the file and says what to do, in one line."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import BadFile
from cnclip_client._cli import app
from cnclip_client.evaluation import read_annotations, read_predictions
from cnclip_client.retrieval import read_features
from cnclip_client.sources import image_source, text_source
from typer.testing import CliRunner

_ROWS = 40


def _features() -> np.ndarray:
    features = np.random.default_rng(0).standard_normal((_ROWS, 8)).astype(np.float32)
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))


def _lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)


def feature_lines(folder: Path) -> Path:
    rows = enumerate(_features().tolist())
    (folder / "f.jsonl").write_bytes(_lines(*({"image_id": row, "feature": feature} for row, feature in rows)))
    return folder / "f.jsonl"


def feature_array(folder: Path) -> Path:
    np.save(folder / "f.npy", _features())
    (folder / "f.ids.jsonl").write_bytes(_lines(*range(_ROWS)))
    return folder / "f.npy"


def feature_ids(folder: Path) -> Path:
    feature_array(folder)
    return folder / "f.ids.jsonl"


def feature_table(folder: Path) -> Path:
    (folder / "f").mkdir()
    for part in range(3):
        table = pa.table({"image_id": [f"{part}/{row}" for row in range(_ROWS)], "feature": _features().tolist()})
        pq.write_table(table, folder / "f" / f"{part}.parquet", compression="snappy")
    return folder / "f" / "1.parquet"


def image_table(folder: Path) -> Path:
    (folder / "i").mkdir()
    for part in range(3):
        table = pa.table({"image_id": list(range(_ROWS)), "image": [b"%d" % row * 50 for row in range(_ROWS)]})
        pq.write_table(table, folder / "i" / f"{part}.parquet", compression="zstd", row_group_size=16)
    return folder / "i" / "1.parquet"


def text_table(folder: Path) -> Path:
    pq.write_table(
        pa.table({"text_id": list(range(_ROWS)), "text": [f"第{row}句" for row in range(_ROWS)]}), folder / "t.parquet"
    )
    return folder / "t.parquet"


def image_lmdb(folder: Path) -> Path:
    import lmdb

    with lmdb.open(str(folder / "imgs")) as environment, environment.begin(write=True) as transaction:
        for row in range(_ROWS):
            transaction.put(b"%d" % row, base64.urlsafe_b64encode(b"x" * 100 * row))
    return folder / "imgs" / "data.mdb"


def image_lines(folder: Path) -> Path:
    (folder / "i.tsv").write_bytes(b"".join(b"%d\t%b\n" % (row, base64.b64encode(b"%d" % row)) for row in range(_ROWS)))
    return folder / "i.tsv"


def image_list(folder: Path) -> Path:
    (folder / "a.jpg").write_bytes(b"a")
    (folder / "list.txt").write_bytes(f"{folder}/a.jpg\n".encode() * _ROWS)
    return folder / "list.txt"


def texts(folder: Path) -> Path:
    (folder / "t.jsonl").write_bytes(_lines(*({"text_id": row, "text": f"第{row}句"} for row in range(_ROWS))))
    return folder / "t.jsonl"


def plain_texts(folder: Path) -> Path:
    (folder / "t.txt").write_bytes("".join(f"第{row}句\n" for row in range(_ROWS)).encode())
    return folder / "t.txt"


def annotations(folder: Path) -> Path:
    lines = ({"text_id": row, "text": f"第{row}句", "image_ids": [row, row + 1]} for row in range(_ROWS))
    (folder / "a.jsonl").write_bytes(_lines(*lines))
    return folder / "a.jsonl"


def predictions(folder: Path) -> Path:
    lines = ({"text_id": row, "image_ids": list(range(row, row + 10))} for row in range(_ROWS))
    (folder / "p.jsonl").write_bytes(_lines(*lines))
    return folder / "p.jsonl"


def _read_features(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        path = path.parent
    for block in read_features(path.with_name("f.npy") if path.name == "f.ids.jsonl" else path, "image"):
        yield from block.ids.tolist()


def _read_images(path: Path) -> Iterator[Any]:
    yield from image_source({".parquet": path.parent, ".mdb": path.parent}.get(path.suffix, path)).items()


def _read_texts(path: Path) -> Iterator[Any]:
    yield from text_source(path).items()


def _read_annotations(path: Path) -> Iterator[Any]:
    yield from read_annotations(path).texts


def _read_predictions(path: Path) -> Iterator[Any]:
    yield from read_predictions(path, "text-to-image")


# What is written, how it is read, and whether a part of it can never pass for the whole.
READERS: list[tuple[Callable[[Path], Path], Callable[[Path], Iterator[Any]], bool]] = [
    (feature_lines, _read_features, False),
    (feature_array, _read_features, True),
    (feature_ids, _read_features, True),
    (feature_table, _read_features, True),
    (image_table, _read_images, True),
    (text_table, _read_texts, True),
    (image_lmdb, _read_images, True),
    (image_lines, _read_images, False),
    (image_list, _read_images, False),
    (texts, _read_texts, False),
    (plain_texts, _read_texts, False),
    (annotations, _read_annotations, False),
    (predictions, _read_predictions, False),
]
EACH_READER = pytest.mark.parametrize(("write", "read", "whole"), READERS, ids=[one[0].__name__ for one in READERS])


def told(path: Path, read: Callable[[Path], Iterator[Any]]) -> int | None:
    """Reads a file; returns how many came out, or None if the file was told to be broken."""
    try:
        return len(list(read(path)))
    except BadFile as error:
        message = str(error)
        assert path.name in message
        assert "\n" not in message
        assert len(message) < 500 + len(str(path))
        return None


@EACH_READER
def test_a_file_that_was_cut_off(
    tmp_path: Path, write: Callable[[Path], Path], read: Callable[[Path], Iterator[Any]], whole: bool
) -> None:
    path = write(tmp_path)
    data = path.read_bytes()
    count = told(path, read)
    assert count is not None
    for part in range(8):
        path.write_bytes(data[: len(data) * part // 8])
        found = told(path, read)
        assert found is None or (not whole and found <= count)


@EACH_READER
def test_a_file_with_bytes_turned(
    tmp_path: Path, write: Callable[[Path], Path], read: Callable[[Path], Iterator[Any]], whole: bool
) -> None:
    path = write(tmp_path)
    data = path.read_bytes()
    rng = random.Random(write.__name__)
    broken = 0
    for _ in range(150):
        turned = bytearray(data)
        for _ in range(rng.choice([1, 1, 4, 32])):
            # As often in the first and last bytes, where headers and footers are, as in all the others.
            end = min(len(data), 200)
            place = rng.choice([rng.randrange(len(data)), rng.randrange(end), -1 - rng.randrange(end)])
            turned[place] = rng.choice([0, 255, turned[place] ^ 1 << rng.randrange(8), rng.randrange(256)])
        path.write_bytes(turned)
        broken += told(path, read) is None
    assert broken > 5 or not whole


@pytest.mark.parametrize(
    "deep",
    ["[" * 100_000, '{"a":' * 100_000, '{"image_id": 1, "feature": [1' + "0" * 400 + "]}"],
    ids=["arrays", "objects", "a number"],
)
def test_a_line_that_no_parser_likes(tmp_path: Path, deep: str) -> None:
    for name, read in (("f.jsonl", _read_features), ("a.jsonl", _read_annotations), ("p.jsonl", _read_predictions)):
        (tmp_path / name).write_text(deep)
        assert told(tmp_path / name, read) is None


def test_the_command_says_it_in_a_line_with_status_2(tmp_path: Path, triton: Any) -> None:
    table, lmdb, array = feature_table(tmp_path), image_lmdb(tmp_path), feature_array(tmp_path)
    data = bytearray(table.read_bytes())
    data[60:200] = bytes(140)  # a page, and not the footer
    table.write_bytes(data)
    lmdb.write_bytes(lmdb.read_bytes()[:-4096])
    found = predictions(tmp_path)
    found.write_bytes(found.read_bytes()[:-9])
    commands: list[tuple[Path, list[Any]]] = [
        (table, ["search", "--image-feats", table.parent, "--text-feats", array]),
        (
            table,
            ["evaluate", "--annotations", annotations(tmp_path), "--image-feats", table.parent, "--text-feats", array],
        ),
        (found, ["evaluate", "--annotations", annotations(tmp_path), "--text-to-image", found]),
        (lmdb, ["extract", "images", lmdb.parent, "-o", tmp_path / "out.npy", "--url", triton.url]),
        (lmdb, ["classify", lmdb.parent, "--label", "猫", "-o", tmp_path / "out.jsonl", "--url", triton.url]),
    ]
    for path, command in commands:
        done = CliRunner().invoke(app, [str(part) for part in command])
        assert done.exit_code == 2, (command, done.output, done.exception)
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"cnclip: {path}: ")
