"""The command `cnclip`: what it prints where, its statuses, and how it ends when others do."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client._cli._retrieval import asked_of_features
from cnclip_client._cli._shared import as_typed
from cnclip_client.command_line import reporting

from tests.commands import run_command
from tests.conftest import ASCII, starts_in_ascii

COMMAND = [sys.executable, "-c", "from cnclip_console.start.client import main; main()"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CNCLIP_")}


def cnclip(
    *arguments: str | bytes | Path, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Runs the command, in its own Python where that reads something of the environment as it starts."""
    env = {**ENVIRONMENT, **environment}
    if all(name.startswith("CNCLIP_") for name in environment):
        return run_command("cnclip", *arguments, stdin=stdin, env=env)
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=60, env=env)


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT, **pipes)


def rows(output: bytes, kind: str) -> tuple[list[str], np.ndarray]:
    found = [json.loads(line) for line in output.splitlines()]
    return [row[kind] for row in found], np.array([row["feature"] for row in found], np.float32)


def normalised(fake: Any, *items: bytes) -> np.ndarray:
    features = np.stack([fake.features_of(item) for item in items])
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_texts_as_arguments_and_as_lines(triton: Any, fake: Any, tmp_path: Path) -> None:
    texts = ["皮卡丘", "杰尼\r龟", ""]
    listing = tmp_path / "texts.txt"
    content = "\n".join(texts).encode() + b"\n"
    listing.write_bytes(b"\xef\xbb\xbf" + content)
    ways: list[tuple[list[str], bytes]] = [
        (texts, b""),
        (["--file", str(listing)], b""),
        (["--file", "-"], content),
        ([], content),
        ([], content.replace(b"\n", b"\r\n")),
    ]
    for arguments, stdin in ways:
        done = cnclip("features", "texts", "--url", triton.url, *arguments, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b"")
        names, features = rows(done.stdout, "text")
        assert names == texts
        # Every digit that a float32 has comes through.
        np.testing.assert_array_equal(features, normalised(fake, *(text.encode() for text in texts)))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", '[\n{"text": "一"}\n]', "is JSON"),
        ("a.csv", "一\n", "is a table"),
        ("a.txt", "id,text\n1,x\n", "is a table"),
    ],
)
def test_a_file_that_is_not_an_item_a_line_is_refused(
    triton: Any, tmp_path: Path, name: str, content: str, told: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    done = cnclip("features", "texts", "--url", triton.url, "--file", tmp_path / name)
    assert done.returncode == 2
    assert f"{name}: {told}" in done.stderr.decode()
    assert "or pipe it into --file - if its lines are meant" in done.stderr.decode()
    assert not triton.requests


def test_an_npy_file(triton: Any, fake: Any, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    done = cnclip("features", "texts", "a", "BAD:torn", "b", "--output", str(output), "--url", triton.url)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"cnclip: BAD:torn: torn\n")
    features = np.load(output)
    assert (features.dtype, features.shape) == (np.float32, (3, 16))
    assert np.isnan(features[1]).all()
    np.testing.assert_array_equal(features[[0, 2]], normalised(fake, b"a", b"b"))
    assert list(tmp_path.iterdir()) == [output]
    done = cnclip("features", "texts", "--no-normalize", "-o", str(output), "--url", triton.url, stdin=b"a\n")
    np.testing.assert_array_equal(np.load(output)[0], fake.features_of(b"a"))
    done = cnclip("features", "texts", "-o", str(output), "--url", triton.url)
    assert (done.returncode, np.load(output).shape) == (0, (0, 16))


def test_one_bad_image_costs_no_other(triton: Any, fake: Any, tmp_path: Path) -> None:
    for name, content in {"a.jpg": b"a", "torn.jpg": b"BAD:torn", "empty.jpg": b"", "b.jpg": b"b"}.items():
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in ("a.jpg", "torn.jpg", "none.jpg", "empty.jpg", "b.jpg")]
    done = cnclip("features", "images", *paths, "--url", triton.url)
    assert done.returncode == 1
    names, features = rows(done.stdout, "image")
    assert names == [str(paths[0]), str(paths[4])]
    np.testing.assert_array_equal(features, normalised(fake, b"a", b"b"))
    reasons = ["torn", "No such file or directory", "is empty (0 bytes)"]
    expected = [f"cnclip: {path}: {reason}" for path, reason in zip(paths[1:4], reasons, strict=True)]
    assert done.stderr.decode().splitlines() == expected


