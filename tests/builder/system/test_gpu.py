"""Which GPUs count: those that nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
from cnclip_builder.system.gpu import has_gpu, missing_gpu

TWO = """GPU 0: NVIDIA A10 (UUID: GPU-0aaa1111-2222-3333-4444-555566667777)
  MIG 1g.5gb      Device  0: (UUID: MIG-8888bbbb-2222-3333-4444-555566667777)
GPU 1: NVIDIA A10 (UUID: GPU-1ccc1111-2222-3333-4444-555566667777)
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "listing").write_text(TWO)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat {tmp_path}/listing\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, True), ("0", True), ("1,0", True), ("GPU-1ccc", True), ("MIG-8888", True), ("0,-1", True), (" 1 ", True),
        ("", False), ("-1", False), ("-1,0", False), ("2", False), ("NoDevFiles", False), ("none", False), ("GPU-9", False),
    ],
)  # fmt: skip
def test_what_cuda_shows(monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: bool) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert has_gpu() is expected


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert has_gpu() is False
    assert missing_gpu() == "there is no nvidia-smi"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert has_gpu() is False
    assert missing_gpu() == "nvidia-smi says 'NVIDIA-SMI has failed'"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 0\n")
    assert missing_gpu() == "nvidia-smi lists none"


@pytest.mark.usefixtures("driver")
def test_a_variable_that_hides_all_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert missing_gpu() == "CUDA_VISIBLE_DEVICES is '' and hides all that nvidia-smi lists"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert missing_gpu() == ""
