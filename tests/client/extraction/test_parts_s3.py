"""Parts in a local S3, by the command, as pods do them: killed, started anew elsewhere, and all of it there at the end."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from cnclip_client import Client
from cnclip_client.extraction import extract
from cnclip_client.sources import text_source

from tests.client.extraction.test_extract import texts_file
from tests.client.extraction.test_parts import require_same
from tests.commands import run_command_text, run_script

# Jobs that share out a folder of parts, and are killed where they are at work, so many times in all. Each is a fork of a
# process that has everything imported (see test_extract.py), and runs the command.
KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
from cnclip_client._cli import main

given, jobs, wanted, folder, nodes = json.loads(sys.argv[1])
rng = random.Random(0)
lives = 0
ENDED = os.WEXITED | os.WNOWAIT | os.WNOHANG

def job(index):
    global lives
    lives += 1
    # Into a store each works on another node each time: what was begun is not there.
    work = Path(nodes, str(lives)) if nodes else Path(folder)
    pid = os.fork()
    if pid:
        return pid, work
    sys.argv = ["cnclip", *given, "-o", f"{folder}/", "--shard", f"{index}/{jobs}"]
    if nodes:
        sys.argv += ["--work", str(work)]
    try:
        main()
    except SystemExit as end:
        os._exit(end.code)
    finally:
        os._exit(99)

kills, todo = 0, list(range(jobs))
while todo:
    running = {index: job(index) for index in todo}
    todo = []
    for index, (pid, work) in running.items():
        if kills < wanted:
            while not (list(work.glob("part-*.partial")) or os.waitid(os.P_PID, pid, ENDED)):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        assert status in (1 << 8, signal.SIGKILL), status  # some items fail
        if status == signal.SIGKILL:
            todo.append(index)
            kills += 1
print(kills)
"""


def test_pods_on_s3_are_killed_and_come_to_the_same(
    tmp_path: Path, triton: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    store = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    source = texts_file(tmp_path)
    with Client(triton.url, model="vit-b-16") as client:
        extract(client, text_source(source), tmp_path / "out.parquet")
    triton.before_infer = lambda attempt, items: time.sleep(0.1)
    monkeypatch.setenv("CNCLIP_URL", triton.url)
    given = ["extract", "texts", str(source), "--shard-items", "40", "--batch-size", "4"]
    asked = [given, 2, 2, f"s3://{bucket}/features", str(tmp_path / "nodes")]
    done = run_script(f"import s3fs\n{KILLED}", json.dumps(asked))
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stdout) > 0
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
