"""What others have named is shown, and does nothing to a terminal."""

from __future__ import annotations

import os

import pytest
from cnclip_console import counted, told, visible
from cnclip_console.table import columns_of, table_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;owned\x07\x1b[31m.jpg", r"a\x1b]0;owned\x07\x1b[31m.jpg"),
        ("一\t二\n三\r", r"一\t二\n三\r"),
        ("\x7f\x9b1m\x85", r"\x7f\x9b1m\x85"),
        ("a\u2028b\u2029", r"a\u2028b\u2029"),
        ("c\u202egpj.exe\u2066", r"c\u202egpj.exe\u2066"),  # reads as exe.jpg
        (os.fsdecode(b"caf\xe9"), r"caf\xe9"),
        ("half \ud83d", r"half \ud83d"),
        ("皮卡丘\u3000 é 👩‍👧 \\x1b", "皮卡丘\u3000 é 👩‍👧 \\x1b"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out_and_all_else_stays(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


def test_tables_and_errors_are_made_so() -> None:
    lines = table_lines(("a\x1b[1m", "b"), [("x\ny", "皮\x9b"), (os.fsdecode(b"\xff"), "卡")])
    assert lines == [r"a\x1b[1m  b", r"x\ny      皮\x9b", r"\xff      卡"]
    assert max(map(columns_of, lines)) == 16
    assert table_lines(("a\x1b", "b"), [("c", "d\x1b")], 3) == [r"- a\x1b  c", r"  b      d\x1b"]
    assert (
        told(OSError(2, "No such file or directory", "a\x1b[2J"))
        == r"a\x1b[2J: No such file or directory; check the path"
    )
    assert told(ValueError("a\nb")) == r"a\nb"


def test_one_of_a_thing_is_none_of_several() -> None:
    assert [counted(count, "item") for count in (0, 1, 2, 2000)] == ["0 items", "1 item", "2 items", "2,000 items"]
