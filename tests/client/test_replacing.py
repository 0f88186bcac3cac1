"""A file takes another's place whole or not at all, whoever else writes it."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest
from cnclip_client._replacing import put, replacing

EACH_WAY = pytest.mark.parametrize(("alone", "durable"), [(False, False), (False, True), (True, False), (True, True)])


@EACH_WAY
def test_it_takes_the_place_at_the_end_and_not_before(tmp_path: Path, alone: bool, durable: bool) -> None:
    place = tmp_path / "a.npy"
    place.write_bytes(b"old")
    with replacing(place, alone=alone, durable=durable) as file:
        file.write(b"new")
        file.flush()
        assert place.read_bytes() == b"old"
    assert place.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [place]


@EACH_WAY
def test_what_is_cut_off_leaves_no_trace(tmp_path: Path, alone: bool, durable: bool) -> None:
    place = tmp_path / "a.npy"
    place.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        with replacing(place, alone=alone, durable=durable) as file:
            file.write(b"new")
            raise KeyboardInterrupt
    assert place.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [place]


def test_two_at_once_do_not_write_into_each_others(tmp_path: Path) -> None:
    place = tmp_path / "a.npy"
    with replacing(place) as first:
        first.write(b"first")
        with replacing(place) as second:
            second.write(b"the second")
        assert place.read_bytes() == b"the second"
    assert place.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [place]


def test_one_that_is_alone_writes_over_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "a.json.partial").write_bytes(b"what a killed process left")
    with replacing(tmp_path / "a.json", alone=True) as file:
        file.write(b"{}")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"{}")]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_who_may_read_it_is_as_the_umask_says(tmp_path: Path, umask: int) -> None:
    place = tmp_path / "a.npy"
    before = os.umask(umask)
    try:
        with replacing(place) as file:
            file.write(b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o666 & ~umask


def test_what_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    place = tmp_path / "absent" / "a.npy"
    with pytest.raises(FileNotFoundError) as told, replacing(place):
        pass
    assert told.value.filename == str(place)


def test_the_disk_has_a_whole_file_before_its_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int | str] = []
    fsync, move = os.fsync, Path.replace

    def moved(self: Path, target: Path) -> Path:
        steps.append("moved")
        return move(self, target)

    def synced(file: int) -> None:
        steps.append(os.fstat(file).st_ino)
        fsync(file)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", moved)
    made = tmp_path / "made"
    made.write_bytes(b"whole")
    expected = [made.stat().st_ino, "moved", tmp_path.stat().st_ino]
    put(made, tmp_path / "place")
    assert steps == expected


def test_a_whole_file_is_moved_to_its_place(tmp_path: Path) -> None:
    made, place = tmp_path / "made", tmp_path / "place"
    made.write_bytes(b"whole")
    place.write_bytes(b"old")
    put(made, place)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("place", b"whole")]


# --- What is no regular file.


@EACH_WAY
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path, alone: bool, durable: bool) -> None:
    (tmp_path / "there").mkdir()
    real, link, second = tmp_path / "there" / "real.npy", tmp_path / "link.npy", tmp_path / "second.npy"
    link.symlink_to("there/real.npy")  # to nothing, as yet
    second.symlink_to(link)
    for content in (b"new", b"newer"):
        with replacing(second, alone=alone, durable=durable) as file:
            file.write(content)
        assert real.read_bytes() == content
    made = tmp_path / "made"
    made.write_bytes(b"put")
    put(made, second)
    assert real.read_bytes() == b"put"
    assert link.is_symlink()
    assert second.is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["link.npy", "real.npy", "second.npy", "there"]


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="takes a second file system")
def test_a_link_to_another_disk_is_followed_there(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        place, made = tmp_path / "a.npy", tmp_path / "made"
        place.symlink_to(Path(elsewhere, "a.npy"))
        made.write_bytes(b"whole")
        put(made, place)
        assert Path(elsewhere, "a.npy").read_bytes() == b"whole"
        assert [path.name for path in Path(elsewhere).iterdir()] == ["a.npy"]
    assert list(tmp_path.iterdir()) == [place]


def test_links_in_a_circle_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"), replacing(tmp_path / "a"):
        pass


@EACH_WAY
def test_a_pipe_is_written_straight_and_stays(tmp_path: Path, alone: bool, durable: bool) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with replacing(pipe, alone=alone, durable=durable) as file:
        file.write(b"new")
    reader.join(20)
    assert got == [b"new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("link", [False, True])
def test_a_device_stays_one(tmp_path: Path, link: bool) -> None:
    place = Path("/dev/null")
    if link:
        (tmp_path / "null").symlink_to(place)
        place = tmp_path / "null"
    with replacing(place) as file:
        file.write(b"new")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert not list(Path("/dev").glob("null.*"))


def write_to(stdout: int, name: str) -> None:
    """With stdout leading there."""
    before = os.dup(1)
    os.dup2(stdout, 1)
    try:
        with replacing(Path(name)) as file:
            file.write(b"new")
    finally:
        os.dup2(before, 1)
        os.close(before)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_what_is_open_already_is_written_where_it_stands(tmp_path: Path, name: str) -> None:
    out, into = os.pipe()
    with os.fdopen(out, "rb") as reader:
        with os.fdopen(into, "wb") as pipe:
            write_to(pipe.fileno(), name)
        assert reader.read() == b"new"
    with (tmp_path / "log").open("ab") as log:
        log.write(b"before, ")
        log.flush()
        write_to(log.fileno(), name)
    assert (tmp_path / "log").read_bytes() == b"before, new"
    ours, its = socket.socketpair()
    with ours, its:
        write_to(its.fileno(), name)
        assert ours.recv(100) == b"new"


def test_nothing_is_put_where_something_else_is_than_a_file(tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.write_bytes(b"whole")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("folder", "a folder"), ("pipe", "a pipe"), ("/dev/null", "a character device")):
        with pytest.raises(OSError, match=f"is {kind}, whose place no file takes: '.*{name}'"):
            put(made, tmp_path / name)
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "folder"):
        raise AssertionError("the work was done")
    assert made.read_bytes() == b"whole"
