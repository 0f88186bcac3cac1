"""A folder of parts: together they are what one run writes to one file, whoever does them and whatever happens."""

from __future__ import annotations

import base64
import errno
import fcntl
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import (
    AccessDenied,
    BadFile,
    Client,
    JobRefused,
    ModelChanged,
    Retry,
    ServerUnreachable,
    StoreError,
    TooManyFailures,
)
from cnclip_client.extraction import ExtractOptions, Sharding, Summary, extract, extract_parts
from cnclip_client.extraction._course import state_of_source
from cnclip_client.extraction._parts_folder import PartsFolder
from cnclip_client.extraction._work_folder import GrowingFiles
from cnclip_client.features import origin_of
from cnclip_client.retrieval import read_features
from cnclip_client.sources import Item, Source, image_source, text_source

from tests.client.extraction.test_extract import DYING, FORMATS, files_of, images_folder, texts_file
from tests.client.extraction.test_extract import Items as OneOfTheirOwn
from tests.commands import run_script

BUSY = ExtractOptions(checkpoint_s=0.0, batch_size=4)


@dataclass
class Items:
    """A source of one's own that can begin anywhere, and tells what was read of it."""

    items_: list[Item]
    kind: Any = "text"
    version: str = "1"
    read: list[Any] = field(default_factory=list)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"format": "items", "path": "here", "files": self.version}

    def items(self, ids_only: int = 0, *, start: int = 0, after: Any = ()) -> Iterator[Item]:
        first = after[0] if after else 0
        for number, item in enumerate(self.items_[first:], first):
            self.read.append(number)
            if after or number >= start:
                yield Placed(item.id, item.value, item.failure, number + 1)

    def total(self) -> int:
        return len(self.items_)


@dataclass(frozen=True)
class Placed:
    """An item that says where the source goes on after it."""

    id: Any
    value: Any
    failure: str
    next: int

    @property
    def after(self) -> list[int]:
        return [self.next]


