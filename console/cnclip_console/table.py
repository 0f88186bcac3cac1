"""Tables of plain text that are right at 80 columns, in a pipe, without colour, and with Chinese in them."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence

from cnclip_console.shown import visible

__all__ = ["columns_of", "print_table", "table_lines"]

_GAP = "  "


def columns_of(text: str) -> int:
    """Returns how many columns of a terminal a text takes: a Chinese character two, an accent none."""
    marks = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(one) in marks else 1 + (unicodedata.east_asian_width(one) in "WF") for one in text
    )


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Prints a table on stdout: on a terminal as `table_lines` fits it, elsewhere a line for each row in any case.

    Args:
        header: Names of the columns.
        rows: Cells of each row, as many as there are columns.
        title: What stands above it.
    """
    width = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None
    text = "".join(f"{line}\n" for line in [*([title] if title else []), *table_lines(header, rows, width)])
    charset = sys.stdout.encoding or "utf-8"
    # A charset that lacks a character ends no command.
    sys.stdout.write(text.encode(charset, "backslashreplace").decode(charset))
    sys.stdout.flush()


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> list[str]:
    """Returns a table's lines: columns side by side, numbers at the right of theirs.

    Args:
        header: Names of the columns.
        rows: Cells of each row, as many as there are columns.
        width: Of the terminal, in columns. Rows that are wider become a line for each cell, named after its column;
            without a header they are left for the terminal to fold. None for any width.
    """
    all_rows = [[visible(cell) for cell in row] for row in (header, *rows)]
    widths = [max(columns_of(row[column]) for row in all_rows) for column in range(len(header))]
    if width is None or not any(header) or sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
        right = [
            len(all_rows) > 1 and all(_is_number(row[column]) for row in all_rows[1:]) for column in range(len(header))
        ]
        lines = (
            _GAP.join(_padded(cell, widths[column], right[column]) for column, cell in enumerate(row)).rstrip()
            for row in (all_rows if any(header) else all_rows[1:])
        )
        return list(lines)
    names = max(map(columns_of, all_rows[0]))
    return [
        f"{'  ' if column else '- '}{_padded(name, names, False)}{_GAP}{cell}".rstrip()
        for row in all_rows[1:]
        for column, (name, cell) in enumerate(zip(all_rows[0], row, strict=True))
    ]


def _padded(cell: str, width: int, right: bool) -> str:
    space = " " * (width - columns_of(cell))
    return space + cell if right else cell + space


def _is_number(cell: str) -> bool:
    try:
        float(cell.removesuffix("%").replace(",", ""))
    except ValueError:
        return not cell
    return True
