"""A process that has a client can be forked: by Ray and PySpark, which start their programs so."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, subprocess
from cnclip_client import _forks
import grpc
channels = [grpc.insecure_channel("127.0.0.1:9") for _ in range(4)]
for channel in channels:
    channel.subscribe(lambda state: None, try_to_connect=True)
codes = [subprocess.run(["true"], preexec_fn=lambda: None).returncode for _ in range(int(os.environ["FORKS"]))]
print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"), sorted(set(codes)), flush=True)
os._exit(0)
"""


def run(**variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_programs_start_beside_channels() -> None:
    assert run(FORKS="30") == "0 [0]"


def test_what_the_user_has_set_is_left() -> None:
    assert run(FORKS="0", GRPC_ENABLE_FORK_SUPPORT="1") == "1 []"
