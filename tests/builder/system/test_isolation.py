"""A killed build takes its stages with it; one without memory is told; none on a GPU forks what has asked for one."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cnclip_builder import build
from cnclip_builder.errors import MissingRequirementError
from cnclip_builder.plans import here
from cnclip_builder.system import isolation
from cnclip_builder.system.isolation import stage_process

SCRIPT = """
import time
from cnclip_builder.system import isolation

isolation._IMPORTED = []  # what stages import is of no account here

if __name__ == "__main__":
    import os
    with isolation.stage_process() as process:
        print(process.run(os.getpid), flush=True)
        time.sleep(600)
"""


def is_there(pid: int) -> bool:
    """Whether a process is there that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_build_leaves_no_stage_behind(tmp_path: Path) -> None:
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as build:
        assert build.stdout is not None
        stage = int(build.stdout.readline())
        assert is_there(stage)
        groups = {os.getpgid(stage), os.getpgid(build.pid)}
        build.send_signal(signal.SIGKILL)
        build.wait()
        until = time.monotonic() + 120
        while is_there(stage) and time.monotonic() < until:
            time.sleep(0.05)
        assert not is_there(stage)
    assert len(groups) == 1  # a terminal's Ctrl-C, Ctrl-\ and Ctrl-Z are for both


# As NVIDIA's: in a child of the process that has initialised it, it answers CUDA_ERROR_NOT_INITIALIZED.
DRIVER = """
#include <string.h>
#include <unistd.h>

static pid_t owner;

int cuInit(unsigned flags) {
    owner = owner ? owner : getpid();
    return flags || owner != getpid() ? 3 : 0;
}
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "NVIDIA H200", size); return device; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 9 : 0; return device; }
"""
# What importing cn_clip comes to where torch has CUDA: it asks `torch.cuda.is_available()`.
ASKS = 'import ctypes\nctypes.CDLL("libcuda.so.1").cuInit(0)\n'
ON_GPU = """
from cnclip_builder.plans.device import current_device
from cnclip_builder.system import isolation

isolation._IMPORTED = ["asks_for_a_gpu"]

if __name__ == "__main__":
    for on_gpu in (False, True):
        with isolation.stage_process(on_gpu=on_gpu) as process:
            print(process.run(current_device))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_stage_on_a_gpu_finds_it(tmp_path: Path) -> None:
    (tmp_path / "driver.c").write_text(DRIVER)
    (tmp_path / "asks_for_a_gpu.py").write_text(ASKS)
    (tmp_path / "stages.py").write_text(ON_GPU)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", str(tmp_path / "driver.c"), "-o", str(library)], check=True)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
    }
    command = [sys.executable, str(tmp_path / "stages.py")]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["None", "Device(name='NVIDIA H200', compute_capability='9.0')"]


def test_what_uses_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []

    @contextlib.contextmanager
    def stage_process(*, on_gpu: bool = False) -> Iterator[Any]:
        def run(function: Any, *_: Any, **__: Any) -> Any:
            asked.append((function.__name__, on_gpu))
            return SimpleNamespace(as_dict=dict)

        yield SimpleNamespace(run=run)

    for module in (build, here):
        monkeypatch.setattr(module, "stage_process", stage_process)
    monkeypatch.setattr(here, "missing_gpu", lambda: "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    checkpoint = SimpleNamespace(file=SimpleNamespace(path=tmp_path), still=contextlib.nullcontext)
    anything: Any = SimpleNamespace(arch=None, card_images=None, plan="x", checkpoint=checkpoint)
    build._has_card()
    build._measured_card(anything, anything)
    here.require_tensorrt(anything, None)
    here.build_plans({"image": anything}, tmp_path, anything)
    assert asked == [
        ("why_no_card", True),
        ("measure_card_distance", True),
        ("_require_machine", True),
        ("_make", True),
    ]


def test_a_stage_collects_no_garbage_of_what_was_imported_before_it() -> None:
    """Its first collection went through all of torch, for 0.3 s of a processor each time."""
    with stage_process() as process:
        assert process.run(gc.get_freeze_count) > 100_000


def test_a_stage_without_memory_is_one_line() -> None:
    with stage_process() as process:
        with pytest.raises(MissingRequirementError, match="stage bytes found no memory: an architecture needs about"):
            process.run(bytes, 1 << 60)
        assert process.run(bytes, 2) == b"\0\0"


def test_what_stages_are_forked_from_is_killed(tmp_path: Path) -> None:
    """As where memory runs out while it imports torch: Typer took the EOFError for Ctrl-C, and said "Aborted!"."""
    (tmp_path / "killed.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    told = what_is_told_of_a_stage("killed", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert told.startswith("the process of stage len was killed, most likely for want of memory")


def test_a_temporary_folder_of_too_long_a_name(tmp_path: Path) -> None:
    """As one below a home folder with a Chinese name may soon be: each letter takes three bytes."""
    (folder := tmp_path / ("临时" * 16)).mkdir()
    told = what_is_told_of_a_stage("sys", PYTHONPATH=os.pathsep.join(sys.path), TMPDIR=str(folder))
    assert told.startswith(f"the temporary folder {folder} has too long a name for sockets")


def what_is_told_of_a_stage(imported: str, **environment: str) -> str:
    code = (
        "from cnclip_builder.system import isolation\n"
        "from cnclip_builder.errors import MissingRequirementError\n"
        f"isolation._IMPORTED = [{imported!r}]\n"
        "try:\n"
        "    with isolation.stage_process() as process:\n"
        "        process.run(len, 'abc')\n"
        "except MissingRequirementError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PYTHONUTF8": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _handles_interrupts() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_control_c_prints_no_traceback_of_what_stages_are_forked_from() -> None:
    """It imports the quiet way first, before seconds of torch; the stages themselves still tidy up."""
    quiet, *_ = isolation._IMPORTED
    code = f"import {quiet}, os, signal\nos.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
    with stage_process() as process:
        assert process.run(_handles_interrupts)
