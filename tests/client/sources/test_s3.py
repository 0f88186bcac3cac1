"""Sources in a local S3 (moto), and a job whose token runs out in its midst."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import BadFile, Client, StoreError, extraction
from cnclip_client._flow.items import image_bytes
from cnclip_client._remote import RemotePath
from cnclip_client.sources import image_source, text_source

from tests.client.cli.test_cli_extract import extract
from tests.client.sources.reading import values
from tests.client.sources.test_remote import upload
from tests.client.sources.test_webdataset import dataset

_REFUSAL = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>No.</Message></Error>'


class Gateway:
    """Stands before an S3, and refuses everything once it was asked for so many objects.

    Attributes:
        left: How many more it gives; None for any number.
        gets: How many objects, or pieces of them, were asked for.
        code: What it then calls its reason.
        forbidden: What the name of an object ends in that it never gives.
    """

    def __init__(self, behind: str) -> None:
        self.left: int | None = None
        self.gets = 0
        self.code = "ExpiredToken"
        self.forbidden = "-"
        host = urlsplit(behind).netloc
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.command == "GET" and "list-type" not in self.path:
                    outer.gets += 1
                if outer.left is not None and outer.gets > outer.left:
                    self._answer(403, {}, (_REFUSAL % outer.code).encode())
                    return
                if urlsplit(self.path).path.endswith(outer.forbidden):
                    self._answer(403, {}, (_REFUSAL % "AccessDenied").encode())
                    return
                to = http.client.HTTPConnection(host, timeout=60)
                to.request(self.command, self.path, body, dict(self.headers))
                answer = to.getresponse()
                self._answer(answer.status, dict(answer.getheaders()), answer.read())
                to.close()

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                        self.send_header(name, value)
                length = headers.get("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gateway(s3: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    made = Gateway(s3["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    # What is open already asks the store behind it.
    files = pytest.importorskip("s3fs").S3FileSystem
    files.clear_instance_cache()
    yield made
    files.clear_instance_cache()
    made.close()


def test_every_kind_of_source(tmp_path: Path, bucket: str) -> None:
    images = dataset(tmp_path / "tars")
    (tmp_path / "photos" / "d").mkdir(parents=True)
    for name in ("a.jpg", "b c.jpg", "d/图.jpg"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    (tmp_path / "photos" / "empty.jpg").touch()
    (tmp_path / "parquet").mkdir()
    for part in range(3):
        columns = {"id": [part * 50 + row for row in range(50)], "image": [b"%d" % row * 5000 for row in range(50)]}
        pq.write_table(pa.table(columns), tmp_path / "parquet" / f"{part}.parquet", row_group_size=20)
    (tmp_path / "a.tsv").write_text("7\tYQ==\n8\tYg==\n")
    (tmp_path / "a.jsonl").write_text('{"text_id": 1, "text": "一"}\n', encoding="utf-8")
    upload(tmp_path, f"s3://{bucket}")
    there = f"s3://{bucket}"
    assert values(image_source(f"{there}/tars")) == list(images.items())
    assert values(image_source(f"{there}/tars/{{00000..00002}}.tar")) == list(images.items())
    assert values(text_source(f"{there}/tars"))[11] == ("000020003", "文11")
    found = values(image_source(f"{there}/photos/"))
    assert [one for one, _ in found] == ["a.jpg", "b c.jpg", "d/图.jpg", "empty.jpg"]
    assert [image_bytes(value, 100) for _, value in found[:3]] == [one.encode() for one, _ in found[:3]]
    assert RemotePath(found[3][1]).read(100) == b""
    assert values(image_source(f"{there}/parquet")) == values(image_source(tmp_path / "parquet"))
    assert values(image_source(f"{there}/a.tsv")) == [(7, b"a"), (8, b"b")]
    assert values(text_source(f"{there}/a.jsonl")) == [(1, "一")]
    assert len(values(image_source(f"{there}/photos/*.jpg"))) == 3
    # A file that is replaced by another of its size is told by its ETag.
    before = dict(image_source(f"{there}/a.tsv").fingerprint)
    RemotePath(f"{there}/a.tsv").write(b"7\tYQ==\n9\tYg==\n")
    now = dict(image_source(f"{there}/a.tsv").fingerprint)
    assert {name for name in now if now[name] != before[name]} == {"files"}


def test_what_is_missing_is_told(bucket: str) -> None:
    with pytest.raises(BadFile, match=r"no-such-bucket/photos/: there is no.*; check the name"):
        image_source("s3://no-such-bucket/photos/")
    with pytest.raises(BadFile, match=rf"s3://{bucket}/none.tar: there is nothing; check the name"):
        image_source(f"s3://{bucket}/none.tar")


def test_a_refused_token(bucket: str, gateway: Gateway) -> None:
    RemotePath(f"s3://{bucket}/a.tar").write(b"x" * 2000)
    gateway.left = 0
    gateway.gets = 1
    with pytest.raises(StoreError, match=r"(token has run out|credentials|forbids)"):
        image_source(f"s3://{bucket}/")


def test_a_right_that_is_lost_in_mid_job_is_no_items_fault(
    tmp_path: Path, triton: Any, bucket: str, gateway: Gateway
) -> None:
    names = [f"s3://{bucket}/{row:02}.jpg" for row in range(40)]
    for row, name in enumerate(names):
        RemotePath(name).write(b"image %d" % row)
    (tmp_path / "list.txt").write_text("\n".join(names))
    source, output = image_source(tmp_path / "list.txt"), tmp_path / "out.jsonl"
    gateway.code, gateway.forbidden = "AccessDenied", "/07.jpg"  # as one that is missing, where nothing may be listed
    gateway.gets, gateway.left = 0, 20
    with Client(triton.url, model="vit-b-16") as client:
        with pytest.raises(StoreError, match="the store forbids it"):
            extraction.extract(client, source, output)
        gateway.left = None
        assert extraction.extract(client, source, output).failures == 1
    failed = (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in failed] == [names[7]]


@pytest.mark.parametrize("kind", ["tars", "photos"])
def test_a_token_that_runs_out_in_mid_job_and_a_new_one(
    tmp_path: Path, triton: Any, bucket: str, gateway: Gateway, kind: str
) -> None:
    images = dataset(tmp_path / "tars", tars=5, samples=8)
    (tmp_path / "photos").mkdir()
    for key, image in images.items():
        (tmp_path / "photos" / f"{key}.jpg").write_bytes(image)
    upload(tmp_path / kind, f"s3://{bucket}/{kind}")
    gateway.gets = 0
    gateway.left = 3 if kind == "tars" else 20
    job = ["images", f"s3://{bucket}/{kind}", "-o", tmp_path / "out.jsonl"]
    said = extract(triton.url, *job, status=3)
    assert "the store's token has run out (ExpiredToken); get a new one and run it again" in said
    assert "what was done is kept: run the same command again to go on" in said
    assert not (tmp_path / "out.jsonl").exists()
    gateway.left = None
    extract(triton.url, *job)
    extract(triton.url, "images", tmp_path / kind, "-o", tmp_path / "local.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "local.jsonl").read_bytes()
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 40
    assert json.loads((tmp_path / "out.jsonl.job.json").read_text())["failures"] == 0
