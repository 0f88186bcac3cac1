"""A process that has a client can be forked: by Ray and PySpark, which start their programs so."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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


FORKED = """
import os, sys
from cnclip_client import Client, _forks
client = Client("127.0.0.1:9", model="demo")
if sys.argv[1] == "closed":
    client.close()
if os.fork() == 0:
    try:
        if sys.argv[1] == "handled":
            _forks.require_uncut()
        else:
            with client if sys.argv[1] == "theirs" else Client("127.0.0.1:9", model="demo"):
                pass
        print("made", flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    sys.exit(0)
os.wait()
with Client("127.0.0.1:9", model="demo"):
    pass
os._exit(0)
"""


def run(*arguments: str, program: str = PROGRAM, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
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


@pytest.mark.parametrize("whose", ["theirs", "own", "closed"])
def test_a_fork_is_told_that_grpc_does_not_survive_it(whose: str) -> None:
    """Each would wait for ever otherwise, and with the parent's client the parent too.

    Where the parent's was closed, 5 of 40 waited: gRPC's threads end some time after the channel.
    """
    assert run(whose, program=FORKED).startswith("gRPC does not survive a fork")


def test_where_the_user_has_grpc_handle_forks_nothing_is_refused() -> None:
    """Whether gRPC then is well in the child is its own affair."""
    assert run("handled", program=FORKED, GRPC_ENABLE_FORK_SUPPORT="1") == "made"
