"""Files are found behind links and never in circles, and a folder that cannot be listed is told."""

from __future__ import annotations

import glob
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import BadFile
from cnclip_client._listing import files_below, files_matching
from cnclip_client.sources import image_source, text_source

from tests.client.sources.reading import values
from tests.client.sources.test_webdataset import sample, write_tar


@pytest.fixture
def forbid(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Has a folder be one that may not be listed, for root too."""
    scandir = os.scandir

    def forbid(folder: Path) -> None:
        def checked(path: Any = ".") -> Any:
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", checked)

    return forbid


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def refused(folder: str, error: OSError) -> None:
    raise AssertionError(folder) from error


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "**",
        "**/*.jpg",
        "a/**",
        "*/*",
        "a/*.jpg",
        "**/b/*",
        "*/b/../*.jpg",
        "**/**/*.jpg",
        "[[]x]/*",
        "**/.*",
        "./*/*.jpg",
        "a//*.jpg",
        "*/1.jpg",
        "none/*",
        "a/1.jpg/*",
        "**/1.jpg",
        "?/**/*.jpg",
        ".h*/*",
        "*/",
        "a**/*",
    ],
)
def test_it_finds_what_glob_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    tree(tmp_path, "0.jpg", ".0.jpg", "a/1.jpg", "a/b/2.jpg", "a/b/c/3.png", "b/1.jpg", "[x]/4.jpg", ".h/5.jpg", "a/.6")
    (tmp_path / "linked").symlink_to("a")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    for one in (pattern, f"{tmp_path}/{pattern}"):
        found = {path for path in glob.glob(one, recursive=True) if not Path(path).is_dir()}  # noqa: PTH207
        assert files_matching(one, refused) == sorted(found)


def test_links_in_circles_are_left(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "b/2.jpg")
    for name in ("a/up", "b/up", "self", "a/self"):
        (tmp_path / name).symlink_to(tmp_path)  # the standard library's glob would find 4 ** 40 paths
    assert files_matching(f"{tmp_path}/**/*.jpg", refused) == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/b/2.jpg"]
    assert files_below(tmp_path, ".jpg") == [tmp_path / "a/1.jpg", tmp_path / "b/2.jpg"]
    assert [one for one, _ in values(image_source(tmp_path))] == ["a/1.jpg", "b/2.jpg"]


def test_a_folder_behind_links_counts_once_and_where_it_is(tmp_path: Path) -> None:
    tree(tmp_path, "disk/x/1.TAR", "disk/x/.2.tar", "disk/x/3.txt", "d/2024/4.tar", "d/0.tar/5.tar")
    (tmp_path / "d/first").symlink_to("2024")
    (tmp_path / "d/more").symlink_to(tmp_path / "disk")
    (tmp_path / "d/again").symlink_to(tmp_path / "disk/x")
    found = [str(path.relative_to(tmp_path)) for path in files_below(tmp_path / "d", ".tar")]
    assert found[:2] == ["d/0.tar/5.tar", "d/2024/4.tar"]
    assert found[2:] in (["d/again/1.TAR"], ["d/more/x/1.TAR"])


def test_folders_deeper_than_calls_may_be_nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a/" * 400 + "x.jpg"
    tree(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 200)
    try:
        found = [(item.id, item.value) for item in image_source(tmp_path).items()]
        globbed = files_matching("**/*.jpg", refused)
    finally:
        sys.setrecursionlimit(limit)
    assert found == [(name, f"{tmp_path}/{name}")]
    assert globbed == [name]


def test_a_folder_that_is_gone_is_no_fault_of_those_in_it(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").touch()
    items = image_source(tmp_path / "photos").items()
    assert next(items).id == "a/1.jpg"
    (tmp_path / "photos" / "b").rename(tmp_path / "b")
    assert next(items).failure == "cannot be listed: No such file or directory"
    (tmp_path / "photos").rename(tmp_path / "gone")
    (tmp_path / "photos").mkdir()  # as where a disk was mounted
    with pytest.raises(FileNotFoundError):
        next(items)


def test_tars_and_parquet_that_cannot_be_listed_stop_the_job(tmp_path: Path, forbid: Callable[[Path], None]) -> None:
    for name in ("ok", "no"):
        (tmp_path / "t" / name).mkdir(parents=True)
        write_tar(tmp_path / "t" / name / "a.tar", sample(name, 0))
        (tmp_path / "p" / name).mkdir(parents=True)
        pq.write_table(pa.table({"text_id": [1], "text": ["x"]}), tmp_path / "p" / name / "a.PARQUET")
    assert len(values(text_source(tmp_path / "p"))) == 2
    for folder in (tmp_path / "t/no", tmp_path / "p/no"):
        forbid(folder)
        for path in (tmp_path / "t", f"{tmp_path}/t/**/*.tar", f"{tmp_path}/t/*/*.tar"):
            if folder.parent.name == "t":
                with pytest.raises(PermissionError, match="no"):
                    image_source(path, format="webdataset")
    with pytest.raises(PermissionError, match="no"):
        text_source(tmp_path / "p")


def test_a_folder_that_cannot_be_listed_is_one_item_wherever_a_job_goes_on(
    tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    tree(tmp_path, "a/1.jpg", "b/c/2.jpg", "d.jpg")
    forbid(tmp_path / "b/c")
    found = values(image_source(tmp_path))
    assert [one for one, _ in found] == ["a/1.jpg", "b/c/", "d.jpg"]
    assert found[1][1] == "!cannot be listed: Permission denied"


def test_a_folder_of_samples_that_cannot_be_listed_stops_the_job(
    tmp_path: Path, forbid: Callable[[Path], None]
) -> None:
    tree(tmp_path, "00000/000000000.jpg", "00000/000000000.txt", "00000_stats.json", "00001/000010000.jpg")
    assert len(values(image_source(tmp_path))) == 2
    forbid(tmp_path / "00001")
    for source in (image_source(tmp_path), text_source(tmp_path)):
        with pytest.raises(BadFile, match="00001: cannot be listed: Permission denied; have it made readable"):
            list(source.items())


def test_folders_whose_names_alone_may_be_read_are_items(tmp_path: Path, ordinary_user: None) -> None:
    tree(tmp_path, "a/b/1.jpg", "c/2.jpg")
    (tmp_path / "a").chmod(0o400)
    names, _ = zip(*values(image_source(f"{tmp_path}/**/*.jpg")), strict=True)
    assert names == (f"{tmp_path}/a/b/", f"{tmp_path}/c/2.jpg")
    (tmp_path / "a").chmod(0o700)


@pytest.mark.parametrize("pattern", ["**/*.jpg", "*/*.jpg"])
def test_a_globs_folder_that_cannot_be_listed_is_an_item(
    tmp_path: Path, forbid: Callable[[Path], None], pattern: str
) -> None:
    tree(tmp_path, "a/1.jpg", "b/2.jpg")
    forbid(tmp_path / "a")
    assert values(image_source(f"{tmp_path}/{pattern}")) == [
        (f"{tmp_path}/a/", "!cannot be listed: Permission denied"),
        (f"{tmp_path}/b/2.jpg", f"{tmp_path}/b/2.jpg"),
    ]
