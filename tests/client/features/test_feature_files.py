"""Every format comes back as it was written, in blocks, and what is wrong with a file is said by line or id."""

from __future__ import annotations

import json
import logging
import sys
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import BadFile, MissingExtra
from cnclip_client.features import origin_of
from cnclip_client.features._features import Features, rebatch
from cnclip_client.features._origin import PARQUET_KEY, Origin
from cnclip_client.retrieval import read_features

Ids = list[int] | list[str]


def unit_rows(rows: int, size: int = 12, dtype: type = np.float32) -> np.ndarray:
    features = np.random.default_rng(rows).standard_normal((rows, size))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(dtype)


def jsonl(path: Path, ids: Ids, features: np.ndarray, kind: str = "image") -> Path:
    lines = [json.dumps({f"{kind}_id": one, "feature": row}) for one, row in zip(ids, features.tolist(), strict=True)]
    path.with_suffix(".jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path.with_suffix(".jsonl")


def npy(path: Path, ids: Ids, features: np.ndarray, kind: str = "image") -> Path:
    np.save(path.with_suffix(".npy"), features)
    path.with_suffix(".ids.jsonl").write_text("".join(json.dumps(one) + "\n" for one in ids), encoding="utf-8")
    return path.with_suffix(".npy")


def table(ids: Ids, features: np.ndarray, kind: str = "image") -> pa.Table:
    flat = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    return pa.table({f"{kind}_id": pa.array(ids), "feature": flat})


def parquet(path: Path, ids: Ids, features: np.ndarray, kind: str = "image") -> Path:
    pq.write_table(table(ids, features, kind), path.with_suffix(".parquet"), row_group_size=7)
    return path.with_suffix(".parquet")


def parquet_folder(path: Path, ids: Ids, features: np.ndarray, kind: str = "image") -> Path:
    path.mkdir()
    for start in range(0, len(ids), 10):
        pq.write_table(table(ids[start : start + 10], features[start : start + 10], kind), path / f"{start:05}.parquet")
    (path / "_SUCCESS").touch()
    return path


def lists(path: Path, ids: Ids, features: np.ndarray, kind: str = "image") -> Path:
    pq.write_table(pa.table({f"{kind}_id": ids, "feature": features.tolist()}), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("write", [jsonl, npy, parquet, parquet_folder, lists])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("ids", [list(range(500, 470, -1)), [f"图/{row}.jpg" for row in range(30)]])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_it_reads_what_was_written(
    tmp_path: Path, write: Callable[..., Path], dtype: type, ids: Ids, rows: int
) -> None:
    features = unit_rows(30, dtype=dtype)
    path = write(tmp_path / "feats", ids, features, "text")
    blocks = list(read_features(path, "text", block_bytes=rows * 12 * 4))
    assert [one for block in blocks for one in block.ids.tolist()] == ids
    read = np.concatenate([block.features for block in blocks])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, features.astype(np.float32))
    assert max(len(block) for block in blocks) <= rows
    assert {block.ids.dtype for block in blocks} == {np.dtype(np.int64 if ids[0] == 500 else object)}


@pytest.mark.parametrize("write", [jsonl, npy, parquet])
def test_memory_is_that_of_a_block(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "feats", list(range(8_000)), unit_rows(8_000, 64))
    for _ in read_features(path, "image", block_bytes=100_000):
        pass  # imports and caches
    tracemalloc.start()
    rows = sum(len(block) for block in read_features(path, "image", block_bytes=100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 8_000
    assert peak < 1_000_000  # the features are 2 MB


def test_features_that_are_not_normalised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = jsonl(tmp_path / "feats", [1, 2, 3], np.array([[1, 0], [3, 4], [0.1, 0]]))
    with caplog.at_level(logging.WARNING):
        blocks = list(read_features(path, "image", block_bytes=8))
    assert [block.features.tolist() for block in blocks] == [[[1, 0]], [[3, 4]], [[np.float32(0.1), 0]]]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: the feature of 2 has length 5, not 1, so scores are no cosines; "
        "normalize it when reading (--normalize) unless that is meant"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        (block,) = read_features(path, "image", normalize=True)
    np.testing.assert_allclose(block.features, [[1, 0], [0.6, 0.8], [1, 0]], rtol=1e-6)
    assert not caplog.records


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"image_id": 1, "feature": [1, 0]}', '{"image_id": 2, "feat'], "line 2 is no feature .*; extract it anew"),
        (['{"text_id": 1, "feature": [1]}'], "line 1 has no 'image_id'; it holds features of texts"),
        (['{"image_id": 1}'], "line 1 has no 'feature'; it is no file of features"),
        (["[1, 2]"], "line 1 is no feature"),
        (['{"image_id": 1, "feature": "abc"}'], "line 1 is no feature"),
        (['{"image_id": 1, "feature": 0.5}'], "line 1: its feature is no list of numbers"),
        (['{"image_id": 1, "feature": []}'], "line 1: its feature is no list of numbers"),
        (['{"image_id": 1.5, "feature": [1]}'], "line 1: the id 1.5 is neither an integer nor a string"),
        (['{"image_id": true, "feature": [1]}'], "line 1: the id True is neither"),
        (['{"image_id": 1, "feature": [1]}', '{"image_id": 2, "feature": [1, 0]}'], "line 2: a feature of 2 numbers"),
        (['{"image_id": 1, "feature": [1]}', '{"image_id": "二", "feature": [NaN]}'], "the feature of '二' holds NaN"),
        (['{"image_id": 1, "feature": [1e39]}'], "the feature of 1 holds NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, lines: list[str], message: str) -> None:
    path = tmp_path / "feats.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(BadFile, match=f"^{path}: .*{message}"):
        list(read_features(path, "image"))


ODD_LINES = [
    b'{"image_id": 1, "feature": [%b]}' % number
    for number in (
        *(b"-0", b"-0.0", b"1e-400", b"2.2250738585072011e-308", b"7.0064923216240853e-46", b"7.006492321624086e-46"),
        *(b"1.00000005960464477539062", b"1.000000059604644775390625", b"1.000000178813934326171875", b"16777217"),
        *(b"9007199254740993", b"18446744073709551615", b"18446744073709551616", b"1" * 30, b"1" * 400, b"3.4e38"),
        *(b"true", b"null", b'"0.5"', b"[1]", b"NaN", b"1e400", b"01", b"1.", b"+1", b"1]", b"", b"1,", b"{}"),
    )
] + [
    b'{"image_id": %b, "feature": [1]}' % one
    for one in (
        *(b"9223372036854775808", b"18446744073709551616", b"-9223372036854775809", b'"\\ud800"', b'"\xed\xa0\x80"'),
        *(b'"\xff"', b'"\x01"', b'"\\u0000"', b"1.0", b"1e2", b"null", b"[1]", b"true"),
    )
]


@pytest.mark.parametrize(
    "line", [*ODD_LINES, b'\xef\xbb\xbf{"image_id": 1, "feature": [1]}', b"[" * 2000, b"", b"{}", b"7"]
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_line_is_what_the_json_module_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    from cnclip_client.features import _jsonl

    def read() -> tuple[Any, bytes] | str:
        try:
            ((ids, rows),) = _jsonl.read_jsonl(path, "image", 1000)
        except BadFile as error:
            return str(error)
        return ids, rows.tobytes()

    path = tmp_path / "feats.jsonl"
    path.write_bytes(line + b"\n")
    quickly = read()
    monkeypatch.setattr(_jsonl, "_quickly_parsed", lambda line, key: None)
    assert quickly == read()


def test_lines_are_read_several_times_faster_than_the_json_module_parses_them(tmp_path: Path) -> None:
    features = unit_rows(600, 512)
    path = jsonl(tmp_path / "feats", list(range(600)), features)
    lines = path.read_bytes().splitlines()

    def seconds(run: Callable[[], Any]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    (block,) = read_features(path, "image")
    assert block.features.tobytes() == features.tobytes()
    ours = min(seconds(lambda: list(read_features(path, "image"))) for _ in range(3))
    theirs = min(seconds(lambda: [json.loads(line) and None for line in lines]) for _ in range(3))
    assert ours < theirs / 2  # a fifth was measured; and numpy's array of such a list comes on top of theirs


def test_an_array_may_be_larger_than_memory(tmp_path: Path) -> None:
    """A mapping that could be written to is refused then."""
    with (tmp_path / "large.npy").open("wb") as file:
        shape = (2**40 // 2048, 512)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 2**40)  # a hole
    (tmp_path / "large.ids.jsonl").write_text("7\n")
    first = next(read_features(tmp_path / "large.npy", "image"))
    assert (first.ids.tolist(), first.features.shape) == ([7], (1, 512))


def test_a_feature_of_zeros_cannot_be_normalised(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "feats", [1, 2], np.array([[1, 0], [0, 0]]))
    with pytest.raises(BadFile, match="the feature of 2 is all zeros"):
        list(read_features(path, "image", normalize=True))


@pytest.mark.parametrize(
    ("array", "ids", "message"),
    [
        (np.eye(3, dtype=np.float32), [1, 2], r"3 features, and 2 ids in feats.ids.jsonl"),
        (np.eye(3, dtype=np.float32), [1, 2, 3, 4], r"3 features, and 4 ids"),
        (np.eye(3, dtype=np.float32), None, "its ids are missing; put them, a JSON id a line, into feats.ids.jsonl"),
        (np.eye(3), [1, 2, 3], r"float64 \[3, 3\], not float32 or float16 \[N, D\]"),
        (np.ones(3, np.float32), [1, 2, 3], r"float32 \[3\], not float32 or float16 \[N, D\]"),
        (np.array([{}]), [1], "no .npy file of numbers"),
    ],
)
def test_what_is_wrong_with_an_npy_file_is_said(
    tmp_path: Path, array: np.ndarray, ids: Ids | None, message: str
) -> None:
    path = npy(tmp_path / "feats", ids or [], array)
    if ids is None:
        path.with_suffix(".ids.jsonl").unlink()
    with pytest.raises(BadFile, match=message):
        list(read_features(path, "image"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text_id": [1], "feature": [[1.0]]}, "no column image_id among text_id, feature"),
        ({"image_id": [1, None], "feature": [[1.0], [1.0]]}, "a null"),
        ({"image_id": [1, 2], "feature": [[1.0], None]}, "a null"),
        ({"image_id": [1, 2], "feature": [[1.0], [None]]}, "a null"),
        ({"image_id": [1, 2], "feature": [[1.0], [1.0, 0.0]]}, "features of different lengths"),
        ({"image_id": [1, 2], "feature": [[1.0, 0.0, 0.0], [1.0]]}, "features of different lengths"),
        ({"image_id": [1], "feature": [1.0]}, "a feature that is no list"),
        ({"image_id": [1], "feature": [[1]]}, "features of int64, not of floats"),
        ({"image_id": [1.5], "feature": [[1.0]]}, "the id 1.5 is neither"),
    ],
)
def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = tmp_path / "feats.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(BadFile, match=message):
        list(read_features(path, "image"))


def test_what_is_no_file_of_features_is_said(tmp_path: Path) -> None:
    for name in ("feats.txt", "feats"):
        with pytest.raises(BadFile, match=r"no file of features; give a \.jsonl, \.parquet or \.npy file"):
            list(read_features(tmp_path / name, "image"))
    with pytest.raises(BadFile, match="no path was given"):
        list(read_features("", "image"))
    with pytest.raises(BadFile, match=r"no \.parquet file in it"):
        list(read_features(tmp_path, "image"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(BadFile, match=r"torn\.parquet: no parquet file"):
        list(read_features(tmp_path, "image"))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "torn.ids.jsonl").write_text("1\n")
    with pytest.raises(BadFile, match=r"torn\.npy: no \.npy file"):
        list(read_features(tmp_path / "torn.npy", "image"))
    with pytest.raises(FileNotFoundError):
        list(read_features(tmp_path / "none.jsonl", "image"))
    with pytest.raises(FileNotFoundError):
        list(read_features(tmp_path / "none.parquet", "image"))
    (tmp_path / "empty.jsonl").touch()
    assert list(read_features(tmp_path / "empty.jsonl", "image")) == []


def test_a_folder_is_read_with_all_in_it_as_one_of_images_is(tmp_path: Path) -> None:
    for part in range(3):
        (tmp_path / f"part={part}").mkdir()
        parquet(tmp_path / f"part={part}" / "feats", [part], unit_rows(1))
    (tmp_path / "._feats.parquet").write_bytes(b"what macOS leaves")
    assert [one for block in read_features(tmp_path, "image") for one in block.ids.tolist()] == [0, 1, 2]


def test_a_folder_of_two_checkpoints_is_refused_and_one_that_does_not_tell_leaves_all_untold(tmp_path: Path) -> None:
    def write(number: int, sha: str) -> None:
        known = {PARQUET_KEY: json.dumps({"checkpoint_sha256": sha, "model": "m", "arch": "a"})} if sha else {}
        pq.write_table(table([number], unit_rows(1)).replace_schema_metadata(known), tmp_path / f"{number}.parquet")

    for number in range(3):
        write(number, "a" * 64)
    assert origin_of(tmp_path) == Origin(checkpoint_sha256="a" * 64, model="m", arch="a")
    write(1, "")
    assert origin_of(tmp_path) is None
    write(1, "b" * 64)
    with pytest.raises(BadFile, match=r"1\.parquet: its features are of checkpoint b{12} .* extract both with one"):
        origin_of(tmp_path)


@pytest.mark.parametrize("sizes", [[3, 4, 0, 9, 1], [4, 4], [1] * 9, []])
def test_blocks_of_another_size_hold_the_same_rows(sizes: list[int]) -> None:
    ids, features = np.arange(sum(sizes)), unit_rows(sum(sizes))
    ends = np.cumsum([0, *sizes])
    blocks = [Features(ids[start:end], features[start:end]) for start, end in pairwise(ends.tolist())]
    found = list(rebatch(blocks, 4))
    assert [len(block) for block in found] == [4] * (sum(sizes) // 4) + [sum(sizes) % 4] * (sum(sizes) % 4 > 0)
    assert [one for block in found for one in block.ids.tolist()] == ids.tolist()
    assert [row for block in found for row in block.features.tolist()] == features.tolist()


def test_ids_that_are_encoded_by_a_dictionary(tmp_path: Path) -> None:
    columns = {"image_id": pa.array(["a", "b", "a"]).dictionary_encode(), "feature": unit_rows(3).tolist()}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    (block,) = read_features(tmp_path / "a.parquet", "image")
    assert block.ids.tolist() == ["a", "b", "a"]


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "feats", [1], unit_rows(1))
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"needs pyarrow, .*; pip install 'cn-clip-triton\[parquet\]'"):
        list(read_features(path, "image"))