class Remote(Items):
    """A folder elsewhere."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"format": "folder", "path": "memory://bucket/photos"}


def source_of(count: int) -> Items:
    return Items([Item(row, f"{row}") for row in range(count)])


def together(path: Path, kind: Any) -> tuple[list[Any], Any]:
    blocks = list(read_features(path, kind))
    ids = [one for block in blocks for one in block.ids.tolist()]
    return ids, np.concatenate([block.features for block in blocks]) if blocks else None


def errors_of(path: Path) -> bytes:
    if not path.is_dir():
        return path.with_name(f"{path.name}.errors.jsonl").read_bytes()
    return b"".join(one.read_bytes() for one in sorted(path.glob("part-*.errors.jsonl")))


def require_same(parts: Path, whole: Path, kind: Any, tolerance: float = 0.0) -> None:
    """The same ids in the same order, the same failures byte for byte, and the same features."""
    (ids, features), (expected_ids, expected) = together(parts, kind), together(whole, kind)
    assert ids == expected_ids
    assert errors_of(parts) == errors_of(whole)
    if expected is not None:
        np.testing.assert_allclose(features, expected, rtol=0, atol=tolerance)
    assert not [path for path in parts.iterdir() if path.is_dir() or path.name.endswith(".partial")]


# --- The union is one run.


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["image", "text"])
def test_all_parts_together_are_one_run(tmp_path: Path, client: Client, kind: Any, format: Any) -> None:
    source = image_source(images_folder(tmp_path)) if kind == "image" else text_source(texts_file(tmp_path))
    whole = tmp_path / f"out.{format}"
    once = extract(client, source, whole)
    # Pieces of blocks, exactly all of them, more than all.
    for items, jobs in ((23, 3), (64, 2), (once.items, 2), (1000, 3)):
        folder = tmp_path / f"{items}-{jobs}"
        found = [
            extract_parts(client, source, folder, sharding=Sharding(items=items, format=format, index=index, jobs=jobs))
            for index in reversed(range(jobs))
        ]
        assert sum(one.items for one in found) == once.items
        assert sum(one.failures for one in found) == once.failures
        assert sum(one.parts for one in found) == -(-once.items // items)
        require_same(folder, whole, kind)
        assert origin_of(folder) == origin_of(whole) is not None
        for index in range(jobs):
            sharding = Sharding(items=items, format=format, index=index, jobs=jobs)
            again = extract_parts(client, source, folder, sharding=sharding)
            assert again == Summary(**{**summary_of(found[jobs - 1 - index]), "already_finished": True})


@pytest.mark.parametrize("kind", [Items, OneOfTheirOwn])
def test_a_part_for_each_item(tmp_path: Path, client: Client, kind: Any) -> None:
    source = kind([Item(row, None if row in (0, 5, 11) else f"{row}") for row in range(12)])
    extract(client, source, tmp_path / "out.parquet")
    for index in range(2):
        extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=1, index=index, jobs=2))
    for index in range(2):
        again = extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=1, index=index, jobs=2))
        assert again.already_finished
    require_same(tmp_path / "out", tmp_path / "out.parquet", "text")
    source.items_[7] = Item(7, "another")
    if kind is OneOfTheirOwn:
        with pytest.raises(JobRefused, match="the items of part 7 are not those that were done"):
            extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=1))


def summary_of(one: Summary) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("items", "failures", "seconds", "repeated", "parts")}


@pytest.mark.parametrize("format", ["parquet", "lmdb", "list", "glob", "tar", "tars"])
def test_parts_of_every_kind_of_source(tmp_path: Path, client: Client, triton: Any, fake: Any, format: str) -> None:
    """Begun in the middle, and passed over, each is what it is from its beginning."""
    source = images_in(tmp_path, format, {row: b"image %d" % row for row in range(45)})
    extract(client, source, tmp_path / "out.npy")
    triton.before_infer = lambda attempt, items: stop_at(items, b"image 30", fake)
    with pytest.raises(Exception, match="broken"):
        extract_parts(client, source, tmp_path / "out", BUSY, sharding=Sharding(items=7))
    triton.forget()
    for index in range(3):
        extract_parts(client, source, tmp_path / "out", BUSY, sharding=Sharding(items=7, index=index, jobs=3))
    require_same(tmp_path / "out", tmp_path / "out.npy", "image")


def images_in(folder: Path, format: str, images: dict[int, bytes]) -> Source:
    """Images with ids, as a source of some format."""
    if format == "parquet":
        table = pa.table({"image_id": list(images), "image": list(images.values())})
        pq.write_table(table, folder / "i.parquet", row_group_size=10)
        return image_source(folder / "i.parquet")
    if format == "lmdb":
        with lmdb.open(str(folder / "imgs")) as environment, environment.begin(write=True) as transaction:
            for one, image in images.items():
                transaction.put(b"%d" % one, base64.urlsafe_b64encode(image))
        return image_source(folder / "imgs")
    if format in ("list", "glob"):
        (folder / "photos").mkdir()
        for one, image in images.items():
            (folder / "photos" / f"{one:02}.jpg").write_bytes(image)
        (folder / "list.txt").write_text("".join(f"{folder}/photos/{one:02}.jpg\n" for one in images))
        return image_source(folder / "list.txt" if format == "list" else f"{folder}/photos/*.jpg")
    each = len(images) if format == "tar" else 20
    names = []
    for number in range(0, len(images), each):
        names.append(folder / f"{number:03}.tar")
        with tarfile.open(names[-1], "w") as tar:
            for one, image in list(images.items())[number : number + each]:
                member = tarfile.TarInfo(f"{one:05}.jpg")
                member.size = len(image)
                tar.addfile(member, io.BytesIO(image))
    return image_source(names[0] if format == "tar" else folder)


def test_each_part_has_its_ids_failures_and_record_beside_it(tmp_path: Path, client: Client, fake: Any) -> None:
    source = text_source(texts_file(tmp_path))
    extract_parts(client, source, f"{tmp_path}/out/", sharding=Sharding(items=200, format="npy"))
    names = [f"part-0000{number}" for number in range(2)]
    endings = (".ids.jsonl", ".npy", ".npy.errors.jsonl", ".npy.job.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "job.json",
        *(name + ending for name in names for ending in endings),
    ]
    records = [json.loads((tmp_path / "out" / f"{name}.npy.job.json").read_text()) for name in names]
    assert [(one["items"], one["last"]) for one in records] == [(200, False), (100, True)]
    assert all(one["job"]["checkpoint_sha256"] == fake.sha for one in records)
    known = json.loads((tmp_path / "out" / "job.json").read_text())
    assert known["parts"] == {"items": 200, "format": "npy", "jobs": 1}


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_source_gives_one_empty_part(tmp_path: Path, client: Client, format: Any) -> None:
    (tmp_path / "none.txt").touch()
    source = text_source(tmp_path / "none.txt")
    for index in (1, 0):
        sharding = Sharding(format=format, index=index, jobs=2)
        assert extract_parts(client, source, tmp_path / "out", sharding=sharding).items == 0
    assert together(tmp_path / "out", "text") == ([], None)
    assert (tmp_path / "out" / f"part-00000.{format}").is_file()
    assert extract_parts(client, source, tmp_path / "out", sharding=sharding).already_finished


def test_ids_of_several_types_are_as_in_one_file(tmp_path: Path, client: Client) -> None:
    source = Items([Item(row if row < 5 else f"第{row}", f"{row}") for row in range(9)])
    extract(client, source, tmp_path / "out.parquet")
    extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=4))
    assert together(tmp_path / "out", "text")[0] == together(tmp_path / "out.parquet", "text")[0]
    assert together(tmp_path / "out", "text")[0][0] == "0"


# --- Going on.


def test_a_finished_job_reads_nothing_of_its_source(tmp_path: Path, client: Client) -> None:
    source = source_of(50)
    extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=10))
    source.read.clear()
    assert extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=10)).already_finished
    assert source.read == []


def test_it_goes_on_at_the_first_item_that_is_not_done(tmp_path: Path, client: Client, triton: Any, fake: Any) -> None:
    source = source_of(50)

    def before_infer(attempt: int, items: list[bytes]) -> None:
        if b"36" in items:
            raise fake.Fault(grpc.StatusCode.INTERNAL, "broken")

    triton.before_infer = before_infer
    sharding = Sharding(items=10)
    with (
        Client(triton.url, model="vit-b-16", retry=Retry(attempts=1)) as hasty,
        pytest.raises(Exception, match="broken"),
    ):
        extract_parts(hasty, source, tmp_path / "out", BUSY, sharding=sharding)
    whole = sorted((tmp_path / "out").glob("*.job.json"))
    assert len(whole) == 3
    done = 30 + json.loads((tmp_path / "out" / "part-00003.parquet.partial" / "progress.json").read_text())["items"]
    assert done > 30
    source.read.clear()
    triton.forget()
    reported: list[tuple[int, int]] = []
    extract_parts(client, source, tmp_path / "out", BUSY, sharding=sharding, report=lambda *now: reported.append(now))
    assert source.read == list(range(done, 50))
    assert sorted(int(item) for request in triton.requests for item in request) == list(range(done, 50))
    assert reported[0] == (done, 0)
    assert reported[-1] == (50, 0)
    extract(client, source, tmp_path / "out.jsonl")
    require_same(tmp_path / "out", tmp_path / "out.jsonl", "text")


@pytest.mark.parametrize("format", ["tsv", "jsonl", "lines"])
def test_what_is_done_is_not_read_again(tmp_path: Path, client: Client, triton: Any, fake: Any, format: str) -> None:
    """Rather than count reads, it is made unreadable, behind a time that says that nothing has changed."""
    path = tmp_path / {"tsv": "i.tsv", "jsonl": "t.jsonl", "lines": "t.txt"}[format]
    lines = {
        "tsv": lambda row: f"{row}\t{base64.b64encode(b'image %05d' % row).decode()}",
        "jsonl": lambda row: json.dumps({"text_id": row, "text": f"text {row:05}"}),
        "lines": lambda row: f"text {row:05}",
    }[format]
    path.write_text("".join(f"{lines(row)}\n" for row in range(100)))
    opened = image_source if format == "tsv" else text_source
    kind: Any = opened(path).kind
    extract(client, opened(path), tmp_path / "out.npy")
    triton.before_infer = lambda attempt, items: stop_at(items, b"00070", fake)
    sharding = Sharding(items=20)
    with pytest.raises(Exception, match="broken"):
        extract_parts(client, opened(path), tmp_path / "out", BUSY, sharding=sharding)
    triton.forget()
    status = path.stat()
    done = path.read_bytes().index(lines(60).encode())
    with path.open("r+b") as file:
        file.write(b"\xff" * done)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert extract_parts(client, opened(path), tmp_path / "out", BUSY, sharding=sharding).failures == 0
    require_same(tmp_path / "out", tmp_path / "out.npy", kind)
    # A time that says otherwise has it read, and found out.
    os.utime(path)
    with pytest.raises(JobRefused, match="the source has changed"):
        extract_parts(client, opened(path), tmp_path / "out", BUSY, sharding=sharding)


def stop_at(items: list[bytes], one: bytes, fake: Any) -> None:
    if any(item.endswith(one) for item in items):
        raise fake.Fault(grpc.StatusCode.INTERNAL, "broken")


def test_one_of_several_jobs_passes_over_the_others_parts(tmp_path: Path, client: Client, triton: Any) -> None:
    source = source_of(100)
    extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=10, index=1, jobs=4))
    sent = sorted(int(item) for request in triton.requests for item in request)
    assert sent == [*range(10, 20), *range(50, 60), *range(90, 100)]
    assert set(source.read) == set(range(100))
    assert len(source.read) <= 103, "each item is passed over once, but for the one after a part, which tells its end"
    extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=10, index=0, jobs=4))
    source.read.clear()
    extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=10, index=2, jobs=4))
    # What the first two have done says where the third's part begins.
    assert source.read[0] == 20


def test_a_source_that_was_touched_is_read_again_and_gone_on_with(tmp_path: Path, client: Client) -> None:
    source = source_of(50)
    extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=20))
    source.version = "2"
    source.read.clear()
    assert extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=20)).already_finished
    assert source.read == list(range(50))
    source.read.clear()
    assert extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=20)).already_finished
    assert source.read == [], "that it is the same was written down"


def test_a_source_that_fails_in_the_middle_ends_no_part(tmp_path: Path, client: Client, triton: Any) -> None:
    """Once it can be read again, it is gone on with there, though it was touched meanwhile."""

    class Torn(Items):
        def items(self, ids_only: int = 0, *, start: int = 0, after: Any = ()) -> Iterator[Item]:
            yield from super().items(ids_only, start=start, after=after)
            raise OSError(errno.EIO, "the disk is gone")

    source, sharding = source_of(50), Sharding(items=20)
    with pytest.raises(OSError, match="the disk is gone"):
        extract_parts(client, Torn(source.items_[:30]), tmp_path / "out", sharding=sharding)
    assert len(list((tmp_path / "out").glob("part-*.job.json"))) == 1
    triton.forget()
    source.version = "2"
    assert extract_parts(client, source, tmp_path / "out", sharding=sharding).items == 50
    assert sorted(int(item) for request in triton.requests for item in request) == list(range(30, 50))
    extract(client, source, tmp_path / "out.npy")
    require_same(tmp_path / "out", tmp_path / "out.npy", "text")


def test_the_state_of_a_folder_is_of_the_names_below_it(tmp_path: Path, ordinary_user: None) -> None:
    def state() -> str:
        return state_of_source({"format": "folder", "path": str(tmp_path)})

    below, hidden = tmp_path / "a" / "b", tmp_path / ".hidden"
    below.mkdir(parents=True)
    hidden.mkdir()
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    os.utime(below, (1, 1))
    before = state()
    (hidden / "new.jpg").touch()
    assert before == state() != ""
    below.chmod(0)
    assert state() != before, "what is in it was not read"
    below.chmod(0o700)
    (below / "new.jpg").touch()
    assert state() != before


@pytest.mark.parametrize("change", ["an item", "one less", "a part less", "one more", "other work"])
def test_a_changed_source_is_refused_or_overwritten(
    tmp_path: Path, client: Client, triton: Any, fake: Any, change: str
) -> None:
    source, sharding = source_of(50), Sharding(items=20)
    if change == "other work":

        def before_infer(attempt: int, items: list[bytes]) -> None:
            if b"32" in items:
                raise fake.Fault(grpc.StatusCode.INTERNAL, "broken")

        triton.before_infer = before_infer
        with pytest.raises(Exception, match="broken"):
            extract_parts(client, source, tmp_path / "out", BUSY, sharding=sharding)
        triton.forget()
        source.items_[20] = Item(20, "another")
    else:
        extract_parts(client, source, tmp_path / "out", sharding=sharding)
        if change == "an item":
            source.items_[30] = Item(30, "another")
        elif change == "one less":
            source.items_.pop()
        elif change == "a part less":
            del source.items_[25:]
        else:
            source.items_.append(Item(50, "50"))
    source.version = "2"
    with pytest.raises(JobRefused, match=r"the source has (changed|more)"):
        extract_parts(client, source, tmp_path / "out", sharding=sharding)
    before = (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns
    extract_parts(client, source, tmp_path / "out", ExtractOptions(overwrite=True), sharding=sharding)
    extract(client, source, tmp_path / "out.parquet")
    require_same(tmp_path / "out", tmp_path / "out.parquet", "text")
    assert (tmp_path / "out" / "part-00000.parquet").stat().st_mtime_ns == before, "this one's items are the same"


def test_new_images_in_a_folder_are_told(tmp_path: Path, client: Client) -> None:
    images = images_folder(tmp_path, 20)
    extract_parts(client, image_source(images), tmp_path / "out", sharding=Sharding(items=8))
    assert extract_parts(client, image_source(images), tmp_path / "out", sharding=Sharding(items=8)).already_finished
    (images / "zzz.jpg").write_bytes(b"new")
    with pytest.raises(JobRefused, match="more than the 20 items"):
        extract_parts(client, image_source(images), tmp_path / "out", sharding=Sharding(items=8))


def test_a_part_that_is_gone_is_made_anew(tmp_path: Path, client: Client) -> None:
    source = text_source(texts_file(tmp_path))
    extract(client, source, tmp_path / "out.parquet")
    for name in ("part-00001.parquet", "part-00001.parquet.job.json"):
        extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=100))
        (tmp_path / "out" / name).unlink()
        with pytest.raises(BadFile, match=r"part-00001.parquet.* run (its job|the same command) again"):
            list(read_features(tmp_path / "out", "text"))
        assert not extract_parts(client, source, tmp_path / "out", sharding=Sharding(items=100)).already_finished
        require_same(tmp_path / "out", tmp_path / "out.parquet", "text")


# --- Other jobs, and other options.


def test_what_it_was_begun_with_is_told(tmp_path: Path, client: Client) -> None:
    source, out = source_of(30), tmp_path / "out"
    extract_parts(client, source, out, sharding=Sharding(items=10))
    for sharding, options, message in (
        (Sharding(items=20), ExtractOptions(), r"--shard-items 10, now 20.*give what it was begun with"),
        (Sharding(items=10, format="npy"), ExtractOptions(), "--output-format 'parquet', now 'npy'"),
        (Sharding(items=10), ExtractOptions(normalize=False), "normalize True, now False"),
    ):
        with pytest.raises(JobRefused, match=message):
            extract_parts(client, source, out, options, sharding=sharding)
    (out / "part-of-mine").mkdir()
    (out / "notes.txt").touch()
    extract_parts(client, source, out, ExtractOptions(overwrite=True), sharding=Sharding(items=20, format="npy"))
    (out / "part-of-mine").rmdir()
    (out / "notes.txt").unlink()
    extract(client, source, tmp_path / "out.npy")
    require_same(out, tmp_path / "out.npy", "text")
    assert not list(out.glob("*.parquet*"))


def holding(triton: Any) -> tuple[threading.Event, threading.Event]:
    arrived, go = threading.Event(), threading.Event()

    def before_infer(attempt: int, items: list[bytes]) -> None:
        arrived.set()
        go.wait(30)

    triton.before_infer = before_infer
    return arrived, go


def test_two_jobs_of_one_index_and_another_count_while_one_is_at_work(
    tmp_path: Path, client: Client, triton: Any
) -> None:
    arrived, go = holding(triton)
    source, out = source_of(30), tmp_path / "out"
    given = {"sharding": Sharding(items=10, index=1, jobs=2)}
    first = threading.Thread(target=extract_parts, args=(client, source, out), kwargs=given)
    first.start()
    assert arrived.wait(30)
    with pytest.raises(JobRefused, match="a job with --shard 1/2 is at work in it; wait for it to end"):
        extract_parts(client, source, out, **given)
    with pytest.raises(JobRefused, match="jobs are at work in it, that of --shard 1/2 among them, .* --shard 0/3"):
        extract_parts(client, source, out, sharding=Sharding(items=10, jobs=3))
    with pytest.raises(JobRefused, match="jobs are at work in it"):
        extract_parts(client, source, out, ExtractOptions(overwrite=True), sharding=Sharding(items=5))
    go.set()
    first.join()
    # Nobody is at work any more: one job does what is left.
    assert extract_parts(client, source, out, sharding=Sharding(items=10)).parts == 3
    extract(client, source, tmp_path / "out.npy")
    require_same(out, tmp_path / "out.npy", "text")


def test_jobs_that_begin_at_one_moment_wait_for_each_other(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out, arrived, done = source_of(40), tmp_path / "out", threading.Event(), []
    enter, flock = PartsFolder._enter, fcntl.flock

    def job(index: int) -> None:
        done.append(extract_parts(client, source, out, sharding=Sharding(items=10, index=index, jobs=2)).parts)

    second = threading.Thread(target=job, args=[1])

    def entering(self: PartsFolder) -> None:
        if threading.current_thread() is not second:
            second.start()
            assert arrived.wait(5)
        enter(self)

    def locking(file: Any, how: int) -> None:
        if threading.current_thread() is second and not how & fcntl.LOCK_NB:
            arrived.set()
        flock(file, how)

    monkeypatch.setattr(PartsFolder, "_enter", entering)
    monkeypatch.setattr(fcntl, "flock", locking)
    job(0)
    second.join()
    assert done == [2, 2]


def test_a_folder_that_holds_something_else(tmp_path: Path, client: Client) -> None:
    source, out = source_of(3), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for options in (ExtractOptions(), ExtractOptions(overwrite=True)):
        with pytest.raises(JobRefused, match=r"holds notes.txt .* give an empty folder, or another --output"):
            extract_parts(client, source, out, options)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(JobRefused, match="is a file, and the parts need a folder"):
        extract_parts(client, source, out / "notes.txt")
    with pytest.raises(ValueError, match="is inside"):
        extract_parts(client, image_source(out, format="folder"), out / "features")
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({"text": ["猫"]}), tmp_path / "tables" / "a.parquet")
    tables = text_source(tmp_path / "tables")
    with pytest.raises(ValueError, match="is inside"):
        extract_parts(client, tables, tmp_path / "tables" / "features")
    extract_parts(client, tables, tmp_path / "tables" / "features", sharding=Sharding(format="npy"))
    with pytest.raises(ValueError, match="is inside"):
        extract_parts(client, Remote([]), "memory://bucket/photos/features/")
    with pytest.raises(ValueError, match="leave out --repeated-ids"):
        extract_parts(client, source, out, ExtractOptions(repeated_ids="first"))


def test_a_folder_that_cannot_be_written(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No such file or directory; mend that, or give another --output"):
        extract_parts(client, source_of(3), tmp_path / "none" / "out")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda *given: False)  # as root everything can be
    with pytest.raises(OSError, match="have it made writable, or give another --output"):
        extract_parts(client, source_of(3), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("where", ["flush", "sync", "append"])
def test_a_full_disk_is_told_and_keeps_what_was_done(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    source, out = source_of(60), tmp_path / "out"
    real, calls = getattr(GrowingFiles, where), 0

    def full(self: Any, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > (25 if where == "append" else 4):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, *given)

    monkeypatch.setattr(GrowingFiles, where, full)
    with pytest.raises(OSError, match="No space left on device; what was done is kept: make room"):
        extract_parts(client, source, out, BUSY, sharding=Sharding(items=10))
    monkeypatch.undo()
    assert len(list(out.glob("part-*.job.json"))) > 0
    extract_parts(client, source, out, BUSY, sharding=Sharding(items=10))
    extract(client, source, tmp_path / "out.npy")
    require_same(out, tmp_path / "out.npy", "text")


def test_damaged_work_and_damaged_records_are_told(tmp_path: Path, client: Client, triton: Any, fake: Any) -> None:
    source, out = source_of(30), tmp_path / "out"

    def before_infer(attempt: int, items: list[bytes]) -> None:
        if b"26" in items:
            raise fake.Fault(grpc.StatusCode.INTERNAL, "broken")

    triton.before_infer = before_infer
    with pytest.raises(Exception, match="broken"):
        extract_parts(client, source, out, BUSY, sharding=Sharding(items=20))
    triton.forget()
    work = next(out.glob("*.partial"))
    (work / "features").write_bytes(b"")
    with pytest.raises(BadFile, match="start anew with --overwrite"):
        extract_parts(client, source, out, BUSY, sharding=Sharding(items=20))
    extract_parts(client, source, out, ExtractOptions(overwrite=True), sharding=Sharding(items=20))
    extract(client, source, tmp_path / "out.npy")
    require_same(out, tmp_path / "out.npy", "text")
    record = out / "part-00000.parquet.job.json"
    record.write_text('{"items": 20}')
    with pytest.raises(BadFile, match="remove it to do the part anew"):
        extract_parts(client, source, out, sharding=Sharding(items=20))
    record.unlink()
    extract_parts(client, source, out, sharding=Sharding(items=20))
    require_same(out, tmp_path / "out.npy", "text")
    known = json.loads(record.read_text())
    for name, value in (("model", "another"), ("part", 1)):
        record.write_text(json.dumps({**known, "job": {**known["job"], name: value}}))
        with pytest.raises(JobRefused, match=rf"is of another job \({name} .*move that part elsewhere"):
            extract_parts(client, source, out, sharding=Sharding(items=20))
    (out / "job.json").write_text("{}")
    with pytest.raises(BadFile, match=r"not a job's file; give another --output, or remove the folder"):
        extract_parts(client, source, out, sharding=Sharding(items=20))


def test_max_errors_counts_all_parts_of_a_job(tmp_path: Path, client: Client) -> None:
    source = Items([Item(row, None if row % 5 == 3 else f"{row}") for row in range(30)])
    with pytest.raises(TooManyFailures, match="4 items failed, more than the 3 allowed"):
        extract_parts(
            client, source, tmp_path / "out", ExtractOptions(max_errors=3, batch_size=2), sharding=Sharding(items=10)
        )
    given = {"sharding": Sharding(items=10)}
    assert extract_parts(client, source, tmp_path / "out", ExtractOptions(max_errors=6), **given).failures == 6


@pytest.mark.parametrize("store", [False, True])
def test_what_failed_is_done_anew_as_the_error_says(tmp_path: Path, client: Client, store: bool) -> None:
    """The whole folder was to be removed, with what other jobs had finished; and of a store not what is here."""
    from fsspec.implementations.memory import MemoryFileSystem

    files = MemoryFileSystem()
    output, work = ("memory://failed/out", tmp_path / "work") if store else (str(tmp_path / "out"), tmp_path / "out")
    given: dict[str, Any] = {"sharding": Sharding(items=10), "work": work if store else None}
    options = ExtractOptions(max_errors=2, batch_size=2, checkpoint_s=0.0)
    bad = Items([Item(row, None if row in (11, 13, 23) else f"{row}") for row in range(30)])
    with pytest.raises(TooManyFailures) as caught:
        extract_parts(client, bad, output, options, **given)
    where = f"{output} and {work}" if store else output
    assert f"mend the items and remove part-N.* of each part N that has failures from {where} to b" in str(caught.value)
    assert (work / "part-00002.parquet.partial" / "errors").stat().st_size > 0
    for number in (1, 2):
        for path in work.glob(f"part-{number:05}.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in files.glob(f"/failed/out/part-{number:05}.*") if store else ():
            files.rm(name)
    good = Items([Item(row, f"{row}") for row in range(30)])
    summary = extract_parts(client, good, output, options, **given)
    assert (summary.items, summary.failures) == (30, 0)


# --- The server.


def test_a_server_that_is_away_as_a_part_ends_is_waited_for(tmp_path: Path, triton: Any, fake: Any) -> None:
    retry = Retry(attempts=1000, first_delay_s=0.01, max_delay_s=0.05, deadline_s=20)
    refused = 0

    def before_config() -> None:
        nonlocal refused
        if triton.requests and refused < 5:
            refused += 1
            raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "restarting")

    triton.before_config = before_config
    with Client(triton.url, model="vit-b-16", retry=retry) as client:
        extract_parts(client, source_of(30), tmp_path / "out", sharding=Sharding(items=10))
    assert refused == 5
    assert together(tmp_path / "out", "text")[0] == list(range(30))
    triton.before_config = lambda: (_ for _ in ()).throw(fake.Fault(grpc.StatusCode.UNAVAILABLE, "gone"))
    with (
        Client(triton.url, model="vit-b-16", retry=Retry(attempts=2, first_delay_s=0.01, deadline_s=0.2)) as client,
        pytest.raises(ServerUnreachable),
    ):
        extract_parts(client, source_of(30), tmp_path / "other", sharding=Sharding(items=10))


def test_a_token_that_is_refused_as_a_part_ends_is_told_at_once(tmp_path: Path, triton: Any, fake: Any) -> None:
    refused = 0

    def before_config() -> None:
        nonlocal refused
        if triton.requests:
            refused += 1
            raise fake.Fault(grpc.StatusCode.UNAUTHENTICATED, "token expired")

    triton.before_config = before_config
    retry = Retry(attempts=1000, first_delay_s=0.01, max_delay_s=0.05, deadline_s=2)
    with (
        Client(triton.url, model="vit-b-16", retry=retry) as client,
        pytest.raises(AccessDenied, match="token expired"),
    ):
        extract_parts(client, source_of(30), tmp_path / "out", sharding=Sharding(items=10))
    assert refused <= 2  # the second time to keep what is done: no waiting mends a token


def test_of_another_checkpoint_no_part_is_finished(tmp_path: Path, client: Client, triton: Any) -> None:
    def before_infer(attempt: int, items: list[bytes]) -> None:
        if b"15" in items:
            for model in triton.models.values():
                model.parameters["checkpoint_sha256"] = "b" * 64

    triton.before_infer = before_infer
    with pytest.raises(ModelChanged):
        extract_parts(client, source_of(40), tmp_path / "out", BUSY, sharding=Sharding(items=10))
    for record in (tmp_path / "out").glob("part-*.job.json"):
        assert json.loads(record.read_text())["job"]["checkpoint_sha256"] == "a" * 64
    assert not (tmp_path / "out" / "part-00001.parquet.job.json").exists()


# --- Jobs that are killed: each life is a fork of a process that has everything imported (see test_extract.py).

_LIVES = """
import json, os, random, signal, sys, time
from pathlib import Path
from cnclip_client import Client
from cnclip_client.extraction import ExtractOptions, Sharding, extract, extract_parts
from cnclip_client.sources import image_source, text_source

