"""Tables of plain text: at 80 columns, in a pipe, with Chinese in them."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import unicodedata

import pytest
from cnclip_console.table import columns_of, table_lines

HEADER = ("picture", "caption", "probability")
ROWS = [("a.jpg", "皮卡丘", "99.1%"), ("一只鸟.jpg", "bird", "7.0%")]


def test_columns_line_up_whatever_is_in_them() -> None:
    lines = table_lines(HEADER, ROWS)
    assert lines[0] == "picture     caption  probability"
    ends = {columns_of(line) for line in lines}
    assert len(ends) == 1  # numbers stand at the right
    starts = {
        columns_of(line[: line.index(cell)]) for line, cell in zip(lines, ("caption", "皮卡丘", "bird"), strict=True)
    }
    assert starts == {12}


def test_rows_that_are_too_wide_become_a_line_for_each_cell_and_lose_nothing() -> None:
    lines = table_lines(HEADER, ROWS, width=30)
    assert lines[:3] == ["- picture      a.jpg", "  caption      皮卡丘", "  probability  99.1%"]
    assert all(cell in "\n".join(lines) for row in ROWS for cell in row)
    width = max(map(columns_of, table_lines(HEADER, ROWS)))
    assert table_lines(HEADER, ROWS, width) == table_lines(HEADER, ROWS)
    assert table_lines(HEADER, ROWS, width - 1) != table_lines(HEADER, ROWS)


def test_no_header_is_no_line_and_no_row_is_no_error() -> None:
    assert table_lines(("", ""), [("a", "1"), ("bc", "22")]) == ["a    1", "bc  22"]
    assert table_lines(HEADER, []) == ["picture  caption  probability"]


@pytest.mark.parametrize("text", ["abc", "皮卡丘", "e\u0301", "ａ", "✓", ""])
def test_width(text: str) -> None:
    shown = unicodedata.normalize("NFC", text)
    assert columns_of(text) == sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in shown)


CODE = f"from cnclip_console import print_table; print_table({HEADER!r}, {ROWS!r}, 'title')"


def output(columns: int | None, **environment: str) -> bytes:
    """What is printed on a terminal so wide; in a pipe for None."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-c", CODE]
    if columns is None:
        return subprocess.run(command, env=env, capture_output=True, timeout=60, check=True).stdout
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        subprocess.run(command, env=env, stdout=theirs, timeout=60, check=True)
        return os.read(ours, 65536).replace(b"\r\n", b"\n")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_pipe_gets_a_line_for_each_row_and_a_narrow_terminal_one_for_each_cell() -> None:
    whole = "".join(f"{line}\n" for line in ["title", *table_lines(HEADER, ROWS)]).encode()
    assert output(None, COLUMNS="10") == output(80) == whole
    narrow = output(20)
    assert narrow == "".join(f"{line}\n" for line in ["title", *table_lines(HEADER, ROWS, 20)]).encode()
    assert b"\x1b" not in whole + narrow


def test_a_charset_without_chinese_ends_nothing() -> None:
    text = output(None, PYTHONIOENCODING="ascii")
    assert rb"\u76ae\u5361\u4e18" in text
    assert output(None, LC_ALL="C") == output(None)
