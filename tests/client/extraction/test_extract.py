"""A job comes to the same files, byte for byte, whatever happens to it on its way."""

from __future__ import annotations

import ast
import contextlib
import errno
import hashlib
import importlib.util
import json
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cnclip_client import (
    BadFile,
    Client,
    CnclipError,
    JobRefused,
    Limits,
    ModelChanged,
    Retry,
    ServerUnreachable,
    TooManyFailures,
    preprocess_text,
)
from cnclip_client._flow.prefetch import Prefetch
from cnclip_client.classification import Classifier
from cnclip_client.extraction import ExtractOptions, Summary, encode_items, extract, extract_parts
from cnclip_client.extraction._repeats import Repeats
from cnclip_client.extraction._work_folder import GrowingFiles, Progress, locked
from cnclip_client.features import origin_of
from cnclip_client.retrieval import read_features
from cnclip_client.sources import Item, image_source, text_source

from tests.commands import run_script

FORMATS = ("jsonl", "parquet", "npy")
ALWAYS = ExtractOptions(checkpoint_s=0.0, batch_size=4)


@dataclass
class Items:
    """A source of one's own."""

    items_: list[Item]
    kind: Any = "text"

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {"format": "items", "size_bytes": len(self.items_)}

    def items(self, ids_only: int = 0) -> Iterator[Item]:
        return iter(self.items_)

    def total(self) -> int:
        return len(self.items_)


def texts_file(folder: Path, count: int = 300) -> Path:
    """Texts, every 37th of which is no Unicode, and every 41st line of which is no JSON."""
    lines = []
    for row in range(count):
        text = "\ud800" if row % 37 == 5 else f"第{row}句"
        line = json.dumps({"text_id": row if row % 2 else f"第{row}", "text": text}, ensure_ascii=row % 37 == 5)
        lines.append(line[:10] if row % 41 == 7 else line)
    path = folder / "texts.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def images_folder(folder: Path, count: int = 200) -> Path:
    for row in range(count):
        path = folder / "images" / f"{row % 7}" / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if row % 50 == 3 else (b"BAD:torn" if row % 50 == 4 else b"image %d" % row))
    return folder / "images"


def files_of(folder: Path) -> dict[str, Any]:
    """What is in a folder: each file's bytes, and a job file's contents but for its seconds."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        if path.name.endswith(".job.json"):
            found[path.name] = {**json.loads(path.read_text()), "seconds": None}
        else:
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_features_failures_and_the_job_are_written(tmp_path: Path, client: Client, format: str, fake: Any) -> None:
    output = tmp_path / f"out.{format}"
    reported: list[tuple[int, int]] = []
    source = text_source(texts_file(tmp_path))
    summary = extract(client, source, output, report=lambda *done: reported.append(done))
    bad = [row for row in range(300) if row % 37 == 5 or row % 41 == 7]
    assert summary == Summary(items=300, failures=len(bad), seconds=summary.seconds)
    assert reported[0] == (0, 0)
    assert reported[-1] == (300, len(bad))
    assert reported == sorted(reported)
    blocks = list(read_features(output, "text"))
    ids = [one for block in blocks for one in block.ids.tolist()]
    rows = [row for row in range(300) if row not in bad]
    expected: list[Any] = [row if row % 2 else f"第{row}" for row in rows]
    assert ids == (list(map(str, expected)) if format == "parquet" else expected)
    features = np.stack([fake.features_of(f"第{row}句".encode()) for row in rows])
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), features)
    errors = [json.loads(line) for line in (tmp_path / f"out.{format}.errors.jsonl").read_text().splitlines()]
    assert len(errors) == len(bad)
    assert errors[0] == {"id": 5, "reason": "is not Unicode text: a lone surrogate at position 0"}
    assert errors[1]["id"] == "line 8"
    assert "is no JSON object" in errors[1]["reason"]
    job = json.loads((tmp_path / f"out.{format}.job.json").read_text())
    assert job["job"]["checkpoint_sha256"] == fake.sha
    assert (job["items"], job["failures"]) == (300, len(bad))
    assert not (tmp_path / f"out.{format}.partial").exists()


def cn_clips_own(function: str, module: str) -> Callable[..., Any]:
    """A function out of cn_clip's source, which alone needs nothing: its module imports torch, for seconds."""
    package = importlib.util.find_spec("cn_clip")
    assert package is not None
    assert package.origin is not None
    tree = ast.parse((Path(package.origin).parent / module).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    found: dict[str, Any] = {}
    exec(compile(tree, module, "exec"), found)  # noqa: S102
    return found[function]  # type: ignore[no-any-return]


def test_texts_are_prepared_as_cn_clips_extraction_does(tmp_path: Path, client: Client, triton: Any) -> None:
    prepared = cn_clips_own("_preprocess_text", "eval/data.py")
    texts = ["“引号”与 ABC", "İstanbul ǅ ẞ", "‘单’ 「」"]
    source = Items([Item(row, text) for row, text in enumerate(texts)])
    extract(client, source, tmp_path / "out.npy")
    assert triton.requests == [[prepared(text).encode() for text in texts]]


def test_every_way_in_prepares_texts_or_not_as_it_is_told(tmp_path: Path, client: Client, triton: Any) -> None:
    texts = ["“引号”与 ABC", "猫"]
    prepared = [preprocess_text(text) for text in texts]
    assert prepared == ['"引号"与 abc', "猫"]
    items = [Item(row, text) for row, text in enumerate(texts)]
    for switch in (False, True, None):
        chosen: dict[str, Any] = {} if switch is None else {"preprocess": switch}
        ways = {
            "encode_texts": lambda chosen=chosen: client.encode_texts(texts, **chosen),
            "iter_texts": lambda chosen=chosen: list(client.iter_texts(texts, **chosen)),
            "encode_items": lambda chosen=chosen: list(encode_items(client, "text", items, **chosen)),
            "extract": lambda switch=switch, chosen=chosen: extract(
                client, Items(items), tmp_path / f"{switch}.npy", ExtractOptions(**chosen)
            ),
            "classify": lambda chosen=chosen: Classifier.of(client, texts, templates=["{}"], **chosen),
        }
        for name, way in ways.items():
            triton.forget()
            way()  # type: ignore[no-untyped-call]
            expected = switch if switch is not None else name in ("encode_items", "extract", "classify")
            sent = [item.decode() for request in triton.requests for item in request]
            assert sorted(sent) == sorted(prepared if expected else texts), (name, switch)
    with pytest.raises(JobRefused, match="preprocess None, now False"):
        extract(client, Items(items), tmp_path / "True.npy", ExtractOptions(preprocess=False))
    with pytest.raises(TypeError, match="put it in a list"):
        client.encode_texts("猫", preprocess=True)
    assert client.encode_texts([None], preprocess=True, errors="collect").failures  # type: ignore[list-item]


def test_a_finished_job_does_nothing(tmp_path: Path, client: Client, triton: Any) -> None:
    output = tmp_path / "out.jsonl"
    path = texts_file(tmp_path)
    first = extract(client, text_source(path), output)
    before = files_of(tmp_path)
    triton.forget()
    again = extract(client, text_source(path), output)
    assert again == Summary(items=300, failures=first.failures, seconds=first.seconds, already_finished=True)
    assert not triton.requests
    assert files_of(tmp_path) == before


def test_a_finished_jobs_text_that_was_changed_without_a_change_in_size_is_told(tmp_path: Path, client: Client) -> None:
    path, output = tmp_path / "texts.txt", tmp_path / "out.npy"
    path.write_text("猫\n狗\n", encoding="utf-8")
    extract(client, text_source(path), output)
    os.utime(path, (1, 1))
    assert extract(client, text_source(path), output).already_finished
    path.write_text("猫\n马\n", encoding="utf-8")
    with pytest.raises(JobRefused, match="the source has changed: its first 2 items are not those that were done"):
        extract(client, text_source(path), output)
    assert not extract(client, text_source(path), output, ExtractOptions(overwrite=True)).already_finished
    assert extract(client, text_source(path), output).already_finished


def test_a_finished_job_whose_output_was_removed_is_done_anew(tmp_path: Path, client: Client) -> None:
    path = texts_file(tmp_path)
    extract(client, text_source(path), tmp_path / "out.npy")
    before = files_of(tmp_path)
    (tmp_path / "out.npy").unlink()
    assert not extract(client, text_source(path), tmp_path / "out.npy").already_finished
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_source_gives_an_empty_output(tmp_path: Path, client: Client, format: str, fake: Any) -> None:
    (tmp_path / "none.txt").touch()
    output = tmp_path / f"out.{format}"
    assert extract(client, text_source(tmp_path / "none.txt"), output).items == 0
    assert list(read_features(output, "text")) == []
    if format == "npy":
        assert np.load(output).shape == (0, fake.dimension)
    assert extract(client, text_source(tmp_path / "none.txt"), output).already_finished


def test_unnormalised_and_half_precision_features(tmp_path: Path, client: Client, fake: Any) -> None:
    options = ExtractOptions(normalize=False, dtype="float16")
    extract(client, Items([Item("一", "猫")]), tmp_path / "out.npy", options)
    found = np.load(tmp_path / "out.npy")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found[0], fake.features_of("猫".encode()).astype(np.float16))


