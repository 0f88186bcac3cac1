"""Ids as JSON, written and read many at once as one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import BadFile
from cnclip_client._vocabulary import Kind
from cnclip_client.extraction._writing import told_apart
from cnclip_client.features import read_features
from cnclip_client.features._ids import id_line, ids_of
from cnclip_client.sources import Item

IDS = [0, -7, 2**70, True, "a", "", "七", 'a/\x00"\\\n', "\udcff", "七\udcff"]


@pytest.mark.parametrize("one", IDS)
def test_an_id_is_written_as_json_writes_it(one: Any) -> None:
    has_bytes = "\udcff" in str(one)
    assert id_line(one) == json.dumps(one, ensure_ascii=has_bytes).encode()
    assert json.loads(id_line(one)) == one


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("one", IDS)
@pytest.mark.parametrize("value", ["字", "a\ud800", None])
def test_what_a_job_remembers_of_its_items(kind: Kind, one: Any, value: str | None) -> None:
    assert json.loads(told_apart(kind, Item(one, value))) == [one, value if kind == "text" else None]


def test_many_lines_are_read_at_once() -> None:
    assert ids_of([id_line(one) + b"\n" for one in IDS]) == IDS
    assert ids_of([b"1\n", b'"a"']) == [1, "a"]
    assert ids_of([]) == []


@pytest.mark.parametrize(
    "lines", [[b"1, 2\n"], [b"[1\n", b"2]\n"], [b"1\n", b"\n"], [b"1,\n", b"2"], [b'"a\n', b'b"\n']]
)
def test_lines_that_are_not_a_value_each_are_told(lines: list[bytes]) -> None:
    with pytest.raises(ValueError, match="."):
        ids_of(lines)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (b"1\n2, 3\n4\n", "line 2 is no JSON value"),
        (b"1\n\n3\n", "line 2 is no JSON value"),
        (b"[1\n2]\n3\n", "line 1 is no JSON value"),
        (b"1\n2\n[3]\n", r"line 3: the id \[3\]"),
        (b"1, 2\n[3\n4]\n", "line 1: the id|line 1 is no JSON value|line 3: the id"),
    ],
)
def test_ids_beside_an_array_that_are_not_one_a_line_are_refused(tmp_path: Path, lines: bytes, told: str) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 2), np.float32))
    (tmp_path / "a.ids.jsonl").write_bytes(lines)
    with pytest.raises(BadFile, match=told):
        list(read_features(tmp_path / "a.npy", "image"))


def test_ids_beside_an_array_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((2, 1), 1, np.float32))
    (tmp_path / "a.ids.jsonl").write_bytes(b"\xef\xbb\xbf1\n2\n")
    assert [block.ids.tolist() for block in read_features(tmp_path / "a.npy", "image")] == [[1, 2]]
