"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from cnclip_builder.errors import BuildError, MissingRequirementError
from cnclip_builder.system.atomic import locked, replacing_file, replacing_folder, require_writable


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_folder_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    for text in ("old", "new"):
        with replacing_folder(target) as new:
            (new / text).write_text(text)
    assert content(tmp_path) == {"deep/target/new": "new"}


@pytest.mark.parametrize(
    ("raised", "expected", "complaint"),
    [
        (OSError(errno.ENOSPC, "full"), MissingRequirementError, "no space left.*nothing half-written was kept"),
        (OSError(errno.EROFS, "read-only"), BuildError, "can't be written to"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (ValueError("x"), ValueError, "x"),
    ],
)
def test_a_failure_leaves_the_old_one(
    tmp_path: Path, raised: BaseException, expected: type[BaseException], complaint: str
) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "old").write_text("old")
    file.write_text("old")
    with pytest.raises(expected, match=complaint or None), replacing_folder(folder) as new:
        (new / "half").write_text("half")
        raise raised
    with pytest.raises(expected, match=complaint or None), replacing_file(file) as partial:
        partial.write_text("half")
        raise raised
    assert content(tmp_path) == {"folder/old": "old", "file": "old"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    with pytest.raises(BuildError, match="in the way"), replacing_folder(tmp_path / "target"):
        pass
    assert content(tmp_path) == {"target": "precious"}


def test_a_target_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BuildError, match="in the way"), replacing_folder(tmp_path / "file" / "target"):
        pass


def test_without_an_exchange_of_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    for text in ("old", "new"):
        with replacing_folder(tmp_path / "target") as new:
            (new / text).write_text(text)
    assert content(tmp_path) == {"target/new": "new"}


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "target"):
        with pytest.raises(BuildError, match="another process is building"), locked(tmp_path / "target"):
            pass
    with locked(tmp_path / "target"):
        pass


@pytest.mark.parametrize("target", ["/sys/cnclip/target", "/proc/target"])
def test_a_target_that_nobody_can_write_to(target: str) -> None:
    """Such folders refuse the superuser too, as a read-only mount does."""
    folder = Path(target).parent
    folder = folder if folder.exists() else folder.parent
    with pytest.raises(BuildError, match=rf"^{folder}(/cnclip)? can't be written to.*choose another folder"):
        require_writable(Path(target))


def test_a_target_that_can_be_written_to(tmp_path: Path) -> None:
    require_writable(tmp_path / "deep" / "target")
    assert content(tmp_path) == {}