@pytest.mark.parametrize("other", ["reduced", "gpu"])
def test_features_of_exact_and_other_decoding_do_not_mix(tmp_path: Path, serve: Any, fake: Any, other: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.jpg\n")
    source = image_source(tmp_path / "list.txt")
    for decoding in ("exact", other):
        server = serve(fake.tower("vit-b-16", "image", parameters={"decoding": decoding}))
        with Client(server.url, model="vit-b-16") as client:
            if decoding == "exact":
                extract(client, source, tmp_path / "out.npy")
            else:
                with pytest.raises(JobRefused, match=rf"decoding None, now '{other}'"):
                    extract(client, source, tmp_path / "out.npy")


def test_a_feature_that_is_no_number_fails_alone(
    tmp_path: Path, triton: Any, monkeypatch: pytest.MonkeyPatch, fake: Any
) -> None:
    whole = sys.modules[type(triton).__module__]
    real = whole.features_of
    worth = {"坏".encode(): np.nan, "大".encode(): 1e6}

    def spoiled(item: bytes, dimension: int) -> Any:
        return real(item, dimension) * worth.get(item, 1.0)

    monkeypatch.setattr(whole, "features_of", spoiled)
    source = Items([Item(row, text) for row, text in enumerate("好坏大")])
    with Client(triton.url, model="vit-b-16") as client:
        options = ExtractOptions(normalize=False, dtype="float16")
        assert extract(client, source, tmp_path / "out.npy", options).failures == 2
    assert (tmp_path / "out.ids.jsonl").read_text() == "0\n"
    reasons = (tmp_path / "out.npy.errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in reasons] == [
        "its feature holds NaN or infinity",
        "its feature does not fit into float16",
    ]


# --- Jobs that are killed. A process that has everything imported forks one child for each life: a life costs
# milliseconds, and gRPC, which does not survive a fork, is first used in the child.

_LIVES = """
import json, os, random, signal, sys, time
from pathlib import Path
from cnclip_client import Client
from cnclip_client.extraction import ExtractOptions, extract
from cnclip_client.sources import image_source, text_source

url, kind, source, seed, wanted, *outputs = json.loads(sys.argv[1])
rng = random.Random(seed)

def live(output):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        opened = image_source(source) if kind == "image" else text_source(source)
        with Client(url, model="vit-b-16") as client:
            extract(client, opened, output, ExtractOptions(checkpoint_s=0.0, batch_size=4))
        status = 0
    finally:
        os._exit(status)

kills = finished = 0
started = time.monotonic()
assert os.waitpid(live(outputs[0]), 0)[1] == 0
whole_s = time.monotonic() - started
lives = []
while kills < wanted:
    output = f"{outputs[1]}/{finished}/{Path(outputs[0]).name}"
    Path(output).parent.mkdir(exist_ok=True)
    pid = live(output)
    # The end, where files are put in place, is as likely as all the rest.
    time.sleep(rng.choice([rng.uniform(0, whole_s), rng.uniform(0.5, 1.0) * whole_s]))
    os.kill(pid, signal.SIGKILL)
    code = os.waitpid(pid, 0)[1]
    assert code in (0, signal.SIGKILL), code
    kills += code != 0
    if code == 0:
        finished += 1
pid = live(output)
assert os.waitpid(pid, 0)[1] == 0
print(json.dumps([kills, finished]))
"""


def live_and_die(tmp_path: Path, url: str, kind: str, source: Path, format: str, seed: int, kills: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    given = [url, kind, source, seed, kills, tmp_path / "whole" / f"out.{format}", tmp_path / "killed"]
    done = run_script(_LIVES, json.dumps(given, default=str))
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)[0] == kills
    expected = files_of(tmp_path / "whole")
    assert {name for name in expected if name.endswith((".errors.jsonl", ".job.json", format))} >= {
        f"out.{format}",
        f"out.{format}.errors.jsonl",
        f"out.{format}.job.json",
    }
    for folder in (tmp_path / "killed").iterdir():
        assert files_of(folder) == expected


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["image", "text"])
def test_killed_at_random_it_comes_to_the_same_bytes(tmp_path: Path, triton: Any, kind: str, format: str) -> None:
    source = images_folder(tmp_path, 80) if kind == "image" else texts_file(tmp_path, 100)
    live_and_die(tmp_path, triton.url, kind, source, format, seed=0, kills=5)


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_killed_a_hundred_times(tmp_path: Path, triton: Any, format: str, seed: int) -> None:
    live_and_die(tmp_path, triton.url, "text", texts_file(tmp_path), format, seed=seed, kills=100)


