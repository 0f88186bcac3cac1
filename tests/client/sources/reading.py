"""What the tests of sources share: reading one in every way there is."""

from __future__ import annotations

import json
from typing import Any

from cnclip_client._flow.items import Unsendable, image_bytes


def values(source: Any, ids_only: int = 0) -> list[tuple[Any, Any]]:
    """Ids with values or reasons, after a check that passing over any number of items changes no other."""
    items = list(source.items())
    for start in (1, len(items) // 3, len(items) - 1, len(items), len(items) + 1):
        if start >= 0:
            assert list(source.items(start=start)) == items[start:]
        if 0 < start <= len(items):
            after = json.loads(json.dumps(items[start - 1].after))
            assert list(source.items(start=start, after=after)) == items[start:]
            assert [item.after for item in source.items(start=start, after=after)] == [
                one.after for one in items[start:]
            ]
            some = list(source.items(2, start=start, after=after))
            assert [item.id for item in some] == [item.id for item in items[start:]]
            assert some[2:] == items[start + 2 :]
    for count in (1, len(items) // 2, len(items) + 1):
        skipped = list(source.items(count))
        assert [item.id for item in skipped] == [item.id for item in items]
        assert skipped[count:] == items[count:]
    assert json.dumps(dict(source.fingerprint))
    return [(item.id, item.value if not item.failure else f"!{item.failure}") for item in items]


def as_read(path: str) -> bytes | str:
    """What is in a file, or why it cannot be read."""
    try:
        return image_bytes(path, 10_000)
    except Unsendable as error:
        return f"!{error}"
