"""Which GPUs count: those that nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

from pathlib import Path

import cnclip_pixels
import pytest
from cnclip_builder.system import machine
from cnclip_builder.system.machine import available_memory, has_gpu, missing_gpu, usable_cores

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


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a machine with 8 cores and 6 GB to spare, whose container has no limits."""
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    6000000 kB\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000000\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(cnclip_pixels, "_CGROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def test_what_the_machine_has_and_its_container_leaves(container: Path) -> None:
    assert (usable_cores(), available_memory()) == (8, 6_144_000_000)
    (container / "cpu.max").write_text("250000 100000\n")
    (container / "memory.max").write_text("3000000000\n")
    assert (usable_cores(), available_memory()) == (2, 2_000_000_000)
    (container / "cpu.max").write_text("50000 100000\n")
    (container / "memory.current").write_text("3000000001\n")
    assert (usable_cores(), available_memory()) == (1, 0)
    for file in container.iterdir():
        file.unlink()
    assert (usable_cores(), available_memory()) == (8, 0)