def test_names_that_are_no_utf8_name_their_file_still(triton: Any, fake: Any, tmp_path: Path) -> None:
    good, bad = os.fsencode(tmp_path) + b"/\xff\xfe.jpg", os.fsencode(tmp_path) + b"/\xff none.jpg"
    Path(os.fsdecode(good)).write_bytes(b"a")
    for arguments, stdin in ([(good, bad), b""], [("--file", "-"), good + b"\n" + bad + b"\n"]):
        done = cnclip("features", "images", *arguments, "--url", triton.url, stdin=stdin)
        assert done.returncode == 1
        assert good in done.stdout
        assert done.stderr.count(b"\n") == 1
        assert b"\\xff none.jpg: No such file" in done.stderr
    done = cnclip("similarity", "--image", good, "--text", "x", "--url", triton.url)
    assert done.returncode == 0
    assert good in done.stdout


def test_what_a_name_holds_does_not_reach_the_terminal(triton: Any) -> None:
    done = cnclip("features", "images", "\x1b]0;title\x07\n\u2028.jpg", "--url", triton.url)
    assert done.stderr == b"cnclip: \\x1b]0;title\\x07\\n\\u2028.jpg: No such file or directory\n"


def test_similarity_in_its_three_forms(triton: Any, fake: Any, tmp_path: Path) -> None:
    a, b = tmp_path / "a.jpg", tmp_path / "b.jpg"
    a.write_bytes(b"a")
    b.write_bytes(b"b")
    arguments = ["similarity", "--image", a, "--image", b, "--text", "x\ty", "--text", "[red]", "--url", triton.url]
    logits = 100 * normalised(fake, b"a", b"b").astype(np.float64) @ normalised(fake, b"x\ty", b"[red]").T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    done = cnclip(*arguments)
    header, *lines = (line.split("\t") for line in done.stdout.decode().splitlines())
    assert (done.returncode, header) == (0, ["image", "x\\ty", "[red]"])
    assert [line[0] for line in lines] == [str(a), str(b)]
    np.testing.assert_allclose(np.array([line[1:] for line in lines], float), expected, rtol=1e-3, atol=1e-6)
    found = json.loads(cnclip(*arguments, "--json").stdout)
    assert (found["model"], found["images"], found["texts"]) == ("vit-b-16", [str(a), str(b)], ["x\ty", "[red]"])
    np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-3, atol=1e-6)
    status, shown = on_terminal(*map(str, arguments))
    assert status == 0
    assert "[red]" in shown
    assert shown.count("*") == 2
    assert f"{expected[0].max():.1%}" in shown


def test_similarity_with_bad_items(triton: Any, tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"a")
    done = cnclip("similarity", "--image", image, "--image", "none.jpg", "--text", "x", "--url", triton.url)
    assert done.returncode == 1
    assert done.stderr == b"cnclip: none.jpg: No such file or directory\n"
    assert done.stdout.decode().splitlines() == ["image\tx", f"{image}\t1"]
    done = cnclip("similarity", "--image", image, "--text", "x", "--text", "BAD:odd", "--url", triton.url)
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"cnclip: BAD:odd: odd\n")


def test_info(triton: Any, fake: Any) -> None:
    done = cnclip("info", CNCLIP_URL=triton.url)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = {name: value for name, *rest in map(str.split, done.stdout.decode().splitlines()) for value in rest}
    assert (shown["arch"], shown["checkpoint_sha256"]) == ("ViT-B-16", fake.sha)
    found = json.loads(cnclip("info", "--json", "--model", "vit-b-16", CNCLIP_URL=triton.url).stdout)
    assert (found["embedding_size"], found["logit_scale"], found["version"]) == (16, 100.0, "1")


