"""The images of a report, by their ids."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from cnclip_client.retrieval import Id

__all__ = ["pictures_in"]


def pictures_in(source: Path, wanted: Collection[Id]) -> Iterator[tuple[Id, bytes]]:
    """Yields the wanted images of a folder, which goes by their path in it, their name or its stem."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            ids: list[Id] = [path.relative_to(source).as_posix(), path.name, path.stem]
            if path.stem.isdecimal():
                ids.append(int(path.stem))
            for one in ids:
                if one in wanted:
                    yield one, path.read_bytes()
