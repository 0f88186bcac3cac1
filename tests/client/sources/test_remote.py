"""Sources elsewhere: any store by fsspec (here its memory), a web server, and what goes wrong with them."""

from __future__ import annotations

import http.server
import json
import random
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cnclip_client import BadFile, Client, Limits, MissingExtra, StoreError
from cnclip_client._flow.items import Unsendable, image_bytes
from cnclip_client._remote import RemotePath, is_remote, located
from cnclip_client._remote.reading import RangedFile
from cnclip_client.extraction import encode_items
from cnclip_client.sources import Item, image_source, text_source

from tests.client.sources.reading import values
from tests.client.sources.test_webdataset import dataset, sample, write_tar

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield "memory://bucket"
    files.store.clear()


def upload(folder: Path, url: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            RemotePath(f"{url}/{path.relative_to(folder)}").put(path)


def test_what_is_remote() -> None:
    assert is_remote("s3://bucket/a")
    assert is_remote("https://example.org/a.tar")
    assert not is_remote("C:/a")
    assert not is_remote("photos/a//b")
    assert not is_remote("://a")
    assert isinstance(located("photos/"), Path)
    assert located("s3://b/c") == RemotePath("s3://b/c")
    assert RemotePath("https://example.org/d/a.tar?token=x/y").name == "a.tar"


def test_a_folder(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jpg", "d/b.jpg", "d/e/c.jpg", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    upload(tmp_path, f"{memory}/photos")
    source = image_source(f"{memory}/photos")
    found = values(source)
    assert [one for one, _ in found] == [one for one, _ in values(image_source(tmp_path))]
    assert [image_bytes(value, 100) for _, value in found] == [b"a.jpg", b"d/b.jpg", b"d/e/c.jpg"]
    listings: list[str] = []
    matching = RemotePath.matching
    monkeypatch.setattr(RemotePath, "matching", lambda self: listings.append(self.url) or matching(self))
    source = image_source(f"{memory}/photos/d/*.jpg")
    assert source.total() == len(list(source.items())) == 1
    assert len(listings) == 1
    globbed = values(source)
    assert [image_bytes(value, 100) for _, value in globbed] == [b"d/b.jpg"]
    with pytest.raises(BadFile, match="no file matches it; check the pattern"):
        image_source(f"{memory}/photos/d/*.gif")


def test_tars(tmp_path: Path, memory: str) -> None:
    images = dataset(tmp_path / "d")
    upload(tmp_path / "d", f"{memory}/d")
    assert values(image_source(f"{memory}/d")) == list(images.items())
    assert values(image_source(f"{memory}/d/{{00000..00002}}.tar")) == list(images.items())
    assert values(text_source(f"{memory}/d/*.tar"))[11] == ("000020003", "文11")
    before = image_source(f"{memory}/d").fingerprint
    assert before["format"] == "webdataset"
    assert image_source(f"{memory}/d").fingerprint == before
    RemotePath(f"{memory}/d/00001.tar").put(tmp_path / "d" / "00001.tar")
    now = image_source(f"{memory}/d").fingerprint
    assert {name for name in now if now[name] != before[name]} == {"files"}
    RemotePath(f"{memory}/d/00001.tar").write((tmp_path / "d" / "00001.tar").read_bytes()[:3000])
    found = values(image_source(f"{memory}/d"))
    assert found[:4] == list(images.items())[:4]
    assert found[-5][0] == "00001.tar"
    assert found[-5][1].startswith("!is cut off at byte")
    assert found[-4:] == list(images.items())[-4:]


def test_tars_of_braces_are_asked_for_together(tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, ten thousand of a store took minutes, five times over."""
    images = dataset(tmp_path / "d")
    upload(tmp_path / "d", f"{memory}/d")
    together, state = threading.Barrier(3), RemotePath.state
    monkeypatch.setattr(RemotePath, "state", lambda self: state(self) if together.wait(5) >= 0 else None)
    assert values(image_source(f"{memory}/d/{{00000..00002}}.tar")) == list(images.items())


@pytest.mark.parametrize("compression", ["NONE", "ZSTD"])
def test_parquet_whose_pages_are_larger_than_what_is_fetched_at_once(
    tmp_path: Path, memory: str, compression: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Nothing that a compression makes small, in one page.
    images = [random.Random(row).randbytes(1024 * 1024 + row) for row in range(7)]
    written = {"compression": compression, "data_page_size": 1 << 30, "use_dictionary": False}
    pq.write_table(pa.table({"id": range(7), "image": images}), tmp_path / "a.parquet", **written)
    upload(tmp_path, memory)
    found = values(image_source(f"{memory}/a.parquet"))
    assert [(one, bytes(value)) for one, value in found] == list(enumerate(images))


def test_parquet_tsv_jsonl_lines_and_lists(tmp_path: Path, memory: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "p").mkdir()
    for part in range(2):
        columns = {"id": [part * 10 + row for row in range(10)], "image": [b"%d" % row for row in range(10)]}
        pq.write_table(pa.table(columns), tmp_path / "p" / f"{part}.parquet", row_group_size=4)
    (tmp_path / "a.tsv").write_text("7\tYQ==\n8\tYg==\n")
    (tmp_path / "a.jsonl").write_text('{"text_id": 1, "text": "一"}\n')
    (tmp_path / "lines.txt").write_text("一\n二\n")
    (tmp_path / "paths.txt").write_text(f"{memory}/x/a.tsv\n{memory}/x/none\n")
    upload(tmp_path, f"{memory}/x")
    assert values(image_source(f"{memory}/x/p")) == values(image_source(tmp_path / "p"))
    assert values(image_source(f"{memory}/x/a.tsv")) == [(7, b"a"), (8, b"b")]
    assert values(text_source(f"{memory}/x/a.jsonl")) == [(1, "一")]
    assert values(text_source(f"{memory}/x/lines.txt")) == [(1, "一"), (2, "二")]
    for source in ("p", "a.tsv"):
        assert isinstance(image_source(f"{memory}/x/{source}").fingerprint["files"], str)
    found = values(image_source(f"{memory}/x/paths.txt"))
    assert image_bytes(found[0][1], 100) == b"7\tYQ==\n8\tYg==\n"
    with pytest.raises(Unsendable, match="there is nothing; check the name"):
        image_bytes(found[1][1], 100)
    with pytest.raises(BadFile, match="must be on a disk: copy it"):
        image_source(f"{memory}/x/lmdb", format="lmdb")


def test_what_is_not_there(memory: str) -> None:
    for source in ("none", "none.tar", "none.tsv", "none/"):
        with pytest.raises(BadFile, match=r"none.*there is nothing; check the name"):
            image_source(f"{memory}/{source}")
    with pytest.raises(BadFile, match="there is no tar"):
        image_source(f"{memory}/*.tar")


@pytest.mark.parametrize(("url", "library"), [("s3://bucket/a", "s3fs"), ("gs://bucket/a", "gcsfs")])
def test_a_missing_library_is_named(url: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    # Another test may have used it, and fsspec remembers.
    known = __import__("sys").modules["fsspec.registry"]._registry
    for scheme in [one for one in ("s3", "gs") if one in known]:
        monkeypatch.delitem(known, scheme)
    with pytest.raises(MissingExtra, match=r"cn-clip-triton\[remote\]"):
        image_source(url)


# --- Reading ahead.


def test_pieces_are_fetched_ahead_at_once_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_client._remote.reading._BLOCK_BYTES", 1000)
    data = bytes(range(256)) * 200
    gate, asked = threading.Barrier(8), []

    def fetch(start: int, stop: int) -> bytes:
        asked.append(start)
        if len(asked) <= 8:
            gate.wait(60)
        return data[start:stop]

    with RangedFile(fetch, len(data), "memory://x") as file:
        read = b""
        while piece := file.read(777):
            read += piece
            assert len(file._blocks) <= 20
        assert read == data
        assert sorted(asked) == list(range(0, len(data), 1000))  # each once
        asked.clear()
        for row in range(20):  # two columns, each read on where it was
            for begin in (0, 25_000):
                file.seek(begin + row * 500)
                assert file.read(500) == data[begin + row * 500 :][:500]
        assert len(asked) <= 40
        assert len(set(asked)) == len(asked)
        file.seek(50_000)
        assert file.read(10) == data[50_000:50_010]
        file.seek(-5, 2)
        assert file.read(10) == data[-5:]


def test_a_file_that_is_replaced_while_it_is_read_is_told() -> None:
    with RangedFile(lambda start, stop: b"short", 100, "s3://b/x") as file:
        with pytest.raises(StoreError, match=r"s3://b/x: gives 5 bytes where 100 were expected"):
            file.read(10)


def test_a_store_that_stumbles_is_asked_again(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_client._remote.reading._FIRST_DELAY_S", 0.0)
    RemotePath(f"{memory}/a").write(b"x" * 10)
    files, asked = type(fsspec.filesystem("memory")), []
    whole = files.cat_file

    def stumbling(self: Any, path: str, start: int | None = None, end: int | None = None) -> Any:
        asked.append(path)
        if len(asked) < 3:
            raise ConnectionResetError("reset by peer")
        return whole(self, path, start, end)

    monkeypatch.setattr(files, "cat_file", stumbling)
    assert RemotePath(f"{memory}/a").read(5) == b"xxxxx"
    assert len(asked) == 3
    monkeypatch.setattr(files, "cat_file", lambda *_, **__: (_ for _ in ()).throw(ConnectionResetError("reset")))
    with pytest.raises(StoreError, match=r"cannot be had \(reset\); see that it can be reached, and run it again"):
        RemotePath(f"{memory}/a").read(5)
    with pytest.raises(StoreError, match="cannot be had"):
        image_bytes(f"{memory}/a", 100)  # no item's fault: the job stops, to go on another time


class _ClientError(Exception):
    """What botocore raises."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": _STATUS.get(code, 403)}}


_STATUS = {"NoSuchBucket": 404, "400": 400, "SlowDown": 503, "InvalidRequest": 400, "RequestTimeout": 400}


@pytest.mark.parametrize(
    ("code", "raised", "told", "stops"),
    [
        ("ExpiredToken", PermissionError, "token has run out (ExpiredToken); get a new one", True),
        ("InvalidAccessKeyId", PermissionError, "refuses the credentials", True),
        ("AccessDenied", PermissionError, "the store forbids it", False),
        ("NoSuchBucket", FileNotFoundError, "there is no bucket bucket; check the name", False),
        ("400", OSError, "or they have run out (400); set AWS_PROFILE", True),
        ("SlowDown", OSError, "cannot be had", True),
        ("RequestTimeout", TimeoutError, "cannot be had", True),
        ("InvalidRequest", OSError, "the store refuses it (No); check the address", False),  # of a key of one's own
    ],
)
def test_what_s3_says_is_told_with_what_to_do(
    memory: str, monkeypatch: pytest.MonkeyPatch, code: str, raised: type[Exception], told: str, stops: bool
) -> None:
    monkeypatch.setattr("cnclip_client._remote.reading._FIRST_DELAY_S", 0.0)

    def cat_file(*_: Any, **__: Any) -> Any:
        raise raised("No") from _ClientError(code)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", cat_file)
    path = RemotePath("memory://bucket/a")
    monkeypatch.setattr(RemotePath, "_there", lambda self: (fsspec.filesystem("memory"), "/bucket/a"))
    path = RemotePath("s3://bucket/a")
    with pytest.raises((StoreError, BadFile)) as caught:
        path.read()
    assert told in str(caught.value)
    assert str(caught.value).startswith("s3://bucket/a: ")
    # One that is forbidden or gone fails as one item; where nothing can be had any more, the job stops.
    with pytest.raises(StoreError if stops else Unsendable):
        image_bytes("s3://bucket/a", 100)


def test_an_address_that_no_library_takes_costs_no_other(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class ParamValidationError(Exception):
        """botocore's, of a bucket whose name can be none: `s3://`."""

    def cat_file(*_: Any, **__: Any) -> Any:
        raise ParamValidationError('Invalid bucket name ""')

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", cat_file)
    with pytest.raises(Unsendable, match="is no address that can be read: Invalid bucket name"):
        image_bytes(f"{memory}/a", 100)


# --- The web.


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """A server of files that knows ranges, and answers a name that is a status with that."""

    asked: ClassVar[list[str]] = []
    busy: ClassVar[bool] = False

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.busy or self.path[1:4].isdecimal():
            self.send_error(503 if self.busy else int(self.path[1:4]))
            return
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if not wanted or not path.is_file():
            super().do_GET()
            return
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        data = path.read_bytes()
        part = data[int(first) : int(last) + 1 if last else None]
        if not part:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("aiohttp")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_web_server(tmp_path: Path, web: str) -> None:
    write_tar(tmp_path / "a.tar", [*sample("0", 0), *sample("1", 1)])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text_id": 1, "text": "一"}) + "\n")
    found = values(image_source(f"{web}/a.tar"))
    assert found == values(image_source(tmp_path / "a.tar"))
    assert values(text_source(f"{web}/a.jsonl")) == [(1, "一")]
    assert isinstance(image_source(f"{web}/a.tar").fingerprint["files"], str)
    # A list names any machine: none of these ends the job, nor is asked for again.
    reasons = {
        "none.jpg": "there is nothing",
        "410.jpg": "there is nothing; check the name",
        "401.jpg": r"refuses the credentials, or they have run out \(401\); see the documentation of fsspec's",
        "403.jpg": r"forbids it \(403, .*\); have it allowed, or see the documentation of fsspec's",
        "451.jpg": r"refuses it \(451, .*\); check the address",
        "empty.jpg": "is empty",
    }
    for name, reason in reasons.items():
        _Ranges.asked.clear()
        with pytest.raises(Unsendable, match=reason):
            image_bytes(f"{web}/{name}", 100)
        assert _Ranges.asked == [f"/{name}"]
    with pytest.raises(Unsendable, match="is larger than 100 bytes"):
        image_bytes(f"{web}/a.tar", 100)
    with pytest.raises(BadFile, match="there is nothing"):
        image_source(f"{web}/none.tar")


def test_a_network_that_is_lost_is_no_items_fault(
    tmp_path: Path, web: str, triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnclip_client._remote.reading._FIRST_DELAY_S", 0.0)
    (tmp_path / "a.jpg").write_bytes(b"image")
    nobody = "http://127.0.0.1:1/a.jpg"
    fetch = RemotePath.read

    def items() -> Iterator[Item]:
        for name in ("a.jpg", "403.jpg"):
            yield Item(name, f"{web}/{name}")
        yield Item("nobody", nobody)
        monkeypatch.setattr(RemotePath, "read", lambda self, *more: fetch(RemotePath(nobody), *more))
        yield Item("lost", f"{web}/a.jpg")

    with Client(triton.url, model="vit-b-16", limits=Limits(readers=1)) as client:
        done: list[Any] = []
        with pytest.raises(StoreError, match="cannot be had"):
            done.extend(encode_items(client, "image", items(), batch_size=1))
    assert [failure.id for one in done for failure in one.failures] == ["403.jpg", "nobody"]
    assert [one.ids for one in done if one.ids] == [("a.jpg",)]


def test_a_web_server_that_answers_no_more_says_nothing_of_others(
    tmp_path: Path, web: str, triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that has had enough of us, which ended the job."""
    monkeypatch.setattr("cnclip_client._remote.reading._FIRST_DELAY_S", 0.0)
    (tmp_path / "a.jpg").write_bytes(b"image")

    def items() -> Iterator[Item]:
        yield Item("a", f"{web}/a.jpg")
        monkeypatch.setattr(_Ranges, "busy", True)
        yield Item("busy", f"{web}/b.jpg")
        yield Item("nobody", "http://127.0.0.1:1/a.jpg")
        monkeypatch.setattr(_Ranges, "busy", False)
        yield Item("b", f"{web}/a.jpg")

    with Client(triton.url, model="vit-b-16", limits=Limits(readers=1)) as client:
        (found,) = encode_items(client, "image", items())
    assert (found.ids, [failure.id for failure in found.failures]) == (("a", "b"), ["busy", "nobody"])


def test_a_network_by_which_others_are_read_meanwhile_is_not_lost(triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    others_are_read = threading.Event()

    def read(path: RemotePath, most_bytes: int | None = None) -> bytes:
        if most_bytes == 1:
            assert others_are_read.wait(20)
        if path.name == "dead.jpg" or most_bytes == 1:
            raise StoreError("cannot be had", path=path.url, of_all=False, passing=True)
        return b"image"

    def items() -> Iterator[Item]:
        for name in ("a", "dead", "b"):
            yield Item(name, f"http://{name}/{name}.jpg")
        others_are_read.set()

    monkeypatch.setattr(RemotePath, "read", read)
    with Client(triton.url, model="vit-b-16") as client:
        (found,) = encode_items(client, "image", items())
    assert (found.ids, [failure.id for failure in found.failures]) == (("a", "b"), ["dead"])


@pytest.mark.parametrize(
    "url",
    ["s3://KEY:s3cr/e@t@bucket/x", "s3://KEY:s3cret@bucket/x", "https://s3cr@host/x.tar", "ftp://u:s3cr?@host/x.tar"],
)
def test_addresses_hold_no_passwords(url: str) -> None:
    with pytest.raises(BadFile, match="must hold no user and no password") as caught:
        image_source(url)
    assert "s3cr" not in str(caught.value)


def test_an_at_sign_elsewhere_is_no_password() -> None:
    for url in (
        "hf://datasets/a/b@main/x.tar",
        "s3://bucket/a@b:c@d.jpg",
        "https://host/x?to=a:b@c",
        "http://host:9000/a@b",
    ):
        assert RemotePath(url).url == url


def test_of_a_file_whose_size_no_server_tells_nobody_guesses_how_many_items_it_has(
    tmp_path: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset(tmp_path / "d", tars=1)
    (tmp_path / "d" / "a.txt").write_text("文\n" * 100)
    upload(tmp_path / "d", f"{memory}/d")
    lines, tar = text_source(f"{memory}/d/a.txt"), image_source(f"{memory}/d/00000.tar")
    assert (lines.total(), tar.total()) == (100, 4)
    files = fsspec.filesystem("memory")
    info = files.info
    monkeypatch.setattr(type(files), "info", lambda self, path, **more: {**info(path, **more), "size": None})
    assert len(list(lines.items())) == 100
    assert len(list(tar.items())) == 4
    assert (lines.total(), tar.total()) == (None, None)
