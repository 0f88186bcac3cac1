"""Which Pillows resize alike: the order of the two passes is seen in a pixel's last bits, and has changed twice."""

from __future__ import annotations

import re

__all__ = ["what_differs"]

# From which version on, and what it shrinks in height first; all else in width first. `cnclip_resize` has the formulas.
_HEIGHT_FIRST = (
    ((13, 0), "pictures that shrink more than twice as much in height as in width"),
    ((12, 2), "pictures more than a hundred times as high as wide"),
    ((0, 0), ""),
)
_NEWEST_KNOWN = (13, 0)


def what_differs(one: str, other: str) -> str:
    """Says which pictures two versions of Pillow may give other pixels of; empty where none are known.

    Args:
        one: A version, such as `12.3.0`.
        other: Another one.
    """
    ours, theirs = _release(one), _release(other)
    if ours == theirs:
        return ""
    if max(ours, theirs) > _NEWEST_KNOWN:
        return "any pictures, for all that is known of the newer one"
    # Of two rules the wider one tells: it holds the shapes of the other.
    rules = sorted({next(rule for rule in _HEIGHT_FIRST if rule[0] <= release) for release in (ours, theirs)})
    return rules[-1][1] if len(rules) > 1 else ""


def _release(version: str) -> tuple[int, int]:
    """The first two numbers; (0, 0) of what is no version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
