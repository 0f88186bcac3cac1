"""The cost of bringing pixels to a server: every way brings them, and is told."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.triton
def test_every_way_is_measured() -> None:
    command = [sys.executable, "benchmarks/transport.py", "--images", "32", "--rounds", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    ways = [line.split(" | ")[0].removeprefix("| ") for line in result.stdout.splitlines()[2:]]
    assert len(ways) == 9 + 2 + 3 * 3
    assert {"gRPC, 8 rows", "HTTP, 8 rows", "shared memory, 8 rows", "gRPC, 1 row, MALLOC_ARENA_MAX=2"} < set(ways)
