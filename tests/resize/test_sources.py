"""The C of the resize under AddressSanitizer and UndefinedBehaviorSanitizer, and how it is built."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = ROOT / "resize" / "src"


def fuzzer(folder: Path, *flags: str) -> Path:
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler cc")
    target = folder / "fuzz"
    files = [str(ROOT / "tests/resize/fuzz.c"), str(SOURCES / "resize.c")]
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{SOURCES}"]
    command = ["cc", *strict, *flags, *files, "-lm", "-o", str(target)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "cannot find" in built.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    return target


def fuzz(program: Path, seed: int, rounds: int) -> None:
    result = subprocess.run([program, str(seed), str(rounds)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"{rounds} equal on path" in result.stdout


def test_the_vector_path_is_the_plain_one(tmp_path: Path) -> None:
    fuzz(fuzzer(tmp_path, "-O2"), seed=1, rounds=200)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_read_past_a_row_and_no_overflow(tmp_path: Path) -> None:
    sanitizers = "-fsanitize=address,undefined"
    fuzz(fuzzer(tmp_path, "-O1", "-g", sanitizers, "-fno-sanitize-recover=all"), seed=7, rounds=2000)


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    environment = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


def wheel_in(folder: Path) -> str:
    (wheel,) = folder.glob("*.whl")
    return wheel.name.split("-", 2)[2]


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("cc"), reason="no C compiler for x86-64")
def test_one_wheel_is_for_every_python(tmp_path: Path) -> None:
    assert build(tmp_path, CNCLIP_NATIVE="require").returncode == 0
    assert wheel_in(tmp_path) == "cp310-abi3-linux_x86_64.whl"
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".whl")] == []


def test_without_a_compiler_the_wheel_is_pure_and_that_is_said(tmp_path: Path) -> None:
    result = build(tmp_path, CC="/nowhere/cc")
    assert result.returncode == 0
    assert "without its compiled module: " in result.stdout + result.stderr
    assert wheel_in(tmp_path) == "py3-none-any.whl"


def test_a_release_does_not_go_without_it_unseen(tmp_path: Path) -> None:
    result = build(tmp_path, CC="/nowhere/cc", CNCLIP_NATIVE="require")
    assert result.returncode != 0
    assert not list(tmp_path.glob("*.whl"))