DYING = """
import json, os, shutil, signal, sys
from pathlib import Path
from cnclip_client import Client
from cnclip_client.extraction import ExtractOptions, Sharding, extract, extract_parts
from cnclip_client.sources import text_source

def live(output, last):  # of its steps on the disk, so many are done
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    steps = 0
    def counted(step):
        def wrapper(*given, **options):
            nonlocal steps
            steps += 1
            if steps > last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*given, **options)
        return wrapper
    for owner, step in [(os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir")]:
        setattr(owner, step, counted(getattr(owner, step)))
    status = 1
    try:
        with Client(url, model="vit-b-16") as client:
            work(client, output)
        status = 0
    finally:
        os._exit(status)
"""

_STEP_BY_STEP = f"""{DYING}
url, source, folder, name, overwrite = json.loads(sys.argv[1])

def work(client, output):
    extract(client, text_source(source), output, ExtractOptions(checkpoint_s=1000.0, overwrite=overwrite))

finished = Path(folder) / "finished"
finished.mkdir()
if overwrite:
    assert live(finished / name, 10**9) == 0
step = 0
while True:
    output = Path(folder) / str(step) / name
    shutil.copytree(finished, output.parent)
    before = set(output.parent.iterdir())
    code = live(output, step)
    assert set(output.parent.iterdir()) >= before, step
    if code == 0:
        break
    assert code == signal.SIGKILL, code
    assert live(output, 10**9) == 0
    step += 1
print(step)
"""


# The others are killed at random above.
@pytest.mark.parametrize(
    ("format", "overwrite"),
    [
        ("parquet", False),
        ("npy", True),
        *(pytest.param(one, False, marks=pytest.mark.slow) for one in ("jsonl", "npy")),
    ],
)
def test_killed_before_each_step_on_the_disk(tmp_path: Path, triton: Any, format: str, overwrite: bool) -> None:
    """Assembling and putting in place are short; here every rename, removal and fsync is somebody's last.

    A finished job that is overwritten has all its files at any moment.
    """
    folder = tmp_path / "killed"
    folder.mkdir()
    given = [triton.url, texts_file(tmp_path, 50), folder, f"out.{format}", overwrite]
    done = run_script(_STEP_BY_STEP, json.dumps(given, default=str))
    assert done.returncode == 0, done.stderr.decode()
    steps = int(done.stdout)
    assert steps > 15
    *killed, whole = [files_of(folder / str(step)) for step in range(steps + 1)]
    assert all(one == whole for one in killed)


# --- What else may happen.


def test_a_server_that_restarts_is_waited_for(tmp_path: Path, client: Client, triton: Any) -> None:
    path = texts_file(tmp_path)
    extract(client, text_source(path), tmp_path / "whole.jsonl", ALWAYS)
    triton.forget()

    def stop_and_start() -> None:
        triton.stop()
        time.sleep(0.3)
        triton.before_infer = lambda attempt, items: None
        triton.start()

    restarts: list[threading.Thread] = []

    def before_infer(attempt: int, items: list[bytes]) -> None:
        if attempt == 20:
            restarts.append(threading.Thread(target=stop_and_start))
            restarts[0].start()

    triton.before_infer = before_infer
    extract(client, text_source(path), tmp_path / "out.jsonl", ALWAYS)
    restarts[0].join()
    for ending in ("", ".errors.jsonl"):
        assert (tmp_path / f"out.jsonl{ending}").read_bytes() == (tmp_path / f"whole.jsonl{ending}").read_bytes()


def stopping_at(triton: Any, request: int, fake: Any) -> None:
    def before_infer(attempt: int, items: list[bytes]) -> None:
        if attempt >= request:
            raise fake.Fault(grpc.StatusCode.UNAVAILABLE, "gone")

    triton.before_infer = before_infer


def test_a_server_that_stays_away_leaves_work_to_go_on_with(tmp_path: Path, triton: Any, fake: Any) -> None:
    path = texts_file(tmp_path)
    with Client(triton.url, model="vit-b-16", retry=Retry(attempts=2, first_delay_s=0.01)) as client:
        extract(client, text_source(path), tmp_path / "whole.jsonl", ALWAYS)
        triton.forget()
        stopping_at(triton, 40, fake)
        with pytest.raises(ServerUnreachable):
            extract(client, text_source(path), tmp_path / "out.jsonl", ALWAYS)
        done = json.loads((tmp_path / "out.jsonl.partial" / "progress.json").read_text())["items"]
        assert done > 100
        triton.forget()
        extract(client, text_source(path), tmp_path / "out.jsonl", ALWAYS)
    sent = {item.decode() for request in triton.requests for item in request}
    assert not sent & {f"第{row}句" for row in range(done)}
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_checkpoint_in_its_place_leaves_nothing_in_the_work(tmp_path: Path, triton: Any) -> None:
    path = texts_file(tmp_path)

    def swap(attempt: int, items: list[bytes]) -> None:
        if attempt == 40:
            for model in triton.models.values():
                model.parameters["checkpoint_sha256"] = "b" * 64

    triton.before_infer = swap
    with Client(triton.url, model="vit-b-16") as client:
        with pytest.raises(ModelChanged):
            extract(client, text_source(path), tmp_path / "out.jsonl", ALWAYS)
    # FakeTriton's features do not depend on the checkpoint; what counts is what was sent before the swap.
    done = json.loads((tmp_path / "out.jsonl.partial" / "progress.json").read_text())["items"]
    assert 0 < done <= 41 * 4
    with Client(triton.url, model="vit-b-16") as client:
        with pytest.raises(JobRefused, match="checkpoint_sha256 'aaa.*now 'bbb"):
            extract(client, text_source(path), tmp_path / "out.jsonl", ALWAYS)


def interrupted(client: Client, triton: Any, fake: Any, path: Path, output: Path, options: ExtractOptions) -> None:
    triton.forget()
    attempts: list[int] = []

    def before_infer(attempt: int, items: list[bytes]) -> None:
        attempts.append(attempt)
        if len(attempts) > 30:
            raise fake.Fault(grpc.StatusCode.INTERNAL, "broken")

    triton.before_infer = before_infer
    with pytest.raises(CnclipError, match="broken"):
        extract(client, text_source(path), output, options)
    triton.forget()


def test_the_work_of_other_options_or_another_source_is_refused(
    tmp_path: Path, client: Client, triton: Any, fake: Any
) -> None:
    path, output = texts_file(tmp_path), tmp_path / "out.npy"
    interrupted(client, triton, fake, path, output, ALWAYS)
    with pytest.raises(JobRefused, match="normalize True, now False"):
        extract(client, text_source(path), output, ExtractOptions(normalize=False))
    with pytest.raises(JobRefused, match="dtype 'float32', now 'float16'"):
        extract(client, text_source(path), output, ExtractOptions(dtype="float16"))
    with pytest.raises(JobRefused, match="source format 'jsonl', now 'lines'"):
        extract(client, text_source(path, format="lines"), output, ALWAYS)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("第1句", "第一句"), encoding="utf-8")
    with pytest.raises(JobRefused, match=r"source size_bytes"):
        extract(client, text_source(path), output, ALWAYS)
    path.write_text(text.replace("第1句", "另1句"), encoding="utf-8")
    with pytest.raises(JobRefused, match="the source has changed: its first"):
        extract(client, text_source(path), output, ALWAYS)
    path.write_text(text, encoding="utf-8")
    assert extract(client, text_source(path), output, ALWAYS).items == 300


