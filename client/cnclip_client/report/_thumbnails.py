"""Pictures small enough for a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from cnclip_client._extras import require
from cnclip_client._vocabulary import Id

__all__ = ["Thumbnail", "names_of_file", "small_jpeg", "thumbnails"]

# For PostScript, and for what may hold it, Pillow starts Ghostscript: nothing that the server would have encoded.
_START_PROGRAMS = frozenset({"EPS", "IPTC"})
_SIDE_PIXELS = 256  # twice what the page shows them at, for dense screens


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture as a data URI, or why there is none.

    Attributes:
        uri: `data:image/jpeg;base64,...`; empty where there is no picture.
        reason: Why there is none.
    """

    uri: str = ""
    reason: str = ""


def thumbnails(images: Iterable[tuple[Id, bytes]], wanted: Collection[Id]) -> dict[Id, Thumbnail]:
    """Makes thumbnails of the wanted among some images.

    They show what the model saw: cn_clip neither turns a picture by its EXIF tag nor keeps its transparency.

    Args:
        images: Ids and encoded images; read until all wanted ones are found.
        wanted: The ids to make one for.

    Returns:
        Id -> thumbnail of each that is found; one that cannot be decoded says so instead.

    Raises:
        MissingExtra: Pillow is not installed.
    """
    require("PIL.Image", extra="report")
    made: dict[Id, Thumbnail] = {}
    if wanted:
        for one, data in images:
            if one in wanted and one not in made:
                made[one] = _thumbnail(data)
                if len(made) == len(wanted):
                    break
    return made


def names_of_file(path: str) -> list[Id]:
    """Returns what a file goes by beside its id, for features whose ids were made elsewhere: its name, or its stem."""
    name = Path(path)
    return [name.name, name.stem, *([int(name.stem)] if name.stem.isdecimal() else [])]


def small_jpeg(data: bytes) -> bytes | None:
    """Returns a small picture of an encoded image, as a JPEG; None of one that cannot be decoded."""
    require("PIL.Image", extra="report")
    from PIL import Image

    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            if image.format in _START_PROGRAMS:
                return None
            image.draft("RGB", (_SIDE_PIXELS, _SIDE_PIXELS))
            small = image.convert("RGB")
        small.thumbnail((_SIDE_PIXELS, _SIDE_PIXELS))
        encoded = io.BytesIO()
        small.save(encoded, "JPEG", quality=80)
    # Whatever its decoder happens to raise: of a damaged picture that may be anything.
    except Exception:
        return None
    return encoded.getvalue()


def _thumbnail(data: bytes) -> Thumbnail:
    made = small_jpeg(data)
    if made is None:
        return Thumbnail(reason="cannot be decoded")
    return Thumbnail(uri="data:image/jpeg;base64," + base64.b64encode(made).decode())
