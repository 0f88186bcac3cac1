"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import IO, Any

import pytest
from cnclip_builder.errors import BuildError, MissingRequirementError
from cnclip_builder.system.atomic import (
    held_still,
    link_tree,
    locked,
    replacing_file,
    replacing_folder,
    require_writable,
)

from tests.conftest import umask_of


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


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_who_may_read_a_new_folder_is_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    with umask_of(umask), replacing_folder(tmp_path / "target"):
        pass
    assert mode_of(tmp_path / "target") == 0o777 & ~umask


def test_of_what_is_read_only_a_copy_can_be_changed_and_nothing_stays(tmp_path: Path, ordinary_user: None) -> None:
    """As of a folder that was copied from a read-only disk with its modes: gigabytes stayed, and more each time."""
    (tmp_path / "target/old").mkdir(parents=True)
    (tmp_path / "target/old/file").touch()
    (tmp_path / "target/old").chmod(0o555)
    with pytest.raises(ValueError, match="x"), replacing_folder(tmp_path / "target") as new:
        shutil.copytree(tmp_path / "target", new, dirs_exist_ok=True)
        raise ValueError("x")
    assert content(tmp_path) == {"target/old/file": ""}
    with replacing_folder(tmp_path / "target") as new:
        link_tree(tmp_path / "target", new)
        (new / "old/new").touch()
    assert content(tmp_path) == {"target/old/file": "", "target/old/new": ""}


def refuse(code: int) -> Any:
    def refused(*given: Any, **options: Any) -> Any:
        raise OSError(code, os.strerror(code), "there")

    return refused


def test_a_copy_on_a_disk_that_takes_neither_links_nor_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As shared ones are, and FUSE's of object stores. shutil.copytree ended with a list of all its files."""
    (tmp_path / "source" / "1").mkdir(parents=True)
    (tmp_path / "source" / "1" / "model.onnx").write_text("weights")
    (tmp_path / "source" / "gone").symlink_to("nowhere")
    for name in ("link", "utime", "chmod"):
        monkeypatch.setattr(os, name, refuse(errno.ENOTSUP))
    with pytest.raises(FileNotFoundError, match="source/gone"):
        link_tree(tmp_path / "source", tmp_path / "torn")
    (tmp_path / "source" / "gone").unlink()
    link_tree(tmp_path / "source", tmp_path / "copy")
    assert content(tmp_path / "copy") == {"1/model.onnx": "weights"}
    monkeypatch.setattr(shutil, "copyfile", refuse(errno.ENOSPC))
    with pytest.raises(MissingRequirementError, match="no space left"), replacing_folder(tmp_path / "full") as new:
        link_tree(tmp_path / "source", new)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder_log: pytest.LogCaptureFixture, code: int
) -> None:
    """NFS without its daemon, Lustre mounted without `flock`: the user is told to see to it, as by a client's job."""
    monkeypatch.setattr(fcntl, "flock", refuse(code))
    with locked(tmp_path / "target"), held_still(tmp_path / "other"):
        pass
    assert builder_log.text.count(f"can't be locked ({os.strerror(code)}): see that only one build of it runs") == 2


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


def test_what_is_changed_in_place_is_held_by_one(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with held_still(target, alone=True):
        for other in (held_still(target), held_still(target, alone=True), locked(target)):
            with pytest.raises(BuildError, match="another process"), other:
                pass


def test_what_another_user_has_locked_once_can_be_locked(tmp_path: Path, ordinary_user: None) -> None:
    """Under umask 077 it could not: who published from a folder of somebody else's kept him from building it."""
    target, lock = tmp_path / "target", tmp_path / ".target.lock"
    with umask_of(0o077), held_still(target):
        assert mode_of(lock) == 0o644
    lock.chmod(0o444)  # what it is to others
    with locked(target), pytest.raises(BuildError, match="another process"), locked(target):
        pass


def test_a_lock_that_is_a_link_opens_nothing(tmp_path: Path) -> None:
    """In a folder of many users' it may be put there, and lead to what only this one may read."""
    secret = tmp_path / "secret"
    secret.touch(0o600)
    (tmp_path / ".target.lock").symlink_to(secret)
    with locked(tmp_path / "target"):
        pass
    assert mode_of(secret) == 0o600


def test_another_users_lock_on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ordinary_user: None) -> None:
    """There only what may be written can be locked for one alone."""

    def flock(lock: IO[str], how: int) -> None:
        if how & fcntl.LOCK_EX and not lock.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    (tmp_path / ".target.lock").touch(0o444)
    for how in (locked(tmp_path / "target"), held_still(tmp_path / "target", alone=True)):
        with pytest.raises(BuildError, match=r"target can't be written to \(Bad file descriptor\)"), how:
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


def test_what_a_killed_build_left_is_deleted_by_the_next(tmp_path: Path, ordinary_user: None) -> None:
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
    (tmp_path / ".target.abcdefgh.partial").chmod(0o555)
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
