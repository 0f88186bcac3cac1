"""The benchmark of plans, as far as it goes without a GPU."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from typing import Any

import pytest
from cnclip_builder.plans.device import current_device

from tests.conftest import ROOT


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the script, and gives what it ends with."""

    def run(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "argv", ["tensorrt_latency.py", *arguments])
        with pytest.raises(SystemExit) as raised:
            runpy.run_path(str(ROOT / "benchmarks" / "tensorrt_latency.py"), run_name="__main__")
        return raised.value.code

    return run


def test_help(ended: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--help") == 0
    assert "PyTorch eager FP16, torch.compile, and a TensorRT plan" in capsys.readouterr().out


@pytest.mark.skipif(current_device() is not None, reason="a GPU is here, and the benchmark would run")
def test_without_a_gpu(ended: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    said = ended("--arch", "RN50", "--checkpoint", "random:0")
    assert said.startswith("error: no TensorRT plan can be built: this machine lacks")
    assert capsys.readouterr().out == ""
