"""What an index is not made of, what is told of a damaged one, and what is left by a process that is killed."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import BadFile, JobRefused, MissingExtra
from cnclip_client.index import Index, IndexOptions, build_index
from cnclip_client.index._checksums import checksums, require_unchanged

from tests.client.features import test_feature_files as formats
from tests.client.index.making import OTHER_SHA, SHA, asking, clustered, parquet
from tests.client.index.test_index import contents
from tests.commands import run_script


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return parquet(tmp_path / "images.parquet", list(range(300)), clustered(300))


@pytest.fixture
def made(tmp_path: Path, images: Path) -> Path:
    build_index(images, tmp_path / "index", "image", IndexOptions(factory="IVF4,PQ8x4fs"))
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "IVF4096,Flat"}, r"has 4096 clusters, more than the 300 features .* fewer, such as IVF7, or leave"),
        ({"factory": "IVF4,PQ4x9"}, r"faiss cannot train 'IVF4,PQ4x9' on 300 features \(.*give another --factory"),
        ({"factory": "Foo"}, r"faiss cannot make 'Foo' for features of 16 numbers \(could not parse"),
        ({"factory": "IVF4,PQ5"}, r"faiss cannot make 'IVF4,PQ5' for features of 16 numbers \("),
        ({"factory": "IDMap,Flat"}, r"'IDMap,Flat' keeps ids of its own"),
        ({"memory_bytes": 10**8}, r"300 features of 16 numbers take about \d+ MiB of memory .*give --memory \d+MiB"),
        ({"memory_bytes": 0}, r"and there are 0; give --memory"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_told_with_what_to_do(tmp_path: Path, images: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_index(images, tmp_path / "index", "image", IndexOptions(**options))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.parquet"]


@pytest.mark.parametrize("recall", [0.0, -1.0, 1.01, float("nan")])
def test_no_such_recall(recall: float) -> None:
    with pytest.raises(ValueError, match="recall must be above 0 and at most 1"):
        IndexOptions(recall=recall)


def test_features_that_make_no_index(tmp_path: Path, images: Path) -> None:
    index = tmp_path / "index"
    empty = parquet(tmp_path / "none" / "empty.parquet", [], np.empty((0, 16), np.float32))
    for nothing in (empty, empty.parent):
        with pytest.raises(ValueError, match=r"there are no features in \S+; extract some first"):
            build_index(nothing, index, "image")
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadFile, match="bare: no features in it; give"):
        build_index(tmp_path / "bare", index, "image")
    with pytest.raises((BadFile, FileNotFoundError), match="gone"):
        build_index(tmp_path / "gone.parquet", index, "image")
    bad = clustered(5)
    bad[3, 2] = np.nan
    file = formats.jsonl(tmp_path / "nan", [1000, 1001, 1002, 1003, 1004], bad)
    with pytest.raises(BadFile, match=r"nan\.jsonl: the feature of 1003 holds NaN or infinity; extract it anew"):
        build_index([images, file], index, "image")
    wide = parquet(tmp_path / "wide.parquet", [500], clustered(1, size=32))
    with pytest.raises(
        BadFile, match=r"wide\.parquet: features of 32 numbers, and the index is of 16: they are of two"
    ):
        build_index([images, wide], index, "image")
    with pytest.raises(BadFile, match="no column text_id"):
        build_index(images, index, "text")
    with pytest.raises(BadFile, match=r"wide\.parquet: no column text_id"):
        build_index(images, index, "image", queries=wide)
    texts = parquet(tmp_path / "texts.parquet", [1], clustered(1, size=32), kind="text")
    with pytest.raises(BadFile, match=r"texts\.parquet: queries of 32 numbers, and the index is of 16"):
        build_index(images, index, "image", queries=texts)
    (tmp_path / "no.npy").write_bytes(b"")
    with pytest.raises(BadFile, match=r"no\.npy: its ids are missing"):
        build_index(tmp_path / "no.npy", index, "image")
    assert not index.exists()
    assert not list(tmp_path.glob("*.partial"))


def test_what_does_not_fit_an_index_that_there_is(tmp_path: Path, images: Path, made: Path) -> None:
    before = contents(made)
    more = parquet(tmp_path / "more.parquet", [1000], clustered(1))
    wide = parquet(tmp_path / "wide.parquet", [1000], clustered(1, size=32))
    texts = parquet(tmp_path / "texts.parquet", [1], clustered(1), kind="text")
    cases: list[tuple[Path, str, dict[str, Any], type[Exception], str]] = [
        (texts, "text", {}, ValueError, "is an index of images; give the texts another --output"),
        (wide, "image", {}, BadFile, "features of 32 numbers, and the index is of 16"),
        (more, "image", {"factory": "Flat"}, ValueError, "is IVF4,PQ8x4fs, not Flat; --overwrite makes it anew"),
        (more, "image", {"normalize": True}, ValueError, "has features as they were; leave out --normalize"),
        (more, "image", {"rescore": False}, ValueError, "has features beside it, which --overwrite alone changes"),
        (more, "image", {"memory_bytes": 10**6}, ValueError, "301 rows of IVF4,PQ8x4fs, takes about .*give --memory"),
    ]
    for features, kind, options, error, message in cases:
        with pytest.raises(error, match=message):
            build_index(features, made, kind, IndexOptions(**options))  # type: ignore[arg-type]
    assert contents(made) == before
    # The same command again is what adds: so queries may be given, and those that it was made with stay.
    assert build_index(more, made, "image", queries=texts).record.measured.asked == "rows of its own"


def test_much_more_than_it_was_made_for_is_warned_of(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = parquet(tmp_path / "more.parquet", list(range(1000, 1901)), clustered(901, seed=7))
    assert build_index(more, made, "image").record.rows == 1201
    assert "was made for 300 features and will hold 1201: --overwrite makes it anew" in caplog.text


def test_only_an_index_is_replaced(tmp_path: Path, images: Path, made: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    for place in ("file", "folder"):
        for overwrite in (False, True):
            with pytest.raises(JobRefused, match=f"{place}: is there and no index; give another --output"):
                build_index(images, tmp_path / place, "image", IndexOptions(overwrite=overwrite))
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine.txt").read_text() == "mine"
    (made / "notes.txt").write_text("mine")
    with pytest.raises(JobRefused, match=r"index: holds notes\.txt, which is none of an index's files; move it"):
        build_index(images, made, "image", IndexOptions(overwrite=True))
    assert (made / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert build_index(images, tmp_path / "empty", "image").added == 300
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    more = parquet(tmp_path / "more.parquet", [1000], clustered(1))
    assert build_index(more, tmp_path / "link", "image").record.rows == 301
    assert (tmp_path / "link").is_symlink()
    with Index.open(tmp_path / "empty") as index:
        assert len(index) == 301


@pytest.mark.parametrize("name", ["index.faiss", "features.npy", "ids.npy", "queries.npz"])
@pytest.mark.parametrize("damage", ["gone", "cut", "longer", "a bit"])
def test_a_damaged_file_is_named(made: Path, name: str, damage: str, tmp_path: Path) -> None:
    data = (made / name).read_bytes()
    if damage == "gone":
        (made / name).unlink()
    else:
        flipped = bytearray(data)
        flipped[len(data) * 2 // 3] ^= 4
        (made / name).write_bytes({"cut": data[:-7], "longer": data + b"\0", "a bit": bytes(flipped)}[damage])
    with pytest.raises(BadFile, match=rf"index/{name}: .*; make the index anew with --overwrite") as told:
        Index.open(made)
    assert told.value.path == str(made / name)
    more = parquet(tmp_path / "more.parquet", [1000], clustered(1))
    with pytest.raises(BadFile, match=rf"index/{name}"):
        build_index(more, made, "image")
    assert build_index(more, made, "image", IndexOptions(overwrite=True)).record.rows == 1


def test_another_faiss_index_in_its_place_is_told_without_a_thorough_look(tmp_path: Path, made: Path) -> None:
    other = parquet(tmp_path / "other.parquet", list(range(299)), clustered(299))
    build_index(other, tmp_path / "other", "image", IndexOptions(factory="IVF4,PQ8x4fs"))
    data = (tmp_path / "other" / "index.faiss").read_bytes()
    sound = (made / "index.faiss").read_bytes()
    size = len(sound)
    (made / "index.faiss").write_bytes(data[:size].ljust(size, b"\0"))
    with pytest.raises(BadFile, match="299 rows of 16 numbers, and its record says 300 of 16"):
        Index.open(made, thorough=False)
    features = np.load(made / "features.npy")
    for other in (features[:, ::2], features.astype(np.float32), features.ravel()):
        np.save(made / "features.npy", other)
        record = json.loads((made / "index.json").read_text())
        record["files"]["features.npy"][0] = (made / "features.npy").stat().st_size
        (made / "index.json").write_text(json.dumps(record))
        (made / "index.faiss").write_bytes(sound)
        with pytest.raises(BadFile, match=r"features\.npy: not float16 \[300, 16\]; make the index anew"):
            Index.open(made, thorough=False)
    (made / "index.faiss").write_bytes(b"\0" * size)
    with pytest.raises(BadFile, match=r"index\.faiss: no index that faiss \S+ reads \(.*make the index anew"):
        Index.open(made, thorough=False)


def test_a_damaged_record_is_named(made: Path) -> None:
    record = json.loads((made / "index.json").read_text())

    def told(text: str) -> str:
        (made / "index.json").write_text(text)
        with pytest.raises(BadFile, match=r"index\.json: ") as error:
            Index.open(made)
        return str(error.value)

    for text in ("", "{", "[]", "null", "7", '"x"', "[" * 100_000, json.dumps({**record, "rows": -1})):
        assert "make the index anew with --overwrite" in told(text)
    wrong: dict[type, list[Any]] = {
        int: [None, "7", 7.5, [], {}, True],
        float: [None, "7", [], {}, True],
        str: [None, 7, [], {}],
        bool: [None, 7, "x"],
        dict: [None, 7, [], "x", {"x": 1}, {"x": [1]}],
        list: [None, 7, {}, [7], [[]], [{}]],
        type(None): [7, "x", [], {}, {"checkpoint_sha256": 7}],
    }
    for name, value in record.items():
        told(json.dumps({key: known for key, known in record.items() if key != name}))
        if name != "made_by":  # which is only shown
            for other in wrong[type(value)]:
                told(json.dumps({**record, name: other}))
    for name, value in record["measured"].items():
        for other in wrong[type(value)]:
            told(json.dumps({**record, "measured": {**record["measured"], name: other}}))
    assert "which this version does not know; install a newer one" in told(json.dumps({**record, "format": 2}))


def test_no_index_at_all(tmp_path: Path, images: Path) -> None:
    for path in (tmp_path, images, tmp_path / "nothing"):
        with pytest.raises(BadFile, match=f"{path}: no index; `cnclip index` makes one"):
            Index.open(path)


def test_queries_of_another_model(made: Path) -> None:
    with Index.open(made) as index:
        with pytest.raises(
            ValueError, match="queries of 32 numbers, and .*index is an index of features of 16; they are"
        ):
            list(index.search(asking(clustered(3, size=32))))
        with pytest.raises(ValueError, match="k must be at least 1, got 0"):
            index.search([], k=0)
        for parameters in ("nprobe=x", "efSearch=7", "rescore=100,foo=1", "nonsense"):
            with pytest.raises(ValueError, match="has nothing to turn for"):
                index.parameters = parameters
        index.parameters = "nprobe=4,rescore=300"
        assert [hits.ids[0] for hits in index.search(asking(clustered(300)), k=1)] == list(range(300))


def test_two_checkpoints_are_refused_and_an_unknown_one_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = parquet(tmp_path / "ours" / "a.parquet", [1, 2], clustered(2), sha=SHA)
    theirs = parquet(tmp_path / "theirs.parquet", [3], clustered(1), sha=OTHER_SHA)
    unknown = parquet(tmp_path / "unknown.parquet", [4], clustered(1))
    texts = parquet(tmp_path / "texts.parquet", [1], clustered(1), kind="text", sha=OTHER_SHA)
    index = tmp_path / "index"
    for given, queries in (([ours, theirs], None), ([theirs, ours], None), ([ours], texts)):
        with pytest.raises(
            BadFile, match=r"its features are of checkpoint \w{12} \(vit-b-16\), and those of \S+ of chec"
        ):
            build_index(given, index, "image", queries=queries)
    record = build_index(ours.parent, index, "image").record
    assert record.origin is not None
    assert record.origin.checkpoint_sha256 == SHA
    assert caplog.text == ""
    with pytest.raises(
        BadFile, match=r"theirs\.parquet: its features are of .*, and the index \S+ is of checkpoint aaaa"
    ):
        build_index(theirs, index, "image")
    assert build_index(unknown, index, "image").record.origin == record.origin
    assert "no telling which checkpoint the features of " in caplog.text
    with Index.open(index) as opened:
        with pytest.raises(BadFile, match=r"texts\.parquet: its features are of checkpoint bbbbbbbbbbbb"):
            opened.require_checkpoint_of(texts)
        opened.require_checkpoint_of(ours)
        caplog.clear()
        opened.require_checkpoint_of(unknown)
        assert "no telling which checkpoint" in caplog.text


def test_without_faiss_it_says_what_to_install(
    tmp_path: Path, images: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: build_index(images, tmp_path / "new", "image"), lambda: Index.open(made)):
        with pytest.raises(MissingExtra, match=r"needs faiss, .*; pip install 'cn-clip-triton\[index\]'"):
            call()


_KILLED = """
import os, signal, sys
from pathlib import Path
from cnclip_client.index import IndexOptions, build_index
from cnclip_client.index import _build

