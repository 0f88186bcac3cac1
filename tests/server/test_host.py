from __future__ import annotations

import os
import resource
import shutil
import stat
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from cnclip_server import BinaryNotFound, UnsupportedHost, _host, require_tritonserver
from cnclip_server._backends import STAND_IN, assemble_backends
from cnclip_server._binary import Binary
from cnclip_server._host import (
    check_glibc,
    check_numpy,
    environment,
    has_all_its_threads,
    libpython_folder,
    python_version,
)

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path) -> Binary:
    """The layout of nvidia-pytriton, with empty files."""
    home = tmp_path / "site" / "pytriton" / "tritonserver"
    for file in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        "backends/square/libtriton_square.so",
        "python_backend_stubs/3.9/triton_python_backend_stub",
        f"python_backend_stubs/{VERSION}/triton_python_backend_stub",
    ):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).touch()
    (tmp_path / "site" / "nvidia_pytriton.libs").mkdir()
    return Binary(home / "bin" / "tritonserver")


def test_backend_directory(wheel: Binary, tmp_path: Path) -> None:
    target = tmp_path / "backends"
    target.mkdir()
    assemble_backends(wheel, target)
    python = target / "python"
    assert sorted(entry.name for entry in python.iterdir()) == [
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    ]
    # Triton refuses a library that a link leads out of the directory, and needs the stub's own surroundings.
    assert not (python / "libtriton_python.so").is_symlink()
    stub = wheel.home / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
    assert (python / "triton_python_backend_stub").resolve() == stub
    modules = {path.name for path in STAND_IN.glob("*.py")} | {"cnclip_machine.py"}
    assert {path.name for path in (target / "onnxruntime").glob("*.py") if not path.is_symlink()} == modules
    assert (target / "square" / "libtriton_square.so").is_file()


