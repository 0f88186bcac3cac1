"""The options that bound what a command asks of a server: they are taken, and messages name them."""

from __future__ import annotations

import base64
import io
import os
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from cnclip_client import Limits, RequestTimeout, ServerBusy, Timeout
from cnclip_client._cli import app
from cnclip_client._connection.mapping import map_error
from cnclip_client.command_line import Server
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from tests.commands import run_command_text


def cnclip(url: str, *arguments: object, status: int = 0, **environment: str) -> str:
    given = {name: value for name, value in os.environ.items() if not name.startswith("CNCLIP_")}
    env = {**given, "CNCLIP_URL": url, "COLUMNS": "200", "NO_COLOR": "1", **environment}
    done = run_command_text("cnclip", *arguments, env=env)
    assert done.returncode == status, done.stderr
    return done.stderr


def test_an_item_that_is_too_large_names_the_option(triton: Any, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(b"x" * 101)
    told = cnclip(triton.url, "features", "images", tmp_path / "large.jpg", "--item-bytes", 100, status=1)
    assert "larger than 100 bytes; raise Limits.item_bytes (--item-bytes)" in told
    cnclip(triton.url, "features", "images", tmp_path / "large.jpg", "--item-bytes", 101)
    (tmp_path / "photos").mkdir()
    (tmp_path / "large.jpg").rename(tmp_path / "photos/large.jpg")
    output = tmp_path / "out.jsonl"
    cnclip(triton.url, "extract", "images", tmp_path / "photos", "-o", output, status=1, CNCLIP_ITEM_BYTES="100")
    assert "(--item-bytes)" in Path(f"{output}.errors.jsonl").read_text()


@pytest.mark.parametrize("kind", ["tsv", "tar"])
def test_images_inside_a_file_may_be_as_large_as_the_option_says(
    triton: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    image, source, output = b"x" * 200, tmp_path / f"images.{kind}", tmp_path / "out.jsonl"
    if kind == "tsv":
        source.write_bytes(b"7\t" + base64.b64encode(image) + b"\n")
    else:
        with tarfile.open(source, "w") as archive:
            member = tarfile.TarInfo("7.jpg")
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    monkeypatch.setattr("cnclip_client.sources._open.Limits", lambda: Limits(item_bytes=150))
    given = ["extract", "images", str(source), "-o", str(output), "--url", triton.url, "--item-bytes"]
    assert CliRunner().invoke(app, [*given, "100"]).exit_code == 1
    assert "larger than 100 bytes; raise Limits.item_bytes (--item-bytes)" in Path(f"{output}.errors.jsonl").read_text()
    assert CliRunner().invoke(app, [*given, "200", "--overwrite"]).exit_code == 0


def test_an_answer_that_is_late_names_the_option(triton: Any) -> None:
    gate = threading.Event()
    triton.before_infer = lambda attempt, items: gate.wait(20) and None
    try:
        told = cnclip(triton.url, "features", "texts", "a", "--request-timeout", 0.3, status=3)
    finally:
        gate.set()
    assert "within 0.3 s; raise Timeout.request_s (--request-timeout)" in told
    assert "--in-flight" in told


def test_a_full_queue_names_the_options() -> None:
    error = InferenceServerException("Exceeds maximum queue size", "StatusCode.UNAVAILABLE")
    mapped = map_error(error, url="a:1", model="m", timeout_s=1)
    assert isinstance(mapped, ServerBusy)
    assert "(--in-flight)" in str(mapped)
    assert "--wait-for-server" in str(mapped)
    error = InferenceServerException("Deadline Exceeded", f"StatusCode.{grpc.StatusCode.DEADLINE_EXCEEDED.name}")
    mapped = map_error(error, url="a:1", model="m", timeout_s=1, setting="connect_s")
    assert isinstance(mapped, RequestTimeout)
    assert "--request-timeout" not in str(mapped)


def test_fewer_requests_at_once(triton: Any, tmp_path: Path) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.01)
    (tmp_path / "texts.txt").write_text("text\n" * 60)
    output = ("-o", tmp_path / "out.jsonl", "--batch-size", 1)
    cnclip(triton.url, "extract", "texts", tmp_path / "texts.txt", *output, "--in-flight", 2)
    assert triton.most_at_once == 2


def test_what_a_client_is_made_with(monkeypatch: pytest.MonkeyPatch, triton: Any) -> None:
    server = Server(url=[triton.url], request_timeout=7, in_flight=3, item_bytes=5, readers=2)
    with server.connect() as client:
        assert client.limits == Limits(in_flight=3, item_bytes=5, readers=2)
        assert client._endpoints.inside()[0].transport.timeout == Timeout(request_s=7)
    with Server(url=[triton.url]).connect() as client:
        assert client.limits == Limits()


def test_more_readers_read_at_once(triton: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cnclip_client import Client
    from cnclip_client.extraction import _loading, encode_items
    from cnclip_client.sources import Item

    at_once, most, lock = 0, 0, threading.Lock()

    def slow(path: object, item_bytes: int) -> bytes:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return b"image"

    monkeypatch.setattr(_loading, "image_bytes", slow)
    with Client(triton.url, model="vit-b-16", limits=Limits(readers=20)) as client:
        items = [Item(row, f"{row}.jpg") for row in range(60)]
        assert sum(len(block.ids) for block in encode_items(client, "image", items)) == 60
    assert 10 < most <= 20


def test_only_commands_that_encode_have_them(triton: Any) -> None:
    assert "No such option" in cnclip(triton.url, "info", "--in-flight", 2, status=2)
    assert "No such option" in cnclip(triton.url, "features", "texts", "a", "--readers", 2, status=2)
