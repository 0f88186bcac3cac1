"""Small pictures of what was found, out of the source that its features were made of."""

from __future__ import annotations

from functools import lru_cache

from cnclip_client._exceptions import CnclipError
from cnclip_client._extras import require
from cnclip_client._flow.items import Unsendable, image_bytes
from cnclip_client._settings import Limits
from cnclip_client.evaluation import as_annotated
from cnclip_client.report._thumbnails import names_of_file, small_jpeg
from cnclip_client.retrieval import Id
from cnclip_client.sources import Place, Source

__all__ = ["Pictures"]

_KEPT = 2048
_ALL = 1 << 62


class Pictures:
    """The pictures of a source, by their ids. Threads may share it.

    All ids are read once, when it is made; where each picture is takes some hundred bytes of memory.

    Args:
        source: Where they are.

    Raises:
        MissingExtra: Pillow is not installed.
    """

    def __init__(self, source: Source) -> None:
        require("PIL.Image", extra="report")
        self._source = source
        self._places: dict[Id, str | tuple[int, Place]] = {}
        after: Place = ()
        for number, item in enumerate(source.items(_ALL)):
            # A file by its path; what is inside a file by where the source goes on before it.
            place = item.value if isinstance(item.value, str) else (number, after)
            if not item.failure:
                self._places.setdefault(item.id, place)
            after = item.after
        # As `cnclip search --html`: for features whose ids were made elsewhere a file goes by its name as well.
        for place in [place for place in self._places.values() if isinstance(place, str)]:
            for name in names_of_file(place):
                self._places.setdefault(name, place)
        self._small = lru_cache(_KEPT)(self._made)

    def thumbnail(self, one: Id) -> bytes | None:
        """Returns a small JPEG of the picture with an id; None where there is none, or it cannot be had now."""
        try:
            return self._small(one)
        except LookupError:  # never kept: a store that was away for a moment must not cost its pictures for good
            return None

    def _made(self, one: Id) -> bytes:
        one = as_annotated(one, self._places)
        place = self._places[one]
        try:
            value: str | bytes | None = place if isinstance(place, str) else None
            if not isinstance(place, str):
                number, after = place
                item = next(self._source.items(start=number, after=after), None)
                value = item.value if item is not None and item.id == one else None
            small = small_jpeg(image_bytes(value, Limits().item_bytes)) if value else None
        except (Unsendable, CnclipError, OSError) as error:
            raise LookupError(one) from error
        if small is None:
            raise LookupError(one)
        return small