url, kind, source, seed, wanted, whole, folder, format, items, jobs, by = json.loads(sys.argv[1])
rng = random.Random(seed)

def live(index):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        opened = image_source(source) if kind == "image" else text_source(source)
        options = ExtractOptions(checkpoint_s=0.0, batch_size=4)
        with Client(url, model="vit-b-16") as client:
            if index is None:
                extract(client, opened, whole, options)
            else:
                sharding = Sharding(items=items, format=format, index=index, jobs=jobs)
                extract_parts(client, opened, by, options, sharding=sharding, work=folder)
        status = 0
    finally:
        os._exit(status)

started = time.monotonic()
assert os.waitpid(live(None), 0)[1] == 0
whole_s = time.monotonic() - started
kills, todo, running = 0, list(range(jobs)), {}
while todo or running:
    # All of them at once, each killed at a moment of its own.
    for index in todo:
        running[live(index)] = index
    todo = []
    for pid in list(running):
        if kills < wanted:
            time.sleep(rng.uniform(0, whole_s / jobs))
            os.kill(pid, signal.SIGKILL)
        code = os.waitpid(pid, 0)[1]
        index = running.pop(pid)
        assert code in (0, signal.SIGKILL), code
        if code:
            kills += 1
            todo.append(index)
print(kills)
"""


def live_and_die(
    tmp_path: Path, url: str, kind: str, format: str, *, seed: int, kills: int, items: int = 40, jobs: int = 3
) -> None:
    source = images_folder(tmp_path) if kind == "image" else texts_file(tmp_path)
    folder, whole = tmp_path / "parts", tmp_path / f"out.{format}"
    given = [url, kind, source, seed, kills, whole, folder, format, items, jobs, folder]
    done = run_script(_LIVES, json.dumps(given, default=str))
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 0
    require_same(folder, whole, kind, tolerance=1e-6)
    assert not [path.name for path in folder.iterdir() if not path.name.startswith(("part-", "job.json"))]


@pytest.mark.parametrize(("kind", "format"), [("text", "parquet"), ("image", "npy"), ("text", "jsonl")])
def test_killed_at_random_all_parts_are_one_run(tmp_path: Path, triton: Any, kind: str, format: str) -> None:
    live_and_die(tmp_path, triton.url, kind, format, seed=1, kills=6)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_killed_a_hundred_times(tmp_path: Path, triton: Any, format: str, seed: int) -> None:
    live_and_die(
        tmp_path, triton.url, "text", format, seed=seed, kills=100, items=(3, 17, 40, 1000)[seed], jobs=seed + 1
    )


_STEP_BY_STEP = f"""{DYING}
url, source, folder, format, stride = json.loads(sys.argv[1])

