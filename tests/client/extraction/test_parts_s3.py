"""Parts in a local S3, by the command, as pods do them: killed, started anew elsewhere, and all of it there at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cnclip_client import Client
from cnclip_client.extraction import extract
from cnclip_client.sources import text_source

from tests.client.extraction.test_extract import texts_file
from tests.client.extraction.test_parts import require_same
from tests.commands import run_command_text

COMMAND = [sys.executable, "-c", "from cnclip_client._cli import main; main()", "extract", "texts"]


def test_pods_on_s3_are_killed_and_come_to_the_same(tmp_path: Path, triton: Any, bucket: str) -> None:
    import s3fs

    store = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    source = texts_file(tmp_path)
    with Client(triton.url, model="vit-b-16") as client:
        extract(client, text_source(source), tmp_path / "out.parquet")
    triton.before_infer = lambda attempt, items: time.sleep(0.02)
    rng = random.Random(0)
    environment = {**os.environ, "CNCLIP_URL": triton.url}
    given = [str(source), "-o", f"s3://{bucket}/features/", "--shard-items", "40", "--batch-size", "4"]
    todo, lives, kills = [0, 1], 0, 0
    while todo:
        running = {}
        for index in todo:
            lives += 1
            # Another node each time: what was begun is not there.
            more = ["--shard", f"{index}/2", "--work", str(tmp_path / "nodes" / str(lives))]
            command = [*COMMAND, *given, *more]
            running[index] = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        todo = []
        for index, process in running.items():
            if kills < 2:
                time.sleep(rng.uniform(0.5, 3))
                process.send_signal(signal.SIGKILL)
            _, said = process.communicate()
            assert process.returncode in (1, -signal.SIGKILL), said  # some texts fail
            if process.returncode < 0:
                todo.append(index)
                kills += 1
    store.get(f"{bucket}/features", str(tmp_path / "got"), recursive=True)
    require_same(tmp_path / "got", tmp_path / "out.parquet", "text")
    assert store.ls(f"{bucket}/features", detail=False)
    assert json.loads(store.cat(f"{bucket}/features/job.json"))["parts"]["jobs"] == 2


def test_a_bucket_that_is_not_there_is_told(tmp_path: Path, triton: Any, s3: dict[str, str]) -> None:
    source = texts_file(tmp_path, 10)
    environment = {**os.environ, **s3, "CNCLIP_URL": triton.url}
    given = ("extract", "texts", source, "-o", "s3://no-such-bucket/features/")
    done = run_command_text("cnclip", *given, env=environment, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "there is no bucket no-such-bucket" in done.stderr
    assert not triton.requests
