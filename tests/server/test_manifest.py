"""A repository whose files are not those that its manifest vouches for."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cnclip_server import RepositoryError, TritonServer
from cnclip_server._cli import app
from cnclip_server._manifest import changed_files
from typer.testing import CliRunner

FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


@pytest.fixture
def vouched(repository: Any) -> Path:
    """The repository of one model, with a manifest of its files."""
    path: Path = repository.path
    (path / "echo" / "1" / "model.data").write_bytes(b"weights" * 300_000)
    files = {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }
    assert len(files) == 3
    (path / "manifest.json").write_text(json.dumps({"schema": 1, "models": {}, "files": files}))
    return path


def turn_a_byte(repository: Path) -> None:
    path = repository / "echo/1/model.data"
    content = bytearray(path.read_bytes())
    content[1_500_000] ^= 1
    path.write_bytes(content)


def cut(repository: Path) -> None:
    path = repository / "echo/1/model.data"
    path.write_bytes(path.read_bytes()[:-1])


def edit(repository: Path) -> None:
    with (repository / "echo/config.pbtxt").open("a") as file:
        file.write("# mine\n")


def remove(repository: Path) -> None:
    (repository / "echo/1/model.onnx").unlink()


def add(repository: Path) -> None:
    (repository / "echo/1/model.py").write_text("import os")


CHANGES: dict[Callable[[Path], None], str] = {
    turn_a_byte: "echo/1/model.data was changed",
    cut: "echo/1/model.data was changed",
    edit: "echo/config.pbtxt was changed",
    remove: "echo/1/model.onnx is missing",
    add: "echo/1/model.py was added",
}


@pytest.mark.parametrize("unreadable", ["echo/1/model.data", "echo/config.pbtxt", "manifest.json"])
@pytest.mark.parametrize("options", [[], ["--serve-changed"]])
@pytest.mark.parametrize(
    ("number", "fix"), [(errno.EACCES, "chmod -R a+rX"), (errno.EIO, "see to its disk")], ids=["denied", "disk"]
)
def test_what_cannot_be_read_is_not_missing(
    vouched: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str, options: list[str], number: int, fix: str
) -> None:
    """As after a build under umask 077, for the user that serves: all that is told is who must read what."""
    refuse_to_open(monkeypatch, vouched / unreadable, number)
    result = CliRunner().invoke(app, [str(vouched), *FREE_PORTS, *options])
    assert result.exit_code == 1
    assert f"{unreadable} cannot be read ({os.strerror(number)}); " in result.output
    assert fix in result.output
    assert len(result.output.strip().splitlines()) == 1, result.output


def test_a_config_that_cannot_be_read(repository: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No manifest is there to tell: it was the temporary folder that could not be used."""
    refuse_to_open(monkeypatch, repository.path / "echo/config.pbtxt", errno.EACCES)
    with pytest.raises(RepositoryError, match=r"echo/config.pbtxt cannot be read \(Permission denied\); let the user"):
        TritonServer(repository.path).start()


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path:
            raise OSError(number, os.strerror(number), str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_told_before_it_is_served(vouched: Path, change: Callable[[Path], None], tmp_path: Path) -> None:
    assert changed_files(vouched) == []
    change(vouched)
    assert changed_files(vouched) == [CHANGES[change]]
    marker = tmp_path / "started"
    binary = tmp_path / "tritonserver"
    (tmp_path / "backends/onnxruntime").mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\ntouch {marker}\nexit 1\n")
    binary.chmod(0o755)
    command = [str(vouched), *FREE_PORTS, "--tritonserver", str(binary)]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert CHANGES[change] in result.stderr
    assert "serve it with --serve-changed" in result.stderr
    assert not marker.exists()
    told = CliRunner().invoke(app, [*command, "--serve-changed"])
    assert told.stderr.startswith(f"warning: {vouched} is not what its manifest.json says: {CHANGES[change]}")


def test_bytecode_is_no_change(vouched: Path) -> None:
    (vouched / "echo/1/__pycache__").mkdir()
    (vouched / "echo/1/__pycache__/model.cpython-311.pyc").touch()
    assert changed_files(vouched) == []


def test_a_manifest_without_hashes_says_nothing(vouched: Path) -> None:
    (vouched / "manifest.json").write_text(json.dumps({"schema": 1, "models": {}}))
    edit(vouched)
    assert changed_files(vouched) == []
    (vouched / "manifest.json").unlink()
    assert changed_files(vouched) == []


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"files": []}', '{"files": {"../../etc/passwd": "a"}}', '{"files": {"a": 1}}']
)
def test_a_damaged_manifest(vouched: Path, text: str) -> None:
    (vouched / "manifest.json").write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest.json (cannot be read|is damaged)"):
        changed_files(vouched)