def work(client, output):
    sharding = Sharding(items=20, format=format)
    extract_parts(client, text_source(source), output, ExtractOptions(checkpoint_s=1000.0), sharding=sharding)

step = 1
while True:
    output = Path(folder) / str(step)
    code = live(output, step)
    if code == 0:
        break
    assert code == signal.SIGKILL, code
    assert live(output, 10**9) == 0
    step += stride
print(step)
"""


@pytest.mark.parametrize(
    ("format", "stride"), [("parquet", 9), *(pytest.param(one, 1, marks=pytest.mark.slow) for one in FORMATS)]
)
def test_killed_before_steps_on_the_disk(tmp_path: Path, triton: Any, format: str, stride: int) -> None:
    """Renames, removals and fsyncs of two parts are somebody's last; where that is slow, every one of them."""
    folder = tmp_path / "killed"
    folder.mkdir()
    given = [triton.url, texts_file(tmp_path, 30), folder, format, stride]
    done = run_script(_STEP_BY_STEP, json.dumps(given, default=str))
    assert done.returncode == 0, done.stderr.decode()
    steps = int(done.stdout)
    assert steps > 30
    *killed, whole = [files_of(folder / str(step)) for step in range(1, steps + 1, stride)]
    assert all(one == whole for one in killed)


# --- An object store.


