"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from cnclip_builder.errors import BuildError, MissingRequirementError
from cnclip_builder.system.atomic import held_still, locked, replacing_file, replacing_folder, require_writable


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_folder_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    for text in ("old", "new"):
        with replacing_folder(target) as new:
            (new / text).write_text(text)
    assert content(tmp_path) == {"deep/target/new": "new"}


def test_a_link_stays_one_and_the_folder_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/target")
    for text in ("old", "new"):
        require_writable(tmp_path / "link")
        with locked(tmp_path / "link"), replacing_folder(tmp_path / "link") as new:
            assert new.parent == tmp_path / "disk"  # where there is room for it
            (new / text).write_text(text)
            with pytest.raises(BuildError, match="another process"), locked(tmp_path / "disk" / "target"):
                pass
    assert (tmp_path / "link").readlink() == Path("disk/target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert content(tmp_path / "disk") == {"target/new": "new", ".target.lock": ""}


def test_a_link_stays_one_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/file")
    for text in ("old", "new"):
        require_writable(tmp_path / "link")
        with replacing_file(tmp_path / "link") as new:
            new.write_text(text)
    assert (tmp_path / "link").readlink() == Path("disk/file")
    assert content(tmp_path / "disk") == {"file": "new"}


def test_no_file_takes_the_place_of_a_device_or_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        require_writable(tmp_path / "pipe")
        with replacing_file(tmp_path / "pipe") as given:
            given.write_text("page")
        assert os.read(reader, 100) == b"page"
    finally:
        os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


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


def test_what_is_read_is_held_still_by_any_number_of_readers(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with held_still(target), held_still(target):
        with pytest.raises(BuildError, match="another process"), locked(target):
            pass
    with locked(target), pytest.raises(BuildError, match="another process is building"), held_still(target):
        pass


def test_what_is_read_may_lie_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def read_only(path: Path, mode: str = "r", *more: Any, **other: Any) -> Any:
        if mode != "r":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *more, **other)

    with locked(tmp_path / "built"):
        monkeypatch.setattr(Path, "open", read_only)
        with pytest.raises(BuildError, match="another process is building"), held_still(tmp_path / "built"):
            pass
    with held_still(tmp_path / "built"), held_still(tmp_path / "copied"):
        pass
    assert content(tmp_path) == {".built.lock": ""}


def test_one_that_waits_goes_on_when_the_other_has_ended(tmp_path: Path, builder_log: pytest.LogCaptureFixture) -> None:
    target, entered = tmp_path / "target", threading.Event()

    def wait() -> None:
        with locked(target, wait=True):
            entered.set()

    with locked(target):
        (waiting := threading.Thread(target=wait)).start()
        while "Waiting: another process is building" not in builder_log.text:
            assert not entered.is_set()
    waiting.join()
    assert entered.is_set()


def test_what_a_killed_build_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    kept = [
        "other/a",
        ".target.lock",
        ".target.abc/a",
        ".target.b.abcdefgh.partial/a",
        ".xtarget.abcdefgh.partial/a",
        "target/a",
    ]
    for name in (".target.abcdefgh.partial/a", ".target.a_b_c_00.partial.old/a", *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with locked(tmp_path / "target"):
        assert set(content(tmp_path)) == set(kept)


def test_one_that_was_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    """Where a file system can't exchange folders, the old one is aside for a moment."""
    (tmp_path / ".target.abcdefgh.partial").mkdir()
    (old := tmp_path / ".target.abcdefgh.partial.old").mkdir()
    (old / "old").touch()
    with locked(tmp_path / "target"):
        assert set(content(tmp_path)) == {"target/old", ".target.lock"}


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


@pytest.mark.parametrize("name", [".", "sub/.."])
def test_the_current_folder_is_locked_and_replaced_as_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "target/sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "target")
    with (
        locked(Path(name)),
        pytest.raises(BuildError, match="another process is building"),
        locked(tmp_path / "target"),
    ):
        raise AssertionError
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["sub"]
    with replacing_folder(Path(name)) as new:
        (new / "new").touch()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["new"]
