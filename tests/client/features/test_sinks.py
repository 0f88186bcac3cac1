"""What goes into a sink comes out of its file, ids and rows alike, and cn_clip's own script reads it."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from cnclip_client import MissingExtra
from cnclip_client.features import open_sink
from cnclip_client.retrieval import read_features
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.client.test_evaluation import cn_clip

INTEGERS = st.integers(-(2**63), 2**63 - 1)
NAMES = st.text(st.characters(codec="utf-8"), max_size=12)


def write(output: Path, blocks: list[tuple[list[Any], np.ndarray]], **options: Any) -> Path:
    """Writes blocks through a sink, as a job does."""
    rows = sum(len(ids) for ids, _ in blocks)
    sink = open_sink(output, options.pop("kind", "image"), size=blocks[0][1].shape[1], **options)
    folder = output.with_name("work")
    folder.mkdir()
    for name, begin in sink.begins.items():
        grown = [begin, *(sink.encode(*block)[name] for block in blocks)]
        (folder / name).write_bytes(b"".join(grown))
    sink.assemble(folder, rows)
    sink.assemble(folder, rows)  # as one does that was cut off
    for name, place in sink.outputs.items():
        (folder / name).replace(place)
    return output


@settings(deadline=None)
@given(
    ids=st.one_of(st.lists(INTEGERS, min_size=1, max_size=40), st.lists(NAMES, min_size=1, max_size=40)),
    data=st.data(),
    kind=st.sampled_from(["image", "text"]),
    output=st.sampled_from(["a.jsonl", "a.parquet", "a.npy"]),
    dtype=st.sampled_from(["float32", "float16"]),
)
def test_ids_and_rows_come_back(
    ids: list[Any], data: st.DataObject, kind: Literal["image", "text"], output: str, dtype: Any
) -> None:
    if output == "a.jsonl":
        dtype = "float32"
    features = np.random.default_rng(len(ids)).standard_normal((len(ids), 7)).astype(dtype)
    features[0, :3] = data.draw(
        st.lists(st.floats(width=16, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)
    )
    cut = data.draw(st.integers(0, len(ids)))
    blocks = [(ids[:cut], features[:cut]), (ids[cut:], features[cut:])]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / output, blocks, kind=kind, dtype=dtype)
        read = list(read_features(path, kind))
    assert [one for block in read for one in block.ids.tolist()] == ids
    np.testing.assert_array_equal(np.concatenate([block.features for block in read]), features.astype(np.float32))


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_json_keeps_every_number(numbers: list[float]) -> None:
    feature = np.array([numbers], np.float32)
    line = open_sink(Path("a.jsonl"), "text", size=len(numbers)).encode(["七"], feature)["features"]
    assert line.startswith('{"text_id": "七", "feature": ['.encode())
    found = np.array(json.loads(line)["feature"], np.float32)
    np.testing.assert_array_equal(found, feature[0])  # but for the sign of zero, which JSON readers drop


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_has_fixed_size_lists_in_row_groups(tmp_path: Path, dtype: Any) -> None:
    features = np.zeros((40_000, 3), dtype)
    path = write(tmp_path / "a.parquet", [(list(range(40_000)), features)], dtype=dtype)
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
        assert groups == [16_384, 16_384, 7_232]
        assert str(file.schema_arrow.field("image_id").type) == "int64"
        listed = file.schema_arrow.field("feature").type
        assert (listed.list_size, str(listed.value_type)) == (3, "float" if dtype == "float32" else "halffloat")


@pytest.mark.parametrize("ids", [[1, "x"], ["x", 1], [2**63], [1, -(2**63) - 1]])
def test_ids_that_one_parquet_column_cannot_hold_become_strings(
    tmp_path: Path, ids: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        path = write(tmp_path / "a.parquet", [(ids, np.zeros((len(ids), 2), np.float32))])
    assert pq.read_table(path).column("image_id").to_pylist() == [str(one) for one in ids]
    assert ("all become strings" in caplog.text) == (len(ids) > 1)


def test_an_id_that_is_no_utf8_is_refused_by_parquet_alone(tmp_path: Path) -> None:
    one = "a\udcff.jpg"
    features = np.zeros((1, 2), np.float32)
    assert "is not UTF-8" in open_sink(tmp_path / "a.parquet", "image", size=2).refusal(one)
    for name in ("a.jsonl", "a.npy"):
        sink = open_sink(tmp_path / name, "image", size=2)
        assert sink.refusal(one) == ""
        line = sink.encode([one], features)["ids" if name == "a.npy" else "features"]
        found = json.loads(line.decode("utf-8"))  # valid UTF-8, which cn_clip's scripts insist on
        assert (found if name == "a.npy" else found["image_id"]) == one


def test_an_npy_is_numpys_own(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    path = write(tmp_path / "a.npy", [(list("abcde"), features)])
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    assert (mapped.dtype, mapped.flags.c_contiguous) == (np.dtype("<f4"), True)
    np.testing.assert_array_equal(mapped, features)
    assert (tmp_path / "a.ids.jsonl").read_text().splitlines() == ['"a"', '"b"', '"c"', '"d"', '"e"']


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("a.csv", "float32", "a.csv ends in none of .jsonl, .parquet and .npy"),
        ("a", "float32", "a ends in none"),
        ("a.jsonl", "float16", "JSON has no float16; leave out dtype"),
        ("a.npy", "int8", "dtype must be float32 or float16, got int8"),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, dtype: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_sink(Path(name), "image", size=2, dtype=dtype)


def test_a_missing_library_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtra, match=r"pip install 'cn-clip-triton\[parquet\]'"):
        open_sink(Path("a.parquet"), "image", size=2)


def test_cn_clips_script_takes_ours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((rows, 16)).astype(np.float32) for rows in (50, 20))
    (tmp_path / "i").mkdir()
    (tmp_path / "t").mkdir()
    image_file = write(tmp_path / "i" / "a.jsonl", [(list(range(100, 150)), images)], kind="image")
    text_file = write(tmp_path / "t" / "a.jsonl", [([f"第{row}句" for row in range(20)], texts)], kind="text")
    sides = ("--image-feats", image_file, "--text-feats", text_file)
    cn_clip(("make_topk_predictions", *sides, "--top-k", 3, "--output", tmp_path / "found.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    best = np.argsort(-(texts @ images.T), axis=1)[:, :3] + 100
    assert found == [{"text_id": f"第{row}句", "image_ids": best[row].tolist()} for row in range(20)]
