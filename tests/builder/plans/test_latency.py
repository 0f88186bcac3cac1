"""The benchmark of plans, as far as it goes without a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cnclip_builder.plans.device import current_device

from tests.conftest import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "tensorrt_latency.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_help() -> None:
    assert "PyTorch eager FP16, torch.compile, and a TensorRT plan" in run("--help").stdout


@pytest.mark.skipif(current_device() is not None, reason="a GPU is here, and the benchmark would run")
def test_without_a_gpu() -> None:
    result = run("--arch", "RN50", "--checkpoint", "random:0")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1].startswith("error: no TensorRT plan can be built: this machine lacks")