def test_the_model_is_needed_where_there_are_several(serve: Callable[..., Any], fake: Any) -> None:
    several, none = serve(*fake.both("a"), *fake.both("b")), serve()
    done = cnclip("info", "--url", several.url)
    assert done.returncode == 2
    assert b"serves 2 models: a, b; choose one with --model or CNCLIP_MODEL" in done.stderr
    done = cnclip("info", "--url", none.url)
    assert done.returncode == 2
    assert b"serves no Chinese-CLIP model" in done.stderr
    assert cnclip("info", "--url", several.url, CNCLIP_MODEL="b").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["info", "--url", "127.0.0.1:1"], 3, "no Triton server answers at 127.0.0.1:1 (Connection refused); check"),
        (["info", "--model", "none"], 3, "has no model none-"),
        (["info", "--url", "http://host:8000"], 2, "leave out the http://"),
        (["features", "texts", "a", "--file", "b"], 2, "give items or --file, not both"),
        (["features", "texts", "--file", "none.txt"], 2, "none.txt: No such file"),
        (["features", "images"], 2, "name image files"),
        (["features", "texts", "a", "-o", "out.txt"], 2, "write - or the path of an .npy file"),
        (["features", "texts", "a", "-o", "none/out.npy"], 2, "in an existing folder"),
    ],
)
def test_errors_are_one_line(triton: Any, arguments: list[str], status: int, words: str) -> None:
    done = cnclip(*arguments, CNCLIP_URL=triton.url)
    assert (done.returncode, done.stdout) == (status, b"")
    assert words in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    verbose = cnclip(*arguments, "-v", CNCLIP_URL=triton.url)
    assert verbose.returncode == status
    assert (b"Traceback" in verbose.stderr) == (status == 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "--image-feats", "none.jsonl", "--text-feats", "none.jsonl"],
        ["evaluate", "--image-feats", "a.jsonl", "--text-feats", "b.jsonl", "--annotations", "none.jsonl"],
        ["index", "images", "none.jsonl", "-o", "none.index"],
        ["extract", "texts", "none.jsonl", "-o", "none.npy"],
    ],
    ids=lambda words: words[0],
)
def test_a_file_that_is_not_there_is_all_that_is_told(arguments: list[str], triton: Any) -> None:
    done = cnclip(*arguments, CNCLIP_URL=triton.url)
    assert done.returncode == 2
    assert re.fullmatch(
        r"cnclip: (/.*/)?none\.jsonl: No such file or directory; check the path\n", done.stderr.decode()
    )


def test_an_output_that_cannot_be_written(triton: Any, tmp_path: Path) -> None:
    (tmp_path / "out.npy").mkdir()
    done = cnclip("features", "texts", "a", "-o", str(tmp_path / "out.npy"), "--url", triton.url)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]
    with Path("/dev/full").open("wb") as full:
        running = start("features", "texts", "a", "--url", triton.url, stdout=full)
        _, told = running.communicate(timeout=30)
    assert running.returncode == 2
    assert (told.count(b"\n"), b"No space left on device" in told) == (1, True)


def test_features_come_out_as_they_are_made(triton: Any) -> None:
    """Lines are not held back until the input ends: a batch is 32, and a few of them are under way."""
    running = start("features", "texts", "--url", triton.url)
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(b"a\n" * 3200)
    running.stdin.flush()
    assert json.loads(running.stdout.readline())["text"] == "a"
    assert running.poll() is None
    running.communicate(timeout=30)
    assert running.returncode == 0


def test_a_reader_that_goes_away(triton: Any) -> None:
    running = start("features", "texts", "--url", triton.url)
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stderr is not None

    def feed() -> None:
        try:
            while True:
                running.stdin.write(b"a\n" * 1000)  # type: ignore[union-attr]
        except OSError:
            pass

    feeding = threading.Thread(target=feed)
    feeding.start()
    running.stdout.readline()
    running.stdout.close()
    assert running.wait(30) == 141
    assert running.stderr.read() == b""
    feeding.join(10)
    running.stderr.close()
    # What was buffered for a process that is gone cannot be flushed.
    with pytest.raises(OSError, match="pipe"):
        running.stdin.close()