def test_the_stand_in_of_a_read_only_installation(
    wheel: Binary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its modes were copied: nothing more could be put beside it, and the folder stayed there for ever."""
    installed, target = tmp_path / "installed", tmp_path / "backends"
    shutil.copytree(STAND_IN, installed)
    target.mkdir()
    monkeypatch.setattr("cnclip_server._backends.STAND_IN", installed)
    installed.chmod(0o555)
    try:
        assemble_backends(wheel, target)
    finally:
        installed.chmod(0o755)
    assert (target / "onnxruntime").stat().st_mode & stat.S_IWUSR


def test_the_stand_in_gives_way_to_nothing_else(wheel: Binary, tmp_path: Path) -> None:
    """A half-installed onnxruntime folder without its library must not shadow the stand-in."""
    (wheel.home / "backends" / "onnxruntime").mkdir()
    target = tmp_path / "backends"
    target.mkdir()
    assemble_backends(wheel, target)
    assert (target / "onnxruntime" / "model.py").is_file()


def test_a_build_with_one_stub(wheel: Binary, tmp_path: Path) -> None:
    stub = wheel.home / "backends" / "python" / "triton_python_backend_stub"
    stub.touch()
    (wheel.home / "python_backend_stubs").rename(tmp_path / "gone")
    target = tmp_path / "backends"
    target.mkdir()
    assemble_backends(wheel, target)
    assert (target / "python" / "triton_python_backend_stub").resolve() == stub


def test_unsupported_python_names_the_supported(wheel: Binary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_server._backends.python_version", lambda: "3.99")
    (tmp_path / "backends").mkdir()
    with pytest.raises(UnsupportedHost, match=rf"for Python 3\.99, only for 3\.9, {VERSION}; run with one"):
        assemble_backends(wheel, tmp_path / "backends")


def test_no_python_backend(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedHost, match="neither an onnxruntime backend nor a python backend"):
        assemble_backends(Binary(tmp_path / "bin" / "tritonserver"), tmp_path)


def test_what_is_asked_before_anything_is_started(wheel: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONSERVER", str(wheel.path))
    with pytest.raises(BinaryNotFound, match="is not an executable file"):
        require_tritonserver()
    wheel.path.chmod(0o755)
    require_tritonserver()
    monkeypatch.setattr("cnclip_server._backends.python_version", lambda: "3.99")
    with pytest.raises(UnsupportedHost, match=r"no Python backend for Python 3\.99"):
        require_tritonserver()
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.31")
    with pytest.raises(UnsupportedHost, match=r"this machine has 2\.31"):
        require_tritonserver()
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 64))
    with pytest.raises(UnsupportedHost, match="no more than 64 files"):
        require_tritonserver()


def test_python_version() -> None:
    assert python_version() == VERSION


@pytest.mark.parametrize("version", ["glibc 2.35", "glibc 2.36", "glibc 3.0"])
def test_new_enough_glibc(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: version)
    check_glibc()


@pytest.mark.parametrize(
    ("version", "message"),
    [("glibc 2.31", "this machine has 2.31"), ("glibc 2.4", "2.4"), ("", "Linux with glibc 2.35"), (None, "Linux")],
)
def test_other_c_libraries(version: str | None, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: version)
    with pytest.raises(UnsupportedHost, match=message):
        check_glibc()


def test_no_glibc_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    with pytest.raises(UnsupportedHost, match="needs Linux with glibc"):
        check_glibc()


@pytest.mark.parametrize(
    ("installed", "asked", "refused"),
    [
        ("2.2.6", ["numpy<2.0.0,>=1.21", "pyzmq>=23.0"], True),
        ("2.2.6", ["numpy>=1.21", "numpydoc<2"], False),
        ("2.2.6", None, False),
        ("1.26.4", ["numpy<2.0.0,>=1.21"], False),
    ],
)
def test_numpy_2(installed: str, asked: list[str] | None, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: installed)
    monkeypatch.setattr("importlib.metadata.requires", lambda name: asked)
    if refused:
        with pytest.raises(UnsupportedHost, match=r"numpy 2\.2\.6 is installed; run `pip install 'numpy<2'`"):
            check_numpy()
    else:
        check_numpy()


def test_numpy_of_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", missing)
    check_numpy()


def _without_libpython(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(folder))
    monkeypatch.setattr(sys, "base_prefix", str(folder))
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)


def test_libpython_beside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_libpython(monkeypatch, tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / f"libpython{VERSION}.so.1.0").touch()
    assert libpython_folder(None) == tmp_path / "lib"


def test_libpython_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_libpython(monkeypatch, tmp_path)
    (tmp_path / f"libpython3-419a3a08.{sys.version_info.minor}.so.1.0").touch()
    assert libpython_folder(tmp_path) is None


def test_libpython_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_libpython(monkeypatch, tmp_path)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: "libpython.so" if name == f"python{VERSION}" else None)
    assert libpython_folder(None) is None


def test_python_without_shared_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _without_libpython(monkeypatch, tmp_path)
    with pytest.raises(
        UnsupportedHost, match=rf"apt install libpython{VERSION}\), or build Python with --enable-shared"
    ):
        libpython_folder(tmp_path)


def test_environment(wheel: Binary, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"PATH": "/bin", "PYTHONPATH": "/theirs", "MALLOC_TRIM_THRESHOLD_": "7", "HOME": "/h"}
    monkeypatch.setattr("os.environ", given)
    made = environment(wheel)
    assert made["PATH"].split(":") == [str(Path(sys.executable).parent), "/bin"]
    assert str(wheel.home.parent.parent / "nvidia_pytriton.libs") in made["LD_LIBRARY_PATH"].split(":")
    assert "" not in made["LD_LIBRARY_PATH"].split(":")
    assert sysconfig.get_path("purelib") in made["PYTHONPATH"].split(":")
    assert made["PYTHONPATH"].endswith(":/theirs")
    assert made["MALLOC_TRIM_THRESHOLD_"] == "7"
    assert made["MALLOC_MMAP_THRESHOLD_"] == str(32 * 2**20)
    assert made["HOME"] == "/h"
    # PyPI's onnxruntime reports to Microsoft otherwise; whoever wants that may say so.
    assert made["ORT_DISABLE_TELEMETRY"] == "1"
    assert made["PYTHONUTF8"] == "1"
    given["ORT_DISABLE_TELEMETRY"] = "0"
    assert environment(wheel)["ORT_DISABLE_TELEMETRY"] == "0"


def test_without_onnx_runtime_it_is_said_before_anything_starts(
    wheel: Binary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedHost, match=r"pip install 'cn-clip-triton\[server,cpu\]', or \[server,gpu\]"):
        assemble_backends(wheel, tmp_path)


def test_a_user_who_has_all_the_threads_that_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _host._threads_of(os.getuid()) > _host._threads_of(54_321) == 0
    monkeypatch.setattr(_host, "_threads_of", {1: 40}.__getitem__)
    for user, most, has_all in ((1, 40, True), (1, 41, False), (1, resource.RLIM_INFINITY, False), (0, 40, False)):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        monkeypatch.setattr(resource, "getrlimit", lambda _, most=most: (most, most))
        assert has_all_its_threads() == has_all
