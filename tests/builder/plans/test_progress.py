"""That a build lives is told: seconds, and how far it is where TensorRT tells that."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace

import pytest
from cnclip_builder.plans.progress import Progress


def test_lines_come_while_it_builds_and_no_longer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cnclip_builder")
    with Progress("a.onnx", seconds=0.01).told():
        deadline = time.monotonic() + 20
        while len(caplog.messages) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    said = len(caplog.messages)
    assert said >= 2
    assert caplog.messages[0] == "Still building a.onnx: 0 s"
    time.sleep(0.1)
    assert len(caplog.messages) == said


def test_steps_of_the_innermost_phase_are_told() -> None:
    progress = Progress("a.onnx")
    monitor = progress.monitor(SimpleNamespace(IProgressMonitor=type("IProgressMonitor", (), {})))
    assert progress.line() == "Still building a.onnx: 0 s"
    monitor.phase_start("Building engine", None, 3)
    monitor.phase_start("Timing graph nodes", "Building engine", 120)
    assert monitor.step_complete("Timing graph nodes", 33) is True
    assert progress.line() == "Still building a.onnx: 0 s, Timing graph nodes: 34 of 120"
    monitor.phase_finish("Timing graph nodes")
    assert monitor.step_complete("Building engine", 0) is True
    assert progress.line() == "Still building a.onnx: 0 s, Building engine: 1 of 3"
    monitor.phase_finish("Building engine")
    assert progress.line() == "Still building a.onnx: 0 s"


def test_tensorrt_before_10_tells_no_steps() -> None:
    assert Progress("a.onnx").monitor(SimpleNamespace()) is None
