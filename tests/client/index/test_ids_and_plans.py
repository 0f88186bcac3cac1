"""Ids on the disk come back whatever they are, repeats are found as by hand, and a kind is chosen that fits the memory."""

from __future__ import annotations

import tempfile
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import pytest
from cnclip_client import BadFile
from cnclip_client.index._ids import IdsWriter, open_ids, repeated_rows
from cnclip_client.index._plan import parse_bytes, plan, plan_of_factory
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 2**30
One = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(0, 9), st.integers(), st.text(max_size=5), st.sampled_from("0123")
)


def written(folder: Path, blocks: list[list], before: Path | None = None, rows: int = 0) -> int:
    held = closing(open_ids(before, rows)) if before else nullcontext()
    with held as ids, IdsWriter(folder, ids) as writer:
        for block in blocks:
            writer.append(block)
        writer.finish()
        return writer.rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(One, max_size=6), max_size=5), st.lists(One, max_size=6))
def test_ids_come_back_and_repeats_are_found(blocks: list[list], more: list) -> None:
    every = [one for block in blocks for one in block] + more
    seen: dict[tuple[type, object], int] = {}
    again = [
        (row, seen[key]) for row, one in enumerate(every) if seen.setdefault((key := (type(one), one)), row) != row
    ]
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        rows = written(Path(first), blocks)
        total = written(Path(second), [more], Path(first), rows)
        assert total == len(every)
        with closing(open_ids(Path(second), total)) as ids:
            found = ids.take(range(total))
            assert [(type(one), one) for one in found] == [(type(one), one) for one in every]
            assert ids.take([total - 1] if total else []) == every[-1:]
            repeated = repeated_rows(ids)
        assert {path.name for path in Path(second).iterdir()} in ({"ids.npy"}, {"ids.jsonl", "ids.offsets.npy"})
    assert repeated == ((again[0][1], again[0][0], len(again)) if again else None)


def test_ids_that_are_none(tmp_path: Path) -> None:
    written(tmp_path, [[1, 2, 3]])
    with pytest.raises(BadFile, match=r"ids\.npy: not int64 \[4\]; make the index anew"):
        open_ids(tmp_path, 4)
    for data in (b"", b"\x93NUMPY", b"x" * 200):
        (tmp_path / "ids.npy").write_bytes(data)
        with pytest.raises(BadFile, match=r"ids\.npy: no \.npy file of ids"):
            open_ids(tmp_path, 3)
    np.save(tmp_path / "ids.npy", np.zeros(3))
    with pytest.raises(BadFile, match=r"ids\.npy: not int64 \[3\]"):
        open_ids(tmp_path, 3)


@pytest.mark.parametrize(
    ("rows", "memory", "factory"),
    [
        (1, GIB, "Flat"),
        (10_000, GIB, "Flat"),
        (10_001, GIB, "HNSW32,SQ8"),
        (1_000_000, 4 * GIB, "HNSW32,SQ8"),
        (1_000_000, GIB, "IVF4096,PQ256x4fs"),
        (10_000_000, 4 * GIB, "IVF16384_HNSW32,PQ256x4fs"),
        (100_000_000, 16 * GIB, "IVF32768_HNSW32,PQ128x4fs"),
        (100_000_000, 128 * GIB, "HNSW32,SQ8"),
    ],
)  # fmt: skip
def test_the_kind_follows_rows_and_memory(rows: int, memory: int, factory: str) -> None:
    chosen = plan(rows, 512, memory)
    assert chosen.factory == factory
    assert chosen.build_bytes <= memory
    assert chosen.rescore == (factory != "Flat")
    assert not plan(rows, 512, memory, rescore=False).rescore


@settings(max_examples=200, deadline=None)
@given(rows=st.integers(1, 10**9), size=st.integers(8, 1024), memory=st.integers(0, 2**40))
def test_a_plan_fits_or_the_error_says_what_would(rows: int, size: int, memory: int) -> None:
    try:
        chosen = plan(rows, size, memory)
    except ValueError as error:
        wanted = int(str(error).partition("--memory ")[2].partition("MiB")[0])
        assert memory < wanted * 2**20
        chosen = plan(rows, size, wanted * 2**20)
    else:
        assert chosen.build_bytes <= memory
    assert chosen.train_rows <= rows
    if chosen.factory.startswith("IVF"):
        clusters = int(chosen.factory[3:].partition("_")[0].partition(",")[0])
        assert 2 <= clusters <= 65_536
        assert chosen.train_rows >= 39 * clusters or rows < 39 * clusters * 4


def test_a_kind_of_ones_own() -> None:
    assert plan_of_factory("IVF4096,PQ64", 10**7).train_rows == 64 * 4096
    assert plan_of_factory("IVF4096,PQ64", 100).train_rows == 100
    for lossless in (
        "Flat",
        "HNSW32",
        "HNSW32,Flat",
        "IVF10,Flat",
        "IVF99_HNSW32,Flat",
        "IVF9,PQ8,RFlat",
        "PQ8,Refine(Flat)",
    ):
        assert not plan_of_factory(lossless, 10).rescore
        assert plan_of_factory(lossless, 10, rescore=True).rescore
    for lossy in ("HNSW32,SQ8", "IVF10,PQ8", "PCA8,Flat", "OPQ8,IVF10,Flat", "IVF9,SQfp16"):
        assert plan_of_factory(lossy, 10).rescore
        assert not plan_of_factory(lossy, 10, rescore=False).rescore


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * GIB), ("4 gib", 4 * GIB), ("4Gi", 4 * GIB), ("512MiB", 512 * 2**20), ("1.5GiB", 3 * GIB // 2),
        ("2GB", 2 * 10**9), ("2g", 2 * 10**9), ("7", 7), ("0", 0), ("1TiB", 2**40), ("8kB", 8000),
    ],
)  # fmt: skip
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9", "4 x", "4iB", "four", "1,5GiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size of memory; give such as 4GiB or 512MiB"):
        parse_bytes(text)
