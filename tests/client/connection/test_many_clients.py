"""Clients made, used and closed by the hundred leave nothing behind in their process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from cnclip_client import Client
from cnclip_client._threads import Waiters

SCRIPT = """
import json, os, sys, threading
from cnclip_client import Client

def use(count):
    for _ in range(count):
        with Client(sys.argv[1], model="vit-b-16") as client:
            client.encode_texts(["a"])
    resident_kib = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    return resident_kib, threading.active_count(), len(os.listdir("/proc/self/fd"))

print(json.dumps([use(100), use(300)]))
"""


def test_memory_threads_and_files_stay_as_they_are(triton: Any) -> None:
    """10,000 of them were seen to grow a process from 70.1 MiB, after 100, to 71.8."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, triton.url], capture_output=True, text=True, timeout=60, check=True
    )
    before, after = json.loads(done.stdout)
    assert after[0] - before[0] < 5 * 1024  # 17 KiB for each of 300 would fail
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] + 10  # those of the last few close in the background


def test_a_call_leaves_none_of_its_questions_behind(triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Waiters._run

    def slow_to_end(waiters: Waiters) -> None:
        run(waiters)
        time.sleep(0.1)

    monkeypatch.setattr(Waiters, "_run", slow_to_end)
    with Client(triton.url, model="vit-b-16") as client:
        client.encode_texts(["a"])
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("question")]
