"""The form of a refusal."""

from __future__ import annotations

import json

import pytest
from cnclip_templates.cnclip_bad_rows import bad_rows_message


def parse(message: str) -> dict[str, str]:
    assert message.startswith("bad rows: ")
    rows: dict[str, str] = json.loads(message.removeprefix("bad rows: "))
    return rows


def test_rows_in_order_on_one_line_in_ascii() -> None:
    message = bad_rows_message({7: "two\nlines", 2: "坏"})
    assert message.isascii()
    assert "\n" not in message
    assert list(parse(message).items()) == [("2", "坏"), ("7", "two lines")]


@pytest.mark.parametrize("rows", [1, 20, 250, 1000])
def test_long_reasons_are_cut_before_rows_are(rows: int) -> None:
    message = bad_rows_message(dict.fromkeys(range(rows), "x" * 1000))
    assert len(message) <= 4096 or rows > 250
    assert list(parse(message)) == [str(row) for row in range(rows)]
