"""Extraction from a real tritonserver: good images among hostile ones, cn_clip's own scripts, a server that restarts."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import Client, Retry
from cnclip_client.extraction import ExtractOptions, extract
from cnclip_client.retrieval import read_features
from cnclip_client.sources import image_source, text_source
from cnclip_server import TritonServer

from tests.client.extraction.test_parts_s3 import KILLED
from tests.client.test_evaluation import cn_clip
from tests.commands import run_script
from tests.conftest import DEMO

pytestmark = pytest.mark.triton


@pytest.fixture
def client(demo_server: TritonServer) -> Iterator[Client]:
    with Client(demo_server.grpc_url, model="demo") as connected:
        yield connected


def rows_of(path: Path, kind: Any) -> dict[Any, np.ndarray]:
    blocks = list(read_features(path, kind))
    return {one: row for block in blocks for one, row in zip(block.ids.tolist(), block.features, strict=True)}


def test_good_images_among_hostile_ones(tmp_path: Path, client: Client, shared_images: list[Path]) -> None:
    """Every file of the folder is either in the output, equal to what it gives alone, or among the errors."""
    folder = tmp_path / "mixed"
    (folder / "deep" / "深").mkdir(parents=True)
    for row, path in enumerate(shared_images):
        place = folder / ("" if row % 2 else "deep/深") / path.name
        place.write_bytes(path.read_bytes())
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no image")
    (folder / "gone.jpg").symlink_to("nowhere")
    summary = extract(client, image_source(folder), tmp_path / "out.jsonl")
    found = rows_of(tmp_path / "out.jsonl", "image")
    errors = [json.loads(line) for line in (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()]
    reasons = {error["id"]: error["reason"] for error in errors}
    assert summary.items == len(shared_images) + 3 == len(found) + len(reasons)
    assert not set(found) & set(reasons)
    assert {"empty.jpg", "notes.txt", "gone.jpg"} <= set(reasons)
    assert all(reasons.values())
    alone = client.encode_images([folder / one for one in [*found, *reasons]], errors="collect", batch_size=1)
    assert alone.indices.tolist() == list(range(len(found)))
    np.testing.assert_allclose(np.stack(list(found.values())), alone.features, atol=1e-5)
    assert len(found) > 20
    assert len(reasons) > 5


def test_cn_clips_scripts_take_ours_unchanged(tmp_path: Path, client: Client) -> None:
    """MUGE's files in, cn_clip's top-k out: each of the demo's captions finds its picture."""
    pairs = [line.split("\t") for line in (DEMO / "captions.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    tsv, texts = tmp_path / "imgs.tsv", tmp_path / "texts.jsonl"
    with tsv.open("wb") as images, texts.open("w", encoding="utf-8") as captions:
        for row, (name, caption) in enumerate(pairs):
            encoded = base64.urlsafe_b64encode((DEMO / "images" / name).read_bytes())
            images.write(b"%d\t%b\n" % (row, encoded))
            captions.write(json.dumps({"text_id": 100 + row, "text": caption, "image_ids": [row]}) + "\n")
    extract(client, image_source(tsv), tmp_path / "i.jsonl")
    extract(client, text_source(texts), tmp_path / "t.jsonl")
    sides = ("--image-feats", tmp_path / "i.jsonl", "--text-feats", tmp_path / "t.jsonl")
    predictions = tmp_path / "predictions.jsonl"
    cn_clip(("make_topk_predictions", *sides, "--top-k", 10, "--output", predictions))
    found = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(found) == len(pairs) > 5
    assert {one["text_id"] - 100: one["image_ids"][0] for one in found} == {row: row for row in range(len(pairs))}


def test_a_real_server_that_restarts_in_mid_job(demo_repository: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"图片中间有{row}个圆形\n" for row in range(1500)), encoding="utf-8")
    ports = {"http_port": 0, "metrics_port": 0}
    reached = threading.Event()
    with TritonServer(demo_repository, grpc_port=0, **ports) as first:
        url = first.grpc_url
        retry = Retry(attempts=10_000, max_delay_s=0.5, deadline_s=120)
        done: list[Any] = []

        def report(items: int, failures: int) -> None:
            if items >= 250:
                reached.set()
                # Some way to go when the server goes.
                time.sleep(0.002)

        def run() -> None:
            with Client(url, model="demo", retry=retry) as client:
                options = ExtractOptions(batch_size=4, checkpoint_s=0.2)
                done.append(extract(client, text_source(texts), tmp_path / "out.npy", options, report=report))

        job = threading.Thread(target=run)
        job.start()
        assert reached.wait(60)
    with TritonServer(demo_repository, grpc_port=int(url.rpartition(":")[2]), **ports) as second:
        job.join(120)
        assert [one.items for one in done] == [1500]
        with Client(second.grpc_url, model="demo") as client:
            expected = client.encode_texts(texts.read_text(encoding="utf-8").splitlines())
    assert (tmp_path / "out.ids.jsonl").read_text().split() == [str(number) for number in range(1, 1501)]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-5)


def test_three_jobs_that_are_killed_are_one_run(tmp_path: Path, client: Client, demo_server: TritonServer) -> None:
    folder, out = tmp_path / "images", tmp_path / "features"
    folder.mkdir()
    pictures = sorted((DEMO / "images").iterdir())
    for row in range(120):
        (folder / f"{row:03}.jpg").write_bytes(
            b"no image" if row % 20 == 7 else pictures[row % len(pictures)].read_bytes()
        )
    whole = extract(client, image_source(folder), tmp_path / "whole.parquet")
    given = ["extract", "images", str(folder), "--url", demo_server.grpc_url, "--model", "demo"]
    given += ["--shard-items", "15", "--batch-size", "1"]
    done = run_script(KILLED, json.dumps([given, 3, 4, str(out), ""]))
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 0
    blocks, expected = (list(read_features(path, "image")) for path in (out, tmp_path / "whole.parquet"))
    ids = [[one for block in some for one in block.ids.tolist()] for some in (blocks, expected)]
    assert ids[0] == ids[1]
    features = [np.concatenate([block.features for block in some]) for some in (blocks, expected)]
    np.testing.assert_allclose(*features, rtol=0, atol=1e-6)
    errors = b"".join(path.read_bytes() for path in sorted(out.glob("part-*.errors.jsonl")))
    assert errors == (tmp_path / "whole.parquet.errors.jsonl").read_bytes()
    assert errors.count(b"\n") == whole.failures
