"""Files are read ahead by other threads, in their order; the caller's items are taken by the caller's thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cnclip_client._ways.sending
import pytest
from cnclip_client import Client, Limits
from cnclip_client._flow.items import Unsendable
from cnclip_client._flow.prefetch import Prefetch
from cnclip_client._flow.read_ahead import reading_ahead

from tests.client.conftest import features_of


class Gate:
    """A load that waits until so many are under way at once, which proves that they were."""

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties)
        self.threads: set[int] = set()

    def __call__(self, item: object) -> bytes:
        self.threads.add(threading.get_ident())
        self.barrier.wait(60)
        return str(item).encode()


@pytest.mark.parametrize("is_list", [True, False])
def test_a_requests_worth_is_read_at_once(is_list: bool) -> None:
    gate = Gate(8)
    names = [str(row) for row in range(32)]
    found = list(reading_ahead(names if is_list else iter(names), gate, rows=8, readers=8))
    assert found == [name.encode() for name in names]
    assert len(gate.threads) == 8
    assert threading.get_ident() not in gate.threads


def test_a_list_is_read_well_ahead() -> None:
    gate = Gate(16)
    assert len(list(reading_ahead([str(row) for row in range(48)], gate, rows=4, readers=16))) == 48


def test_an_iterator_is_asked_for_a_requests_worth_by_the_callers_thread() -> None:
    asked: list[int] = []

    def source() -> Iterator[str]:
        mine = threading.get_ident()
        for row in range(20):
            assert threading.get_ident() == mine
            asked.append(row)
            yield str(row)

    ready = reading_ahead(source(), lambda item: str(item).encode(), rows=4, readers=8)
    for row in range(20):
        assert next(ready) == str(row).encode()
        assert len(asked) <= (row // 4 + 1) * 4
    with pytest.raises(StopIteration):
        next(ready)


def test_what_is_no_path_is_not_asked_for_before_it_is_needed() -> None:
    asked: list[int] = []

    def source() -> Iterator[Any]:
        for row in range(6):
            asked.append(row)
            yield b"bytes" if row % 2 else str(row)

    threads = []

    def load(item: object) -> bytes:
        if isinstance(item, bytes):
            threads.append(threading.get_ident())
        return b"x"

    ready = reading_ahead(source(), load, rows=100, readers=4)
    for row in range(6):
        assert next(ready) == b"x"
        assert len(asked) <= row + 2
    assert set(threads) == {threading.get_ident()}


def test_reasons_and_errors_come_in_their_place() -> None:
    def load(item: object) -> bytes:
        if item == "2":
            raise Unsendable("is torn")
        if item == "5":
            raise OSError("the disk is gone")
        return str(item).encode()

    ready = reading_ahead([str(row) for row in range(9)], load, rows=2, readers=4)
    found = [next(ready) for _ in range(5)]
    assert [str(one) for one in found] == ["b'0'", "b'1'", "is torn", "b'3'", "b'4'"]
    with pytest.raises(OSError, match="disk"):
        next(ready)

    def source() -> Iterator[str]:
        yield "0"
        raise LookupError("the database went away")

    ready = reading_ahead(source(), load, rows=8, readers=4)
    assert next(ready) == b"0"
    with pytest.raises(LookupError, match="database"):
        next(ready)


def test_what_is_read_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnclip_client._flow.read_ahead._MOST_BYTES", 1000)
    read: list[object] = []

    def load(item: object) -> bytes:
        read.append(item)
        return bytes(600)

    ready = reading_ahead([str(row) for row in range(50)], load, rows=2, readers=2)
    for row in range(50):
        next(ready)
        assert len(read) <= row + 2 + 4  # two hold more than may be held, and as many as there are places for


def test_threads_end_with_the_run() -> None:
    before = threading.active_count()
    ready = reading_ahead([str(row) for row in range(500)], lambda item: b"x", rows=8, readers=8)
    next(ready)
    ready.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("reader-"):
            thread.join(30)
    assert threading.active_count() <= before


def test_prefetch_has_as_many_threads_as_it_takes_not_to_wait() -> None:
    gate = Gate(12)
    with Prefetch(iter(range(36)), lambda row: gate(row) and row, lambda row: 0, threads=12) as loaded:
        assert list(loaded) == list(range(36))
    assert len(gate.threads) == 12
    with Prefetch(iter(range(1000)), lambda row: row, lambda row: 0, threads=64) as loaded:
        assert sum(loaded) == 499500


def test_the_client_reads_a_lists_files_at_once(tmp_path: Path, triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for row in range(24):
        paths.append(tmp_path / f"{row}.jpg")
        paths[-1].write_bytes(b"picture %d" % row)
    gate = Gate(8)

    def slow(item: object, item_bytes: int) -> bytes:
        gate(item)
        return Path(str(item)).read_bytes()

    monkeypatch.setitem(cnclip_client._ways.sending._BYTES, "image", slow)
    with Client(triton.url, model="vit-b-16", limits=Limits(readers=8)) as client:
        features = client.encode_images(paths, normalize=False)
    assert features.tolist() == [features_of(b"picture %d" % row).tolist() for row in range(24)]
    assert threading.get_ident() not in gate.threads