@pytest.mark.parametrize("where", ["waiting for input", "waiting for the server"])
def test_ctrl_c(triton: Any, where: str) -> None:
    gate, asked = threading.Event(), threading.Event()
    triton.before_infer = lambda attempt, items: gate.wait(20) and None
    triton.before_config = asked.set
    running = start("features", "texts", "--url", triton.url)
    assert running.stdin is not None
    try:
        if where == "waiting for the server":
            running.stdin.write(b"a\n" * 64)
            running.stdin.flush()
            while not triton.requests:
                time.sleep(0.01)
        else:
            assert asked.wait(30)
            time.sleep(0.3)
        started = time.monotonic()
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
        assert time.monotonic() - started < 5
    finally:
        gate.set()
    out, told = running.communicate(timeout=10)
    assert (out, told) == (b"", b"")


def on_terminal(*arguments: str, stdin: bytes = b"") -> tuple[int, str]:
    """Runs the command with a terminal for stdout, stderr and stdin; returns its status and what it shows."""
    parent, child = pty.openpty()
    running = subprocess.Popen(
        [*COMMAND, *arguments], stdin=child, stdout=child, stderr=child, env={**ENVIRONMENT, "COLUMNS": "100"}
    )
    os.close(child)
    os.write(parent, stdin)
    shown = io.BytesIO()
    try:
        while data := os.read(parent, 4096):
            shown.write(data)
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(parent)
    return running.wait(30), shown.getvalue().decode(errors="replace")


def test_a_terminal_is_told_that_it_is_read(triton: Any) -> None:
    status, shown = on_terminal("features", "texts", "--url", triton.url, stdin="鸟\n\x04".encode())
    assert status == 0
    assert "reading lines from the terminal; end with Ctrl-D" in shown
    assert '{"text": "鸟", "feature": [' in shown


def test_progress_is_shown_on_a_terminal_alone(triton: Any, tmp_path: Path) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.3)
    output = tmp_path / "out.npy"
    status, shown = on_terminal("features", "texts", "a", "-o", str(output), "--url", triton.url)
    assert (status, output.exists()) == (0, True)
    assert "encoding" in shown
    done = cnclip("features", "texts", "a", "-o", str(output), "--url", triton.url)
    assert (done.stdout, done.stderr) == (b"", b"")