@pytest.mark.parametrize("count", [60, 300])
def test_without_its_empty_errors_file_a_job_is_still_finished(
    tmp_path: Path, client: Client, triton: Any, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    failing = count == 300
    source = text_source(texts_file(tmp_path)) if failing else Items([Item(row, f"第{row}句") for row in range(count)])
    first = extract(client, source, tmp_path / "out.npy")
    assert bool(first.failures) == failing
    (tmp_path / "out.npy.errors.jsonl").unlink()
    before = files_of(tmp_path)
    triton.forget()
    assert extract(client, source, tmp_path / "out.npy").already_finished
    assert not triton.requests
    assert files_of(tmp_path) == before
    assert ("out.npy.errors.jsonl is gone" in caplog.text) == failing


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_finished_stays_until_what_takes_its_place_is_whole(
    tmp_path: Path, client: Client, triton: Any, fake: Any, overwrite: bool
) -> None:
    path, output = texts_file(tmp_path), tmp_path / "out.npy"
    extract(client, text_source(path), output)
    whole = files_of(tmp_path)
    if not overwrite:
        output.unlink()
    before = files_of(tmp_path)
    options = ExtractOptions(checkpoint_s=0.0, batch_size=4, overwrite=overwrite)
    interrupted(client, triton, fake, path, output, options)
    kept = {name: content for name, content in files_of(tmp_path).items() if "partial" not in name}
    assert kept == before
    done = json.loads((tmp_path / "out.npy.partial" / "progress.json").read_text())["items"]
    assert done > 0
    # The same command goes on.
    extract(client, text_source(path), output, options)
    sent = {item.decode() for request in triton.requests for item in request}
    assert sent
    assert not sent & {f"第{row}句" for row in range(done)}
    assert files_of(tmp_path) == whole


def test_the_work_of_an_overwriting_job_is_not_taken_for_the_finished_one(
    tmp_path: Path, client: Client, triton: Any, fake: Any
) -> None:
    path, output = texts_file(tmp_path), tmp_path / "out.npy"
    extract(client, text_source(path), output)
    halves = ExtractOptions(checkpoint_s=0.0, batch_size=4, overwrite=True, dtype="float16")
    interrupted(client, triton, fake, path, output, halves)
    with pytest.raises(JobRefused, match="dtype 'float16', now 'float32'"):
        extract(client, text_source(path), output)
    assert np.load(output).dtype == np.float32
    assert extract(client, text_source(path), output, halves).items == 300
    assert np.load(output).dtype == np.float16


def test_features_of_other_items_do_not_take_a_finished_jobs_place_unasked(tmp_path: Path, client: Client) -> None:
    folder = images_folder(tmp_path, 20)
    extract(client, image_source(folder), tmp_path / "out.npy")
    ids = (tmp_path / "out.ids.jsonl").read_bytes()
    (tmp_path / "out.npy").rename(tmp_path / "moved.npy")
    (folder / "000.jpg").write_bytes(b"new")
    for _ in range(2):
        with pytest.raises(JobRefused, match="the source has changed since this was finished; what was done now is"):
            extract(client, image_source(folder), tmp_path / "out.npy")
        assert (tmp_path / "out.ids.jsonl").read_bytes() == ids
    assert extract(client, image_source(folder), tmp_path / "out.npy", ExtractOptions(overwrite=True)).items == 21
    assert len(np.load(tmp_path / "out.npy")) == len((tmp_path / "out.ids.jsonl").read_text().splitlines())


@pytest.mark.parametrize("name", ["progress.json", "job.json", "features", "ids"])
def test_work_that_is_damaged_is_told_and_overwritten(
    tmp_path: Path, client: Client, triton: Any, fake: Any, name: str
) -> None:
    path, output = texts_file(tmp_path), tmp_path / "out.npy"
    interrupted(client, triton, fake, path, output, ALWAYS)
    damaged = tmp_path / "out.npy.partial" / name
    whole = damaged.read_bytes()
    bad = [whole[: len(whole) * part // 8] for part in range(8)]
    if name == "progress.json":
        progress = json.loads(whole)
        bad += [
            json.dumps({**progress, field: value}).encode()
            for field, value in [("items", "many"), ("items", -1), ("sizes", []), ("sizes", {"ids": "1"}), ("new", 1)]
        ]
        bad += [b"[" * 100_000, b"{}", b"\xff"]
    for content in bad:
        damaged.write_bytes(content)
        if content == b"{}":
            continue  # as if nothing were done
        with pytest.raises((BadFile, JobRefused), match=r"out\.npy.*--overwrite"):
            extract(client, text_source(path), output, ALWAYS)
    anew = ExtractOptions(checkpoint_s=0.0, batch_size=4, overwrite=True)
    assert extract(client, text_source(path), output, anew).items == 300
    extract(client, text_source(path), tmp_path / "whole.npy")
    assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_finished_jobs_file_that_is_damaged_is_told(tmp_path: Path, client: Client) -> None:
    output = tmp_path / "out.npy"
    extract(client, Items([Item(1, "猫")]), output)
    for content in (b"", b"{", b"{}", b'{"items": "1"}', b"[]"):
        (tmp_path / "out.npy.job.json").write_bytes(content)
        with pytest.raises(BadFile, match=r"out\.npy\.job\.json: .*start anew with --overwrite"):
            extract(client, Items([Item(1, "猫")]), output)
    assert extract(client, Items([Item(1, "猫")]), output, ExtractOptions(overwrite=True)).items == 1
    assert extract(client, Items([Item(1, "猫")]), output).already_finished


def test_overwrite_starts_anew(tmp_path: Path, client: Client, triton: Any, fake: Any) -> None:
    path, output = texts_file(tmp_path), tmp_path / "out.npy"
    interrupted(client, triton, fake, path, output, ALWAYS)
    anew = ExtractOptions(overwrite=True, dtype="float16")
    extract(client, text_source(path), output, anew)
    assert np.load(output).dtype == np.float16
    with pytest.raises(JobRefused, match="dtype"):
        extract(client, text_source(path), output)
    extract(client, text_source(path), output, ExtractOptions(overwrite=True))
    assert np.load(output).dtype == np.float32
    assert len({json.dumps(one) for one in (tmp_path / "out.ids.jsonl").read_text().splitlines()}) == len(
        np.load(output)
    )


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.errors.jsonl"])
def test_a_file_of_somebody_elses_is_not_replaced(tmp_path: Path, client: Client, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(JobRefused, match=f"{name} is there and no job of this command's"):
        extract(client, Items([Item(1, "猫")]), tmp_path / "out.jsonl")
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_new_images_in_a_finished_jobs_folder_are_told(tmp_path: Path, client: Client) -> None:
    folder = images_folder(tmp_path, 20)
    extract(client, image_source(folder), tmp_path / "out.npy")
    (folder / "zzz.jpg").write_bytes(b"new")
    with pytest.raises(JobRefused, match="more than the 20 items"):
        extract(client, image_source(folder), tmp_path / "out.npy")
    (folder / "000.jpg").write_bytes(b"new")
    with pytest.raises(JobRefused, match="has changed"):
        extract(client, image_source(folder), tmp_path / "out.npy")


def test_an_output_inside_its_source_is_refused(tmp_path: Path, client: Client) -> None:
    folder = images_folder(tmp_path, 3)
    with pytest.raises(ValueError, match="is inside"):
        extract(client, image_source(folder), folder / "out.npy")


@pytest.mark.parametrize(
    ("output", "change"),
    [
        *(("out.npy", change) for change in ("longer", "shorter", "another", "gone", "touched")),
        *(("parts/", change) for change in ("longer", "shorter", "another", "touched")),
    ],
)
def test_a_source_that_changes_while_it_is_read_is_told_of(
    tmp_path: Path, client: Client, triton: Any, caplog: pytest.LogCaptureFixture, output: str, change: str
) -> None:
    """What is written is what was read. If those are the source's items to the end, the job is of it as it is now."""
    file = tmp_path / "texts.txt"
    lines = [f"第{row}句，不长也不短" for row in range(2000)]
    file.write_text("\n".join(lines), encoding="utf-8")

    def alter(attempt: int, items: Any) -> None:
        triton.before_infer = lambda attempt, items: None
        if change == "longer":
            with file.open("a", encoding="utf-8") as opened:
                opened.write("\n又一句\n")
        elif change == "shorter":
            os.truncate(file, len("\n".join(lines[:1000]).encode()) + 1)
        elif change == "another":
            (tmp_path / "new.txt").write_text("别的\n")
            (tmp_path / "new.txt").rename(file)
        elif change == "gone":
            file.unlink()
        else:
            os.utime(file, ns=(1, 1))

    triton.before_infer = alter
    run = partial(extract_parts if output.endswith("/") else extract, client, output=f"{tmp_path}/{output}")
    with caplog.at_level(logging.WARNING):
        done = run(source=text_source(file))
    assert done.items == 2000 + (change == "longer")  # what was read ahead of a shorter one was all of it
    told = "the source changed while it was read, and what was read is what is written"
    same = change == "touched" or (change == "longer" and not output.endswith("/"))
    assert (told in caplog.text) == (not same or output.endswith("/"))
    if same:
        assert run(source=text_source(file)).already_finished
    elif change != "gone":
        with pytest.raises(JobRefused, match="source"):
            run(source=text_source(file))


@pytest.mark.parametrize(("read", "output"), [("a.jsonl", "a.jsonl"), ("a.ids.jsonl", "a.npy"), ("a.jsonl", "b.jsonl")])
def test_an_output_that_is_its_source_is_refused_whatever_may_be_overwritten(
    tmp_path: Path, client: Client, read: str, output: str
) -> None:
    lines = "".join(json.dumps({"text_id": row, "text": f"第{row}"}) + "\n" for row in range(3))
    (tmp_path / read).write_text(lines)
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    with pytest.raises(ValueError, match=r"is what is read, and would be replaced"):
        extract(client, text_source(tmp_path / read), tmp_path / output, ExtractOptions(overwrite=True))
    assert (tmp_path / read).read_text() == lines


def test_parquet_beside_what_is_read_of_its_folder_is_refused(tmp_path: Path, client: Client) -> None:
    pq.write_table(pa.table({"text_id": [1], "text": ["一"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="is inside"):
        extract(client, text_source(tmp_path), tmp_path / "out.parquet")
    extract(client, text_source(tmp_path), tmp_path / "out.npy")


def test_a_job_runs_once_at_a_time(tmp_path: Path, client: Client, triton: Any) -> None:
    output = tmp_path / "out.jsonl"
    arrived, go = threading.Event(), threading.Event()

    def before_infer(attempt: int, items: list[bytes]) -> None:
        arrived.set()
        go.wait(20)

    triton.before_infer = before_infer
    source = Items([Item(1, "猫")])
    first = threading.Thread(target=extract, args=(client, source, output))
    first.start()
    assert arrived.wait(20)
    with pytest.raises(JobRefused, match="another process is working on it"):
        extract(client, source, output, ExtractOptions(overwrite=True))
    go.set()
    first.join()
    assert extract(client, source, output).already_finished


def test_max_errors_stops_and_keeps_the_work(tmp_path: Path, client: Client) -> None:
    path, output = texts_file(tmp_path), tmp_path / "out.jsonl"
    options = ExtractOptions(max_errors=3, batch_size=4)
    with pytest.raises(TooManyFailures, match=r"4 items failed, more than the 3 allowed, the last one: ") as caught:
        extract(client, text_source(path), output, options)
    assert f"mend the items and remove {output}.partial to begin anew, or go on" in str(caught.value)
    assert json.loads((tmp_path / "out.jsonl.partial" / "progress.json").read_text())["failures"] == 4
    assert extract(client, text_source(path), output, ExtractOptions(max_errors=100)).failures > 4


def test_a_list_whose_files_are_elsewhere_stops_early_and_goes_on_from_there(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"photos/{row:04}.jpg" for row in range(1200)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    (tmp_path / "there" / "photos").mkdir(parents=True)
    for name in names[-100:]:
        (tmp_path / "there" / name).write_bytes(name.encode())
    source, output = image_source(tmp_path / "list.txt"), tmp_path / "out.jsonl"
    monkeypatch.chdir(tmp_path)
    told = rf"none of the first 1,0\d\d items .*: No such file or directory; relative paths are taken from {tmp_path}; "
    for _ in range(2):  # it stands where it stood
        with pytest.raises(TooManyFailures, match=told):
            extract(client, source, output, ExtractOptions(batch_size=100))
    monkeypatch.chdir(tmp_path / "there")
    for name in names[:50]:
        Path(name).write_bytes(name.encode())
    assert extract(client, source, output).failures == 1050
    # What can be read and is no image is told item by item; and who says how many may fail is not stopped before.
    torn = Items([Item(row, b"BAD:torn") for row in range(1200)], "image")
    assert extract(client, torn, tmp_path / "torn.jsonl").failures == 1200
    (tmp_path / "there" / "photos").rename(tmp_path / "there" / "gone")
    options = ExtractOptions(max_errors=2000)
    assert extract(client, source, tmp_path / "none.jsonl", options).failures == 1200


def test_an_engine_is_let_go_of_as_a_job_stops(tmp_path: Path, client: Client) -> None:
    """A Ray cluster went on for as long as the error was kept."""
    closed = []

    class Here:
        def encode(self, kind: Any, items: Any, *, expected: Any, **options: Any) -> Iterator[Any]:
            try:
                yield from encode_items(client, kind, items, **options)
            finally:
                closed.append(True)

    none = Items([Item(row, None, "is not there") for row in range(1200)], "image")
    with pytest.raises(TooManyFailures) as caught:
        extract(client, none, tmp_path / "out.jsonl", engine=Here())
    assert (caught.value.failures // 1000, closed) == (1, [True])


def done_until_a_disk_is_gone(triton: Any, items: Iterator[Item], batch_size: int, told: str) -> list[Any]:
    with Client(triton.url, model="vit-b-16", limits=Limits(readers=1)) as client:
        found = encode_items(client, "image", items, batch_size=batch_size)
        done: list[Any] = []
        with pytest.raises(FileNotFoundError, match=told):
            done.extend(found)
    return done


@pytest.mark.parametrize("links", [False, True])
def test_files_that_are_gone_with_those_before_them_are_no_items_fault(
    tmp_path: Path, triton: Any, fake: Any, links: bool
) -> None:
    """As of a disk that is not mounted any more: all that was left failed, and the job was done."""
    disk = images_folder(tmp_path)
    photos = tmp_path / "links" if links else disk
    for path in sorted(disk.rglob("*.jpg")) if links else ():
        link = photos / path.relative_to(disk)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)

    def items() -> Iterator[Item]:
        for row in range(40):
            if row == 20:
                disk.rename(tmp_path / "gone")
            name = f"{row % 7}/{row}.jpg" if row != 10 else "none.jpg"
            yield Item(name, f"{photos}/{name}")

    told = r"No such file or directory, nor is .*/5/19.jpg, which was read"
    done = done_until_a_disk_is_gone(triton, items(), 4, told)
    assert sum(len(one.items) for one in done) == 20
    assert ("none.jpg", "No such file or directory") in [(f.id, f.reason) for one in done for f in one.failures]


def test_files_that_are_removed_once_they_are_read_are_no_disk_that_is_gone(tmp_path: Path, triton: Any) -> None:
    """As by who clears away behind a job: a file that was missing ended it."""
    photos = tmp_path / "photos"
    photos.mkdir()

    def items() -> Iterator[Item]:
        for name in ("a", "none", "b", "unmounted"):
            for done in photos.iterdir():
                done.unlink()
            if name == "unmounted":  # with all that was right in it
                photos.rename(tmp_path / "gone")
                photos.mkdir()
            elif name != "none":
                (photos / name).write_bytes(name.encode())
            yield Item(name, f"{photos}/{name}")

    done = done_until_a_disk_is_gone(triton, items(), 1, rf"nor is {photos}/b, which was read before")
    assert [one.ids or one.failures[0].id for one in done] == [("a",), "none", ("b",)]


def test_an_interrupt_keeps_what_was_done(tmp_path: Path, client: Client) -> None:
    def interrupt(items: int, failures: int) -> None:
        if items >= 100:
            raise KeyboardInterrupt

    path, output = texts_file(tmp_path), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        extract(client, text_source(path), output, ExtractOptions(batch_size=4), report=interrupt)
    assert json.loads((tmp_path / "out.jsonl.partial" / "progress.json").read_text())["items"] >= 100
    extract(client, text_source(path), output)
    extract(client, text_source(path), tmp_path / "whole.jsonl")
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_a_source_gave_before_it_failed_is_kept(tmp_path: Path, client: Client) -> None:
    items = [Item(row, f"第{row}句") for row in range(100)]

    class Torn(Items):
        def items(self, ids_only: int = 0) -> Iterator[Item]:
            yield from self.items_
            raise OSError(errno.EIO, "the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        extract(client, Torn(items), tmp_path / "out.npy", ALWAYS)
    assert json.loads((tmp_path / "out.npy.partial" / "progress.json").read_text())["items"] == 100
    assert extract(client, Items(items), tmp_path / "out.npy", ALWAYS).items == 100


@pytest.mark.parametrize("checkpoint_s", [0.0, 1000.0])
def test_progress_says_no_more_than_is_on_the_disk(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, checkpoint_s: float
) -> None:
    """Now and then, when something has gone wrong, and at the end: a loss of power loses nothing that it says."""
    fsync, write = os.fsync, Progress.write
    on_disk: dict[int, int] = {}
    held: list[bool] = []

    def synced(file: int) -> None:
        status = os.fstat(file)
        fsync(file)
        on_disk[status.st_ino] = status.st_size

    def written(progress: Progress, path: Path) -> None:
        found = [(on_disk[path.with_name(name).stat().st_ino], size) for name, size in progress.sizes.items()]
        held.append(all(there >= size for there, size in found))
        write(progress, path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Progress, "write", written)
    options = replace(ALWAYS, checkpoint_s=checkpoint_s)

    def interrupt(items: int, failures: int) -> None:
        if items >= 200:
            raise KeyboardInterrupt

    source = text_source(texts_file(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        extract(client, source, tmp_path / "out.npy", options, report=interrupt)
    extract(client, source, tmp_path / "out.npy", options)
    assert len(held) > 1
    assert all(held)


def test_a_slow_disk_keeps_no_server_waiting(
    tmp_path: Path, client: Client, triton: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint comes to its end only when all has been sent."""
    all_sent = threading.Event()
    triton.before_infer = lambda attempt, items: all_sent.set() if "第98句".encode() in items else None
    sync = GrowingFiles.sync

    def slow(self: GrowingFiles) -> None:
        assert all_sent.wait(5)
        sync(self)

    monkeypatch.setattr(GrowingFiles, "sync", slow)
    extract(client, Items([Item(row, f"第{row}句") for row in range(100)]), tmp_path / "out.npy", ALWAYS)


@pytest.mark.parametrize("where", ["flush", "sync", "append"])
def test_a_full_disk_is_told_and_keeps_what_was_done(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path, output = texts_file(tmp_path), tmp_path / "out.jsonl"
    real = getattr(GrowingFiles, where)
    calls: list[None] = []

    def full(self: GrowingFiles, *given: Any) -> None:
        calls.append(None)
        # A slow disk may get no more than the first checkpoint and the last.
        if len(calls) > (3 if where == "append" else 1):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, *given)

    monkeypatch.setattr(GrowingFiles, where, full)
    with pytest.raises(OSError, match=r"No space left on device; what was done is kept: make room and run .*\.partial"):
        extract(client, text_source(path), output, ALWAYS)
    monkeypatch.undo()
    extract(client, text_source(path), output)
    extract(client, text_source(path), tmp_path / "whole.jsonl")
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_work_file_that_lost_its_end_is_told(tmp_path: Path, client: Client, triton: Any, fake: Any) -> None:
    path, output = texts_file(tmp_path), tmp_path / "out.npy"
    interrupted(client, triton, fake, path, output, ALWAYS)
    os.truncate(tmp_path / "out.npy.partial" / "features", 200)
    with pytest.raises(BadFile, match="has 200 bytes of the .* that were written; start anew with --overwrite"):
        extract(client, text_source(path), output, ALWAYS)


def test_encode_items_takes_items_of_any_origin(client: Client, fake: Any) -> None:
    items = [Item("a", b"one"), Item("b", None, "was lost"), Item("c", b"BAD:torn"), Item(4, b"four")]
    found = list(encode_items(client, "image", iter(items), batch_size=2))
    assert [one.ids for one in found] == [("a",), (4,)]
    assert [(f.id, f.reason) for one in found for f in one.failures] == [("b", "was lost"), ("c", "torn")]
    assert sum(len(one.items) for one in found) == 4


def test_a_file_that_its_id_does_not_tell_is_named(tmp_path: Path, client: Client) -> None:
    path = str(tmp_path / "d" / "none.jpg")
    items = [Item(7, path), Item("d/none.jpg", path), Item(path, path), Item(8, "none.jpg")]
    (found,) = encode_items(client, "image", items)
    assert [failure.reason for failure in found.failures] == [
        f"{path}: No such file or directory",
        "No such file or directory",
        "No such file or directory",
        f"none.jpg: No such file or directory; relative paths are taken from {Path.cwd()}",
    ]


def test_a_column_of_base64_is_not_written_into_the_reasons(client: Client) -> None:
    (found,) = encode_items(client, "image", [Item(7, "iVBORw0KGgo" * 1000)])
    (failure,) = found.failures
    assert failure.reason.startswith("iVBORw0KGgo")
    assert "...: File name too long; images in base64 " in failure.reason
    assert len(failure.reason) < 200


# --- Reading ahead.


def test_prefetching_keeps_order_and_bounds() -> None:
    held = most = 0
    lock = threading.Lock()
    rng = random.Random(0)
    delays = [rng.uniform(0, 0.003) for _ in range(300)]

    def items() -> Iterator[int]:
        nonlocal held, most
        for row in range(300):
            with lock:
                held += 1
                most = max(most, held)
            yield row

    def load(row: int) -> int:
        time.sleep(delays[row])
        return row

    given = []
    with Prefetch(items(), load, lambda row: 10, threads=4, max_items=16, max_bytes=100) as loaded:
        for row in loaded:
            with lock:
                held -= 1
            given.append(row)
    assert given == list(range(300))
    # Ten of 10 bytes, and one for each thread but the one that asks, and the one that is being given.
    assert 5 < most <= 15


def test_prefetching_overlaps_reading() -> None:
    def load(row: int) -> int:
        time.sleep(0.02)
        return row

    started = time.monotonic()
    with Prefetch(iter(range(40)), load, lambda row: 0) as loaded:
        assert list(loaded) == list(range(40))
    assert time.monotonic() - started < 0.4  # one after the other 0.8


def test_prefetching_raises_in_its_place_and_ends_its_threads() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    given = []
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"), Prefetch(items(), lambda row: row, lambda row: 0) as loaded:
        given.extend(loaded)  # takes what came before the error out one by one
    assert threading.active_count() == before
    with Prefetch(iter(range(10**9)), lambda row: row, lambda row: 0) as loaded:
        assert next(loaded) == 0
    assert threading.active_count() == before


@pytest.mark.slow
def test_memory_is_flat(tmp_path: Path, triton: Any) -> None:
    """100,000 short texts, and 20,000 images of which each is read from a file."""
    script = """
import json, resource, sys
from cnclip_client import Client
from cnclip_client.extraction import extract
from cnclip_client.sources import image_source, text_source
url, kind, source, output = sys.argv[1:]
peaks = []
def report(items, failures):
    peaks.append((items, int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()))
with Client(url, model="vit-b-16") as client:
    extract(client, (image_source if kind == "image" else text_source)(source), output, report=report)
print(json.dumps([max(rss for items, rss in peaks if items <= peaks[-1][0] // 10), max(rss for _, rss in peaks)]))
"""
    lines = tmp_path / "texts.txt"
    lines.write_text("".join(f"第{row}句\n" for row in range(100_000)), encoding="utf-8")
    folder = tmp_path / "images"
    for row in range(20_000):
        path = folder / f"{row // 1000}" / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hashlib.sha256(b"%d" % row).digest() * 100)
    for kind, source in (("text", lines), ("image", folder)):
        command = [sys.executable, "-c", script, triton.url, kind, str(source), str(tmp_path / f"{kind}.npy")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        early, peak = json.loads(done.stdout)
        assert peak - early < 24 * 1024 * 1024, (kind, early, peak)
        triton.forget()


# --- Ids that come again.


def repeating(count: int = 300) -> list[Item]:
    """Every id twice but the first and those that fail, the second time with other words."""
    rows = [(row * 7) % (count // 2) for row in range(count)]
    return [Item(one if one % 3 else f"第{one}", None if row % 29 == 5 else f"{row}") for row, one in enumerate(rows)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("interrupt", [False, True])
def test_repeated_ids_are_counted_and_kept_or_left_out(
    tmp_path: Path, client: Client, triton: Any, fake: Any, format: str, interrupt: bool
) -> None:
    items = repeating()
    good = [item for item in items if item.value is not None]
    firsts = {item.id: item.value for item in reversed(good)}
    for choice, expected in (("keep", good), ("first", [item for item in good if firsts[item.id] == item.value])):
        output = tmp_path / choice / f"out.{format}"
        output.parent.mkdir()
        options = ExtractOptions(checkpoint_s=0.0, batch_size=4, repeated_ids=choice)  # type: ignore[arg-type]
        if interrupt:
            triton.forget()
            attempts: list[int] = []

            def before_infer(attempt: int, items: list[bytes], attempts: list[int] = attempts) -> None:
                attempts.append(attempt)
                if len(attempts) > 50:  # in the second half, where ids come again
                    raise fake.Fault(grpc.StatusCode.INTERNAL, "broken")

            triton.before_infer = before_infer
            with pytest.raises(CnclipError, match="broken"):
                extract(client, Items(items), output, options)
            assert json.loads((output.parent / f"{output.name}.partial/progress.json").read_text())["repeated"] > 0
            triton.forget()
        summary = extract(client, Items(items), output, options)
        assert (summary.items, summary.failures) == (300, 300 - len(good))
        assert summary.repeated == len(good) - len(firsts)
        blocks = list(read_features(output, "text"))
        ids = [str(one) for block in blocks for one in block.ids.tolist()]
        assert ids == [str(item.id) for item in expected]
        features = np.stack([fake.features_of(str(item.value).encode()) for item in expected])
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        np.testing.assert_array_equal(np.concatenate([block.features for block in blocks]), features)
        again = extract(client, Items(items), output, options)
        assert again.already_finished
        assert again.repeated == summary.repeated
        assert json.loads((output.parent / f"{output.name}.job.json").read_text())["repeated"] == summary.repeated
        assert not (output.parent / f"{output.name}.partial").exists()
    with pytest.raises(JobRefused, match="repeated_ids 'first', now None"):
        extract(client, Items(items), output)


def test_a_repeated_id_is_refused_where_that_is_wanted_and_another_choice_goes_on(
    tmp_path: Path, client: Client, triton: Any
) -> None:
    output = tmp_path / "out.npy"
    items = [Item(row, f"第{row}句") for row in range(100)] + [Item(7, "又"), Item(100, "终")]
    refuse = ExtractOptions(repeated_ids="refuse", batch_size=4)
    with pytest.raises(JobRefused, match=r"the id 7 comes again in the source; mend it, or --repeated-ids first"):
        extract(client, Items(items), output, refuse)
    triton.forget()
    assert extract(client, Items(items), output, ExtractOptions(repeated_ids="first")).repeated == 1
    assert sum(map(len, triton.requests)) == 2
    assert len(np.load(output)) == 101
    # Where none comes again the choice makes no difference.
    extract(client, Items(items[:100]), tmp_path / "none.npy", refuse)
    assert extract(client, Items(items[:100]), tmp_path / "none.npy", ExtractOptions()).already_finished
    with pytest.raises(ValueError, match="repeated_ids must be keep, first, refuse; got 'last'"):
        extract(client, Items(items), output, ExtractOptions(repeated_ids="last"))  # type: ignore[arg-type]


def test_in_parquet_an_integer_and_its_digits_are_one_id(tmp_path: Path, client: Client) -> None:
    items = Items([Item(7, "一"), Item("7", "二"), Item("x", "三")])
    assert extract(client, items, tmp_path / "out.npy").repeated == 0
    assert extract(client, items, tmp_path / "out.parquet").repeated == 1


def test_a_set_of_ids_larger_than_its_cache_stays_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_client.extraction._repeats._CACHE_KIB", 64)
    with Repeats(tmp_path / "seen?#%", lambda one: b"%d" % one) as repeats:
        for start in range(0, 20_000, 1000):
            assert repeats.add(repeats.keys(range(start, start + 1000))) == []
        assert (tmp_path / "seen?#%").stat().st_size > 4 * 64 * 1024
        assert repeats.add(repeats.keys([20_000, 5, 20_000, 19_999])) == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_full_for_the_set_of_ids(tmp_path: Path) -> None:
    with Repeats(tmp_path / "seen", lambda one: b"%d" % one) as repeats:
        repeats._database.execute("PRAGMA max_page_count=20")
        with pytest.raises(OSError, match=r"No space left on device \(.* is full\): '.*seen'") as caught:
            repeats.add(repeats.keys(range(10_000)))
    assert caught.value.errno == errno.ENOSPC


# --- Where outputs go.


def test_an_output_that_is_a_link_is_written_where_it_leads(tmp_path: Path, client: Client) -> None:
    (tmp_path / "disk").mkdir()
    output = tmp_path / "out.npy"
    output.symlink_to("disk/real.npy")
    for _ in range(2):
        extract(client, Items([Item(1, "猫")]), output, ExtractOptions(overwrite=True))
        assert output.is_symlink()
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == [
            "real.ids.jsonl",
            "real.npy",
            "real.npy.errors.jsonl",
            "real.npy.job.json",
        ]
    assert [path.name for path in tmp_path.iterdir() if path.name != "disk"] == ["out.npy"]
    (block,) = read_features(output, "text")
    assert block.ids.tolist() == [1]
    assert origin_of(output) == origin_of(tmp_path / "disk/real.npy") is not None


@pytest.mark.parametrize("name", ["out.npy", "out.ids.jsonl", "out.npy.errors.jsonl", "out.npy.job.json"])
@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a character device"])
def test_an_output_that_is_no_file_is_refused_before_any_work(
    tmp_path: Path, client: Client, triton: Any, name: str, kind: str
) -> None:
    place = tmp_path / name
    if kind == "a pipe":
        os.mkfifo(place)
    elif kind == "a folder":
        place.mkdir()
    else:
        place.symlink_to("/dev/null")
    with pytest.raises(JobRefused, match=f"is {kind}, and a job's output a file .*; give another --output"):
        extract(client, Items([Item(1, "猫")]), tmp_path / "out.npy", ExtractOptions(overwrite=True))
    assert not triton.requests
    assert list(tmp_path.iterdir()) == [place]


def test_a_file_where_the_work_should_be_is_told(tmp_path: Path, client: Client) -> None:
    (tmp_path / "out.npy.partial").write_bytes(b"what is it?")
    with pytest.raises(JobRefused, match=r"out\.npy\.partial is there and no folder of a job's work; remove it"):
        extract(client, Items([Item(1, "猫")]), tmp_path / "out.npy")


def test_a_lock_that_another_process_removes_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".entering"

    def was_there_just_now(path: Path, **_: bool) -> None:
        monkeypatch.undo()
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))

    monkeypatch.setattr(Path, "mkdir", was_there_just_now)
    with locked(folder, tmp_path):
        assert [path.name for path in folder.iterdir()] == ["lock"]
    folder.symlink_to("nowhere")
    with pytest.raises(JobRefused, match="is there and no folder"), locked(folder, tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_disk_that_has_no_locks_costs_a_warning(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    import fcntl

    def refused(handle: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    assert extract(client, Items([Item(1, "猫")]), tmp_path / "out.npy").items == 1
    assert re.search(r"out\.npy\.partial cannot be locked \(.*\): see that this job runs only once", caplog.text)


def test_a_disk_that_keeps_what_is_open_leaves_no_folder_of_work(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and FUSE call an open file that was removed something else, so that its folder is not empty until then."""
    remove = Path.rmdir

    def with_what_is_open(folder: Path) -> None:
        for handle in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # that of this very loop
                if str(handle.readlink()).startswith(f"{folder}/"):
                    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))
        remove(folder)

    monkeypatch.setattr(Path, "rmdir", with_what_is_open)
    assert extract(client, Items([Item(1, "猫")]), tmp_path / "out.npy").items == 1
    assert not (tmp_path / "out.npy.partial").exists()


def test_a_disk_that_waits_for_nothing_is_taken_and_a_full_one_named(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of FUSE's, and shared folders of virtual machines, answer so; and a quota is told no sooner by NFS."""

    def answers(code: int) -> None:
        def refused(handle: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", refused)

    for code in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
        answers(code)
        assert extract(client, Items([Item(1, "猫")]), tmp_path / f"{code}.npy").items == 1
    answers(errno.EDQUOT)
    with pytest.raises(OSError, match=rf"Errno {errno.EDQUOT}\] .*: '{tmp_path}/out.npy.partial/\w+"):
        extract(client, Items([Item(1, "猫")]), tmp_path / "out.npy")
