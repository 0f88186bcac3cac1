"""What all tests of the resize share."""

from __future__ import annotations

from collections.abc import Iterator

import cnclip_resize
import pytest


@pytest.fixture(autouse=True)
def undecided() -> Iterator[None]:
    """Who resizes is decided again by every test, and by those after it."""
    for decision in (cnclip_resize._why_pillow, cnclip_resize._why_whole):
        decision.cache_clear()
    yield
    for decision in (cnclip_resize._why_pillow, cnclip_resize._why_whole):
        decision.cache_clear()
