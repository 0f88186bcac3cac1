"""A file takes another's place whole or not at all, whoever else writes it."""

from __future__ import annotations

import os
import stat
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


def test_a_whole_file_is_moved_to_its_place(tmp_path: Path) -> None:
    made, place = tmp_path / "made", tmp_path / "place"
    made.write_bytes(b"whole")
    place.write_bytes(b"old")
    put(made, place)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("place", b"whole")]
