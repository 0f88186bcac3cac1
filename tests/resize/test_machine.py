"""Cores and memory that a process may use: by the machine's own account, and by control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import cnclip_machine
import pytest
from cnclip_machine import available_memory, refused_threads, usable_cores, usable_memory

GB = 10**9


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a machine with 8 cores and 6 GB to spare; this process is in a group that is in another one."""
    (tmp_path / "meminfo").write_text(f"MemTotal:  {16 * GB // 1024} kB\nMemAvailable:    {6 * GB // 1024} kB\n")
    (tmp_path / "own").write_text("0::/slice/job\n")
    (tmp_path / "groups/slice/job").mkdir(parents=True)
    monkeypatch.setattr(cnclip_machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cnclip_machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(cnclip_machine, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_cores(machine: Path) -> None:
    assert usable_cores() == 8
    write(machine / "groups/slice/job", cpu__max="max 100000\n")
    assert usable_cores() == 8
    write(machine / "groups/slice", cpu__max="350000 100000\n")
    assert usable_cores() == 3
    write(machine / "groups/slice/job", cpu__max="50000 100000\n")
    assert usable_cores() == 1


@pytest.mark.parametrize("group", ["groups", "groups/slice", "groups/slice/job"])
def test_memory_of_the_narrowest_group(machine: Path, group: str) -> None:
    write(machine / "groups", memory__max="max\n", memory__current=f"{9 * GB}\n")
    assert (usable_memory(), available_memory()) == (16 * GB, 6 * GB)
    write(machine / group, memory__max=f"{3 * GB}\n", memory__current=f"{GB}\n")
    assert (usable_memory(), available_memory()) == (3 * GB, 2 * GB)
    write(machine / group, memory__current=f"{3 * GB + 1}\n")
    assert (usable_memory(), available_memory()) == (3 * GB, 0)


def test_files_that_were_read_take_nothing_away(machine: Path) -> None:
    stat = f"anon {GB // 2}\nfile {2 * GB}\ninactive_file {2 * GB}\nactive_file 0\n"
    write(machine / "groups/slice", memory__max=f"{3 * GB}\n", memory__current=f"{5 * GB // 2}\n", memory__stat=stat)
    assert available_memory() == 5 * GB // 2


def test_control_groups_of_version_1(machine: Path) -> None:
    (machine / "own").write_text("4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n")
    write(machine / "groups/cpu/docker/x", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert usable_cores() == 8
    write(machine / "groups/cpu/docker/x", cpu__cfs_quota_us="250000\n")
    assert usable_cores() == 2
    limit, used = {"memory__limit_in_bytes": f"{4 * GB}\n"}, {"memory__usage_in_bytes": f"{3 * GB}\n"}
    write(machine / "groups/memory/docker/x", **limit, **used, memory__stat=f"total_inactive_file {GB}\n")
    assert (usable_memory(), available_memory()) == (4 * GB, 2 * GB)


def test_threads_that_were_refused(machine: Path) -> None:
    assert refused_threads() == 0
    write(machine / "groups/slice", pids__events="max 7\n")
    write(machine / "groups/slice/job", pids__events="max 0\n")
    assert refused_threads() == 7
    # A newer kernel counts in the slice what another job's own limit refused that one.
    write(machine / "groups/slice", pids__events__local="max 2\n")
    assert refused_threads() == 2


def test_a_system_that_tells_nothing(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 10)
    for file in ("meminfo", "own"):
        (machine / file).unlink()
    assert (usable_cores(), usable_memory(), available_memory()) == (10, 0, 0)