def test_finished_parts_go_to_a_store_and_a_resumed_job_knows_them(
    tmp_path: Path, client: Client, triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    source = text_source(texts_file(tmp_path))
    extract(client, source, tmp_path / "out.parquet")
    triton.forget()
    store = MemoryFileSystem()
    store.rm("/bucket", recursive=True) if store.exists("/bucket") else None
    real, puts = MemoryFileSystem.put_file, 0

    def put_file(self: Any, *given: Any, **options: Any) -> Any:
        nonlocal puts
        puts += 1
        if puts == 4:
            raise PermissionError("the token has run out")
        return real(self, *given, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    url, given = "memory://bucket/features/", {"sharding": Sharding(items=100), "work": tmp_path / "work"}
    with pytest.raises(StoreError, match=r"features/part-00001.*the store forbids it \(the token has run out\)"):
        extract_parts(client, source, url, **given)
    sent = len([item for request in triton.requests for item in request])
    assert "part-00001.parquet.job.json" not in {
        path.rpartition("/")[2] for path in store.ls("/bucket/features", False)
    }
    triton.forget()
    summary = extract_parts(client, source, url, **given)
    # What was encoded is not encoded again, but what came out and was not yet made safe.
    assert len([item for request in triton.requests for item in request]) <= 300 - 200
    assert sent >= 200
    assert (summary.items, summary.parts) == (300, 3)
    assert not list((tmp_path / "work").iterdir())
    assert extract_parts(client, source, url, **given).already_finished
    # Another machine, on which there is no work, knows what is whole.
    shutil.rmtree(tmp_path / "work")
    assert extract_parts(client, source, url, **given).already_finished
    store.get("/bucket/features", str(tmp_path / "got"), recursive=True)
    require_same(tmp_path / "got", tmp_path / "out.parquet", "text")
    with pytest.raises(JobRefused, match="--shard-items 100, now 50"):
        extract_parts(client, source, url, sharding=Sharding(items=50), work=tmp_path / "work")
    options, several = ExtractOptions(overwrite=True), Sharding(items=50, jobs=2)
    with pytest.raises(JobRefused, match="remove what is there first"):
        extract_parts(client, source, url, options, sharding=several, work=tmp_path / "work")
    extract_parts(client, source, url, options, sharding=Sharding(items=150), work=tmp_path / "work")
    assert [path for path in store.ls("/bucket/features", False) if path.endswith("00002.parquet")] == []


def test_work_on_a_part_that_another_machine_has_finished_goes(tmp_path: Path, client: Client) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    store = MemoryFileSystem()
    store.rm("/elsewhere", recursive=True) if store.exists("/elsewhere") else None
    source = Items(
        [Item(row, None if row % 5 == 0 else f"{row}", "is null" if row % 5 == 0 else "") for row in range(30)]
    )
    options = ExtractOptions(checkpoint_s=0.0, batch_size=4, max_errors=4)
    given: dict[str, Any] = {"sharding": Sharding(items=10, format="npy")}

    def leave(items: int, failures: int) -> None:
        if items >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_parts(client, source, "memory://elsewhere", options, work=tmp_path / "a", report=leave, **given)
    assert list((tmp_path / "a").glob("part-00000*/progress.json"))
    with pytest.raises(TooManyFailures):  # in the third part
        extract_parts(client, source, "memory://elsewhere", options, work=tmp_path / "b", **given)
    shutil.rmtree(tmp_path / "b")
    reported: list[tuple[int, int]] = []
    options = ExtractOptions(checkpoint_s=0.0, batch_size=4, max_errors=6)
    extract_parts(
        client,
        source,
        "memory://elsewhere",
        options,
        work=tmp_path / "a",
        report=lambda *now: reported.append(now),
        **given,
    )
    assert (reported[0], reported[-1]) == ((20, 4), (30, 6))
    assert not list((tmp_path / "a").iterdir())
