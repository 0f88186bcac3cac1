"""`cnclip extract` as a user meets it: files in, files out, one line of summary, and an exit status."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.commands import run_command, run_command_text

COMMAND = [sys.executable, "-c", "from cnclip_client._cli import main; main()", "extract"]


def extract(url: str, *arguments: object, status: int = 0, cwd: Path | None = None) -> str:
    """Runs the command and returns what it said on stderr; stdout is for data, of which there is none."""
    environment = {**os.environ, "CNCLIP_URL": url, "COLUMNS": "200", "NO_COLOR": "1"}
    done = run_command_text("cnclip", "extract", *arguments, env=environment, cwd=cwd)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    return done.stderr


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"第{row}句\n" for row in range(200)), encoding="utf-8")
    return path


def test_one_line_of_summary_and_a_second_run_that_does_nothing(tmp_path: Path, triton: Any, texts: Path) -> None:
    said = extract(triton.url, "texts", texts, "-o", tmp_path / "out.parquet", "--dtype", "float16")
    assert said.startswith("cnclip: 200 items, 0 failures, ")
    assert said.endswith(" items/s\n")
    assert said.count("\n") == 1
    assert pq.read_schema(tmp_path / "out.parquet").field("feature").type.value_type == pa.float16()
    triton.forget()
    said = extract(triton.url, "texts", texts, "-o", tmp_path / "out.parquet", "--dtype", "float16")
    assert "was finished before: 200 items, 0 failures" in said
    assert not triton.requests
    said = extract(triton.url, "texts", texts, "-o", tmp_path / "out.parquet", status=2)
    assert "dtype 'float16', now 'float32'" in said
    extract(triton.url, "texts", texts, "-o", tmp_path / "out.parquet", "--overwrite", "--no-normalize")


def test_every_kind_of_images(tmp_path: Path, triton: Any, fake: Any) -> None:
    import lmdb

    images = {7: b"one", 8: b"two"}
    lines = [b"%d\t%b\n" % (one, base64.b64encode(image)) for one, image in images.items()]
    (tmp_path / "imgs.tsv").write_bytes(b"".join(lines))
    with lmdb.open(str(tmp_path / "imgs")) as environment, environment.begin(write=True) as transaction:
        for one, image in images.items():
            transaction.put(b"%d" % one, base64.urlsafe_b64encode(image))
        transaction.put(b"num_images", b"2")
    pq.write_table(pa.table({"key": list(images), "file": list(images.values())}), tmp_path / "imgs.parquet")
    (tmp_path / "folder").mkdir()
    for one, image in images.items():
        (tmp_path / "folder" / f"{one}.jpg").write_bytes(image)
    (tmp_path / "list.txt").write_text("folder/7.jpg\nfolder/8.jpg\n")
    expected = np.stack([fake.features_of(image) for image in images.values()])
    for row, (ids, *arguments) in enumerate(
        [
            ([7, 8], "imgs.tsv"),
            ([7, 8], "imgs"),
            ([7, 8], "imgs.parquet", "--id-column", "key", "--column", "file"),
            (["folder/7.jpg", "folder/8.jpg"], "folder/*.jpg"),
            (["folder/7.jpg", "folder/8.jpg"], "list.txt"),
        ]
    ):
        extract(triton.url, "images", *arguments, "-o", f"{row}.npy", "--no-normalize", cwd=tmp_path)
        np.testing.assert_array_equal(np.load(tmp_path / f"{row}.npy"), expected)
        found = (tmp_path / f"{row}.ids.jsonl").read_text().splitlines()
        assert [json.loads(one) for one in found] == ids


def test_texts_are_prepared_or_not_as_the_commands_are_told(tmp_path: Path, triton: Any) -> None:
    (tmp_path / "a.txt").write_text("“A”\n", encoding="utf-8")
    for number, (arguments, sent) in enumerate([([], '"a"'), (["--no-preprocess"], "“A”")]):
        triton.forget()
        extract(triton.url, "texts", tmp_path / "a.txt", "-o", tmp_path / f"{number}.npy", *arguments)
        assert triton.requests == [[sent.encode()]]
    for arguments, sent in (([], "“A”"), (["--preprocess"], '"a"')):
        triton.forget()
        assert run_command("cnclip", "features", "texts", "“A”", "--url", triton.url, *arguments).returncode == 0
        assert triton.requests == [[sent.encode()]]


def test_repeated_ids_are_told(tmp_path: Path, triton: Any) -> None:
    lines = [json.dumps({"text_id": row % 3, "text": f"{row}"}) for row in range(7)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    given = ("texts", tmp_path / "a.jsonl", "-o", tmp_path / "out.jsonl")
    said = extract(triton.url, *given)
    assert said.endswith("cnclip: 4 ids came again; search wants each once, which --repeated-ids first gives\n")
    refused = extract(triton.url, *given, "--overwrite", "--repeated-ids", "refuse", status=2)
    assert "the id 0 comes again in the source" in refused
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 7
    said = extract(triton.url, *given, "--overwrite", "--repeated-ids", "first")
    assert said.endswith("cnclip: 4 ids came again; each one's first feature was kept\n")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def test_bad_items_cost_status_1_and_no_neighbours(tmp_path: Path, triton: Any) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, content in {"a.jpg": b"a", "b.jpg": b"BAD:torn", "c.jpg": b"", "d.jpg": b"d"}.items():
        (folder / name).write_bytes(content)
    said = extract(triton.url, "images", folder, "-o", tmp_path / "out.jsonl", status=1)
    assert said.startswith("cnclip: 4 items, 2 failures, ")
    assert said.endswith(f"\ncnclip: what failed, and why: {tmp_path}/out.jsonl.errors.jsonl\n")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == ["a.jpg", "d.jpg"]
    errors = (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in errors] == [
        {"id": "b.jpg", "reason": "torn"},
        {"id": "c.jpg", "reason": "is empty (0 bytes)"},
    ]
    said = extract(triton.url, "images", folder, "-o", tmp_path / "out.jsonl", status=1)
    assert "was finished before" in said
    said = extract(triton.url, "images", folder, "-o", tmp_path / "b.jsonl", "--max-errors", "1", status=4)
    assert "2 items failed, more than the 1 allowed, the last one: c.jpg: is empty" in said
    assert "run the same" not in said
    extract(triton.url, "images", folder, "-o", tmp_path / "b.jsonl", "--max-errors", "2", status=1)
    (folder / "b.jpg").unlink()
    (folder / "a.jpg").unlink()
    (folder / "d.jpg").unlink()
    said = extract(triton.url, "images", folder, "-o", tmp_path / "c.jsonl", status=1)
    assert said.startswith("cnclip: 1 item, 1 failure, ")


def test_a_server_that_stays_away_costs_status_3_and_says_how_to_go_on(
    tmp_path: Path, triton: Any, texts: Path, fake: Any
) -> None:
    def before_infer(attempt: int, items: list[bytes]) -> None:
        if attempt > 2:
            raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "gone")

    triton.before_infer = before_infer
    arguments = ("texts", texts, "-o", tmp_path / "out.jsonl", "--wait-for-server", "0.5")
    started = time.monotonic()
    said = extract(triton.url, *arguments, status=3)
    assert time.monotonic() - started > 0.5
    assert said.endswith("what was done is kept: run the same command again to go on\n")
    triton.forget()
    extract(triton.url, *arguments)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 200


def test_nobody_at_the_address_leaves_nothing_behind(tmp_path: Path, texts: Path) -> None:
    wait = ("--wait-for-server", "0.5")
    said = extract("127.0.0.1:9", "texts", texts, "-o", tmp_path / "out.jsonl", "--model", "vit-b-16", *wait, status=3)
    assert "no Triton server answers at 127.0.0.1:9" in said
    assert "run the same command" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_ctrl_c_keeps_the_work_and_says_so(tmp_path: Path, triton: Any, texts: Path) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.2)
    arguments = ["texts", str(texts), "-o", str(tmp_path / "out.jsonl"), "--batch-size", "1"]
    environment = {**os.environ, "CNCLIP_URL": triton.url}
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, env=environment) as process:
        while len(triton.requests) < 20:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said == "cnclip: interrupted; what was done is kept: run the same command again to go on\n"
    assert json.loads((tmp_path / "out.jsonl.partial" / "progress.json").read_text())["items"] > 0
    triton.forget()
    extract(triton.url, *arguments)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text_id"] for line in lines] == list(range(1, 201))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("texts", "none.txt", "-o", "a.jsonl"), "none.txt: No such file or directory"),
        (
            ("images", ".", "--format", "folder", "-o", "/nowhere/a.jsonl"),
            "/nowhere/a.jsonl.partial: No such file or directory",
        ),
        (("texts", "texts.txt", "-o", "a.csv"), "a.csv ends in none of .jsonl, .parquet and .npy"),
        (("texts", "texts.txt", "-o", "a.jsonl", "--dtype", "float16"), "JSON has no float16"),
        (("texts", "texts.txt", "-o", "a.jsonl", "--column", "x"), "lines has no columns"),
        (("images", ".", "--format", "folder", "-o", "a.npy"), "is inside"),
        (("images", "a.jpg", "b.jpg", "-o", "a.npy"), "unexpected extra argument"),
    ],
)
def test_wrong_usage(tmp_path: Path, triton: Any, texts: Path, arguments: tuple[str, ...], message: str) -> None:
    said = extract(triton.url, *arguments, status=2, cwd=tmp_path)
    assert message in " ".join(said.replace("│", " ").split())
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_progress_on_a_terminal(tmp_path: Path, triton: Any, texts: Path) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.3)
    controller, terminal = pty.openpty()
    arguments = ["texts", str(texts), "-o", str(tmp_path / "out.jsonl"), "--batch-size", "2"]
    environment = {**os.environ, "CNCLIP_URL": triton.url, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*COMMAND, *arguments], stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            chunk = os.read(controller, 65536)
        except OSError:  # the other end is closed
            break
        shown += chunk
    os.close(controller)
    assert process.wait() == 0
    assert "/200" in shown.decode()
    assert "items/s" in shown.decode().split("cnclip: ")[0]
    assert "200 items, 0 failures" in shown.decode()


def test_help_tells_what_an_exit_status_means() -> None:
    shown = run_command("cnclip", "extract", "--help").stdout.decode()
    assert "Exit status: 0 all well; 1 some items failed" in " ".join(shown.split())


def test_several_servers_by_option_and_by_environment(tmp_path: Path, serve: Any, fake: Any, texts: Path) -> None:
    servers = [serve(*fake.both("vit-b-16")) for _ in range(2)]
    for server in servers:
        server.before_infer = lambda attempt, items: time.sleep(0.01)
    urls = [server.url for server in servers]
    extract(",".join(urls), "texts", texts, "-o", tmp_path / "one.jsonl", "--batch-size", 4)
    assert all(len(server.requests) > 5 for server in servers)
    extract("nobody:1", "texts", texts, "-o", tmp_path / "two.jsonl", "--url", urls[0], "--url", urls[1])
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    other = serve(*fake.both("vit-b-16", sha="b" * 64))
    said = extract(f"{urls[0]},{other.url}", "texts", texts, "-o", tmp_path / "three.jsonl", status=3)
    assert f"vit-b-16-text at {other.url} is not the model" in said
