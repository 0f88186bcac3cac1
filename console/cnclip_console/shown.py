"""Names of files, ids and words of others as they are shown: none may move a terminal's cursor or break its line.

And counts, which are of one thing or of several.
"""

from __future__ import annotations

import re

__all__ = ["counted", "visible"]

# Control characters, with which names set a terminal's title and colours; line breaks; marks of the writing direction,
# with which a name reads as another; and lone surrogates, which no terminal takes.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Returns a text on one line with such characters written out, as `\x1b`; a path's bytes that are no UTF-8, too.

    All else stays as it is, so that Chinese is Chinese, and what was written out once stays so.
    """
    return _UNSEEN.sub(_written_out, text)


def counted(count: int, one: str) -> str:
    """Returns how many there are, and of what: `1 item`, `2,000 items`."""
    return f"{count:,} {one}{'s' * (count != 1)}"


def _written_out(found: re.Match[str]) -> str:
    one = ord(found[0])
    if 0xDC80 <= one <= 0xDCFF:  # a byte of a path, as Python holds it
        return f"\\x{one - 0xDC00:02x}"
    return found[0].encode("unicode_escape").decode()
