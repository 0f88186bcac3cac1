"""Folders of parquet as Spark, Hive and lakehouses leave them: what of it is data, and what is none; here and elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import BadFile
from cnclip_client.features import read_features
from cnclip_client.sources import image_source, text_source

from tests.client.sources.reading import values
from tests.client.sources.test_remote import upload

fsspec = pytest.importorskip("fsspec")

PLACES = pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
NO_DATA = (
    "_SUCCESS",
    "._SUCCESS.crc",
    ".part-00000.parquet.crc",
    "_spark_metadata/0",
    "_temporary/0/_temporary/attempt_2026_0001_m_000000_0/part-00000.parquet",
    ".hive-staging_hive_2026/-ext-10000/part-00000.parquet",
    "day=1/_temporary/part-00001.parquet",
    "_part-00003.parquet",
)


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        path.write_bytes(b"{}")


@pytest.fixture
def bucket() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield "memory://bucket/set"
    files.store.clear()


@PLACES
@pytest.mark.parametrize("kind", ["image", "text"])
def test_what_a_job_left_that_is_no_data_is_passed_over(
    tmp_path: Path, bucket: str, kind: str, elsewhere: bool
) -> None:
    folder = tmp_path / "set"
    for name in NO_DATA:
        write(folder / name, id=["of no data"], **{kind: [b"x" if kind == "image" else "x"]})
    for name in ("day=1/part-00000.parquet", "_day=2/part-00001.parquet", "part-00002.parquet"):
        write(folder / name, id=[name], **{kind: [name.encode() if kind == "image" else name]})
    if elsewhere:
        upload(folder, bucket)
    source = (image_source if kind == "image" else text_source)(bucket if elsewhere else folder)
    assert source.total() == 3
    # By path, as they always came; `_` sorts between capital and small letters.
    assert [one for one, _ in values(source)] == [
        "_day=2/part-00001.parquet",
        "day=1/part-00000.parquet",
        "part-00002.parquet",
    ]


def test_a_folder_of_partitions_alone_is_told_by_them(tmp_path: Path) -> None:
    write(tmp_path / "_temporary" / "0" / "a.jpg")
    write(tmp_path / "day=1" / "part-00000.parquet", id=[7], image=[b"x"])
    assert values(image_source(tmp_path)) == [(7, b"x")]


@PLACES
@pytest.mark.parametrize(
    ("log", "table"),
    [
        ("_delta_log/00000000000000000000.json", "Delta Lake"),
        ("_delta_log/00000000000000000010.checkpoint.parquet", "Delta Lake"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/00000-3f2a.metadata.json", "Iceberg"),
    ],
)
def test_a_table_whose_log_says_which_files_count_is_refused(
    tmp_path: Path, bucket: str, log: str, table: str, elsewhere: bool
) -> None:
    """All of its files are read otherwise, those of deleted rows too."""
    folder = tmp_path / "set"
    write(folder / log, x=[1])
    write(folder / "data" / "part-00000.parquet", id=[7], text=["x"])
    if elsewhere:
        upload(folder, bucket)
    with pytest.raises(BadFile, match=f"is a table of {table}, .* write its rows to a folder of plain parquet"):
        list(text_source(bucket if elsewhere else folder).items())


def test_features_in_such_folders(tmp_path: Path) -> None:
    feature = pa.array([np.eye(4, dtype=np.float32)[0]], pa.list_(pa.float32(), 4))
    for name in ("part-00000.parquet", "_temporary/0/part-00000.parquet"):
        write(tmp_path / "set" / name, image_id=[7], feature=feature)
    assert [list(block.ids) for block in read_features(tmp_path / "set", "image")] == [[7]]
    write(tmp_path / "set" / "_delta_log" / "0.json")
    with pytest.raises(BadFile, match="Delta Lake"):
        list(read_features(tmp_path / "set", "image"))
