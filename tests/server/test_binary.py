from __future__ import annotations

import importlib.machinery
import sys
from pathlib import Path

import pytest
from cnclip_server import BinaryNotFound
from cnclip_server._binary import Binary, find_binary


def _executable(path: Path, content: bytes = b"#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """One tritonserver in each of the four places, and an environment that has them."""
    wheel = tmp_path / "site" / "pytriton"
    spec = importlib.machinery.ModuleSpec("pytriton", None, is_package=True)
    spec.submodule_search_locations = [str(wheel)]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name == "pytriton" else None)
    monkeypatch.setenv("TRITONSERVER", str(tmp_path / "variable" / "tritonserver"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    return {
        "explicit": _executable(tmp_path / "explicit" / "tritonserver"),
        "variable": _executable(tmp_path / "variable" / "tritonserver"),
        "path": _executable(tmp_path / "path" / "tritonserver"),
        "wheel": _executable(wheel / "tritonserver" / "bin" / "tritonserver"),
    }


def test_search_order(installed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_binary(installed["explicit"]).path == installed["explicit"]
    assert find_binary().path == installed["variable"]
    monkeypatch.delenv("TRITONSERVER")
    assert find_binary().path == installed["path"]
    monkeypatch.setenv("PATH", "")
    assert find_binary().path == installed["wheel"]


def test_the_wheel_is_not_imported(installed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytriton", raising=False)
    monkeypatch.delenv("TRITONSERVER")
    monkeypatch.setenv("PATH", "")
    find_binary()
    assert "pytriton" not in sys.modules


def test_nothing_installed_names_every_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv("TRITONSERVER", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BinaryNotFound) as raised:
        find_binary()
    for way in ("pip install --no-deps nvidia-pytriton", "TRITONSERVER=", "NVIDIA's container"):
        assert way in str(raised.value)


def test_a_named_binary_is_not_replaced_by_another(installed: dict[str, Path], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(BinaryNotFound, match="missing is not an executable file"):
        find_binary(missing)
    installed["variable"].chmod(0o644)
    with pytest.raises(BinaryNotFound, match=r"TRITONSERVER=.*not an executable file"):
        find_binary()


def test_links_are_followed_to_the_backends(tmp_path: Path) -> None:
    real = _executable(tmp_path / "opt" / "tritonserver" / "bin" / "tritonserver")
    link = tmp_path / "bin" / "tritonserver"
    link.parent.mkdir()
    link.symlink_to(real)
    binary = find_binary(link)
    assert binary.home == tmp_path / "opt" / "tritonserver"
    assert not binary.has_onnxruntime
    backend = binary.home / "backends" / "onnxruntime"
    backend.mkdir(parents=True)
    (backend / "libtriton_onnxruntime.so").touch()
    assert binary.has_onnxruntime


def test_flags_are_read_from_the_executable(tmp_path: Path) -> None:
    binary = Binary(_executable(tmp_path / "a", b"\x7fELF\0grpc-port\0metrics-address\0"))
    assert binary.knows_flag("--metrics-address")
    assert not binary.knows_flag("--metrics-addr")
    assert not binary.knows_flag("--no-such-flag")
    assert not Binary(_executable(tmp_path / "empty", b"")).knows_flag("--grpc-port")


@pytest.mark.triton
def test_the_installed_binary_knows_its_flags() -> None:
    binary = find_binary()
    assert binary.knows_flag("--metrics-address")
    assert not binary.knows_flag("--no-such-flag")
