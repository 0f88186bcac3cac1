"""Which versions of Pillow give other pixels, held to the shapes that the resize knows."""

from __future__ import annotations

from itertools import combinations

import pytest
from cnclip_client._flow.pillow_versions import what_differs
from cnclip_resize import _KNOWN


def test_versions_differ_where_the_resizes_rules_do() -> None:
    for one, other in combinations(_KNOWN, 2):
        assert bool(what_differs(f"{one}.0", f"{other}.1")) == (_KNOWN[one] is not _KNOWN[other]), (one, other)


@pytest.mark.parametrize(
    ("one", "other", "pictures"),
    [
        ("12.3.0", "12.3.1", ""),
        ("12.1.1", "12.3.0", "pictures more than a hundred times as high as wide"),
        ("13.0.0", "12.3.0", "pictures that shrink more than twice as much in height as in width"),
        ("13.0.0", "11.3.0", "pictures that shrink more than twice as much in height as in width"),
        ("13.1.0", "13.0.0", "any pictures, for all that is known of the newer one"),
        ("13.1.0.dev0", "13.1.0", ""),
    ],
)
def test_which_pictures(one: str, other: str, pictures: str) -> None:
    assert what_differs(one, other) == what_differs(other, one) == pictures