@starts_in_ascii
@pytest.mark.parametrize(
    "locale",
    [pytest.param(ASCII, marks=pytest.mark.slow), {**ASCII, "PYTHONIOENCODING": "ascii"}],
    ids=["ASCII", "ASCII out as well"],
)
def test_any_locale_will_do(triton: Any, fake: Any, tmp_path: Path, locale: dict[str, str]) -> None:
    done = cnclip("classify", "--help", **locale)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Usage" in done.stdout
    (tmp_path / "猫").mkdir()
    (tmp_path / "猫" / "狗.jpg").write_bytes(b"dog")
    (tmp_path / "名单.txt").write_text(f"{tmp_path}/猫/狗.jpg\n{tmp_path}/猫/没有.jpg\n", encoding="utf-8")
    done = cnclip("features", "texts", "--url", triton.url, "猫", **locale)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rows(done.stdout, "text")[0] == ["猫"]
    done = cnclip("features", "images", "--url", triton.url, "--file", tmp_path / "名单.txt", **locale)
    assert done.returncode == 1
    assert rows(done.stdout, "image")[0] == [f"{tmp_path}/猫/狗.jpg"]
    # A folder's ids, and a glob's: the test below.
    done = cnclip(
        "extract", "images", tmp_path / "名单.txt", "-o", tmp_path / "一.jsonl", "--url", triton.url, **locale
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 2)  # the failure, and what became of all
    (line,) = (tmp_path / "一.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["image_id"] == f"{tmp_path}/猫/狗.jpg"


@starts_in_ascii
def test_ids_are_the_same_in_any_locale(tmp_path: Path) -> None:
    """For those who use the package in a process of their own."""
    (tmp_path / "猫.jpg").write_bytes(b"cat")
    (tmp_path / "list").write_bytes(f"{tmp_path}/猫.jpg\n".encode())
    script = """
import json, sys
from cnclip_client.sources import image_source
for source in sys.argv[1:]:
    item, = [one for one in image_source(source).items() if one.id != "list"]
    print(json.dumps(item.id), open(item.value, "rb").read().decode())
"""
    sources = [str(tmp_path), str(tmp_path / "list"), f"{tmp_path}/*.jpg"]
    environment = {**ENVIRONMENT, **ASCII}
    done = subprocess.run([sys.executable, "-c", script, *sources], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    whole = json.dumps(f"{tmp_path}/猫.jpg")
    assert done.stdout.splitlines() == [f"{json.dumps('猫.jpg')} cat", f"{whole} cat", f"{whole} cat"]


def test_texts_typed_in_another_charset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.nl_langinfo", lambda item: "GBK")
    typed = os.fsdecode("皮卡丘".encode("gbk"))
    assert as_typed([typed, "杰尼龟", "a"]) == ["皮卡丘", "杰尼龟", "a"]
    monkeypatch.setattr("locale.nl_langinfo", lambda item: "ANSI_X3.4-1968")
    assert as_typed([typed]) == [typed]


def test_outputs_that_are_no_files(triton: Any, tmp_path: Path) -> None:
    for kind in ("image", "text"):
        (tmp_path / f"{kind}.jsonl").write_text(json.dumps({f"{kind}_id": 1, "feature": [1.0]}))
    search = ["search", "--image-feats", str(tmp_path / "image.jsonl"), "--text-feats", str(tmp_path / "text.jsonl")]

    def piped(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*COMMAND, *arguments], capture_output=True, env=ENVIRONMENT)

    plain = cnclip(*search)
    assert json.loads(plain.stdout) == {"text_id": 1, "image_ids": [1]}
    assert piped(*search, "-o", "/dev/stdout").stdout == plain.stdout
    page = piped(*search, "-o", tmp_path / "out.jsonl", "--html", "/dev/stdout")
    assert page.stdout.startswith(b"<!doctype html>")
    (tmp_path / "link.npy").symlink_to("/dev/stdout")
    done = piped("features", "texts", "猫", "狗", "-o", tmp_path / "link.npy", "--url", triton.url)
    assert np.load(io.BytesIO(done.stdout)).shape == (2, 16)
    (tmp_path / "texts.txt").write_text("猫\n", encoding="utf-8")
    done = cnclip("extract", "texts", tmp_path / "texts.txt", "-o", tmp_path / "link.npy", "--url", triton.url)
    assert done.returncode == 2
    assert b"is an open file of this process, and a job's output a file" in done.stderr


def test_help() -> None:
    for arguments in (["--help"], ["features", "--help"], ["features", "images", "--help"], ["similarity", "--help"]):
        done = cnclip(*arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"Usage: " in done.stdout
    assert cnclip("nonsense").returncode == 2


@pytest.mark.parametrize("verbose", [False, True])
def test_what_is_logged_is_a_line_of_the_command_and_leaves_a_bar_whole(
    verbose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar takes stderr's place to be drawn below what others write, so a log has to look for it each time."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    with reporting(verbose), contextlib.redirect_stderr(io.StringIO()) as under_the_bar:
        log = logging.getLogger("cnclip_client.some")
        log.info("%s is there", "a:1")
        log.warning("%s is gone", "a\x1b[2J\nb.tar")
    some = "cnclip_client.some" if verbose else "cnclip"
    quiet = f"{some}: a\\x1b[2J\\nb.tar is gone\n"
    assert under_the_bar.getvalue() == (f"{some}: a:1 is there\n{quiet}" if verbose else quiet)


def test_a_search_tells_how_far_it_is(tmp_path: Path) -> None:
    for name, rows in {"images": 4, "texts": 300}.items():
        np.save(tmp_path / f"{name}.npy", np.eye(rows, 4, dtype=np.float32))
        (tmp_path / f"{name}.ids.jsonl").write_text("".join(f"{row}\n" for row in range(rows)))
    told: list[tuple[str, int, int]] = []
    sides = tmp_path / "images.npy", tmp_path / "texts.npy"
    with asked_of_features("text-to-image", *sides, False, 1024, lambda *now: told.append(now)) as asked:
        assert len(list(asked.hits(asked.queries, k=1))) == 300
    assert told == [("reading", 0, 0), ("searching", 0, 0), ("searching", 256, 0)]