def report(stage, done, total):
    if stage == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[3] == "putting":
    _build.put_folder = lambda made, place: os.kill(os.getpid(), signal.SIGKILL)
build_index([Path(one) for one in sys.argv[4:]], sys.argv[1], "image", IndexOptions(factory=sys.argv[2]), report=report)
"""


@pytest.mark.parametrize("stage", ["reading", "training", "indexing", "measuring", "putting"])
def test_killed_at_any_moment_it_leaves_the_old_one_or_none(tmp_path: Path, images: Path, stage: str) -> None:
    index = tmp_path / "index"

    def kill(*features: Path) -> None:
        done = run_script(_KILLED, str(index), "IVF4,PQ8x4fs", stage, *map(str, features))
        assert done.returncode == -signal.SIGKILL, done.stderr

    kill(images)
    assert not index.exists()
    assert build_index(images, index, "image", IndexOptions(factory="IVF4,PQ8x4fs")).added == 300
    before = contents(index)
    more = parquet(tmp_path / "more.parquet", list(range(1000, 1100)), clustered(100, seed=1))
    if stage != "training":  # which an addition does not come to
        kill(images, more)
        assert contents(index) == before
    built = build_index([images, more], index, "image")
    assert (built.added, built.record.rows) == (100, 400)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.parquet", "index", "more.parquet"]


def test_two_processes_never_work_on_one(tmp_path: Path, images: Path) -> None:
    told: list[str] = []

    def report(stage: str, done: int, total: int) -> None:
        if not told:
            try:
                build_index(images, tmp_path / "index", "image")
            except JobRefused as error:
                told.append(str(error))

    build_index(images, tmp_path / "index", "image", report=report)
    assert "another process is working on it" in told[0]


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, images: Path) -> None:
    def report(stage: str, done: int, total: int) -> None:
        if stage == "reading":
            parquet(images, list(range(300)), clustered(300, seed=8))

    with pytest.raises(JobRefused, match=r"images\.parquet: changed while it was read"):
        build_index(images, tmp_path / "index", "image", report=report)
    assert not (tmp_path / "index").exists()


def test_where_folders_cannot_be_exchanged(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    index = tmp_path / "index"
    build_index(images, index, "image")
    more = parquet(tmp_path / "more.parquet", [1000], clustered(1))
    assert build_index(more, index, "image").record.rows == 301
    # Killed between the two renames: the old one is back before anything else is done.
    (tmp_path / "index.partial").mkdir()
    index.rename(tmp_path / "index.partial" / "old")
    assert build_index(more, index, "image").added == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.parquet", "index", "more.parquet"]


def test_threads_take_turns(made: Path) -> None:
    queries = clustered(300)
    with Index.open(made) as index:
        index.parameters = "nprobe=4,rescore=300"
        found: list[list[Any]] = []

        def ask() -> None:
            found.append([hits.ids for hits in index.search(asking(queries), k=3)])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert all(one == found[0] for one in found)


def test_a_disk_that_maps_no_files_for_all_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """9p, and FUSE's that cache nothing, map files for one process alone, which faiss does not ask for."""
    faiss = pytest.importorskip("faiss")
    map_file, read_index = mmap.mmap, faiss.read_index

    def mapped(*given: Any, access: int, **options: Any) -> Any:
        if access != mmap.ACCESS_COPY:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return map_file(*given, access=access, **options)

    def read(path: str, flags: int) -> Any:
        if flags:
            raise RuntimeError("'address != MAP_FAILED' failed: could not mmap(): No such device")
        return read_index(path, flags)

    monkeypatch.setattr(mmap, "mmap", mapped)
    monkeypatch.setattr(faiss, "read_index", read)
    features = clustered(300)
    np.save(tmp_path / "images.npy", features)
    (tmp_path / "images.ids.jsonl").write_text("".join(f"{row}\n" for row in range(300)))
    build_index(tmp_path / "images.npy", tmp_path / "index", "image")
    with Index.open(tmp_path / "index") as index:
        assert [hits.ids[0] for hits in index.search([asking(features[:3])], k=1)] == [0, 1, 2]


def test_every_byte_of_a_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_client.index._checksums._CHUNK_BYTES", 8)
    monkeypatch.setattr("cnclip_client.index._checksums._STEP_BYTES", 3)
    path, whole = tmp_path / "file", bytes(range(20))
    path.write_bytes(whole)
    known = checksums(path)
    require_unchanged(path, 20, known, "mend it", thorough=True)
    for at in range(20):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        with pytest.raises(BadFile, match="does not hold what was written, .*; mend it"):
            require_unchanged(path, 20, known, "mend it", thorough=True)
        require_unchanged(path, 20, known, "mend it", thorough=False)
    path.write_bytes(whole[:-1])
    with pytest.raises(BadFile, match="has 19 bytes of the 20 that were written; mend it"):
        require_unchanged(path, 20, known, "mend it", thorough=False)
