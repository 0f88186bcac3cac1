"""What `cnclip-bench jobs` runs in processes of its own: a job on items in memory, and one without a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from cnclip_client import Block, Client, Limits, ModelInfo
from cnclip_client.extraction import extract
from cnclip_client.sources import Item, image_source

__all__ = ["InMemory", "peak", "rate"]

_SIZE = 512


@dataclass(frozen=True)
class InMemory:
    """A source of items that are in memory already.

    Attributes:
        images: Encoded ones, that come over and over.
        count: How many items they make.
    """

    images: Sequence[bytes]
    count: int
    kind: Literal["image"] = "image"

    @property
    def fingerprint(self) -> Mapping[str, str | int | None]:
        """What tells it from another."""
        return {"format": "memory", "size_bytes": self.count}

    def items(self, ids_only: int = 0, *, start: int = 0, after: Sequence[int | str] = ()) -> Iterator[Item]:
        """Yields the items."""
        for row, image in enumerate(islice(cycle(self.images), self.count)):
            if row >= start:
                yield Item(f"{row:09d}", image)

    def total(self) -> int | None:
        """Returns how many there are."""
        return self.count


def rate(url: str, kept: Path, count: int, output: Path) -> None:
    """Does a job on items in memory, a folder's images over and over; how long it took is in its record."""
    from cnclip_client import served_models

    (model,) = served_models(url)
    with Client(url, model=model) as client:
        extract(client, InMemory([path.read_bytes() for path in sorted(kept.iterdir())], count), output)


class _NoServer:
    """Stands for a client, of a server that answers at once."""

    limits = Limits()

    def info_of(self, kind: str) -> ModelInfo:
        """Returns what there is to tell of no model."""
        return ModelInfo(
            model="none",
            arch="none",
            checkpoint_sha256="0" * 64,
            logit_scale=1.0,
            embedding_size=_SIZE,
            context_length=52,
            max_batch_size=32,
            version="1",
            precision="fp32",
            preferred_batch_size=32,
        )

    def require_unchanged(self) -> None:
        """It never changes."""

    def iter_images(self, images: Iterator[bytes], **_: Any) -> Iterator[Block]:
        """Gives every image the same feature."""
        start = 0
        while count := len(list(islice(images, 32))):
            rows = np.arange(start, start + count)
            yield Block(start, start + count, rows, np.ones((count, _SIZE), np.float32), {})
            start += count


def peak(source: str, output: Path) -> float:
    """Does a whole job without a server, and returns the most memory that it held, in MiB."""
    client = cast(Client, _NoServer())
    extract(client, image_source(source), output)
    # Not getrusage, whose peak is that of the process that began this one if it was larger.
    told = Path("/proc/self/status").read_text().partition("VmHWM:")[2]
    return int(told.split()[0]) / 1024


if __name__ == "__main__":
    if sys.argv[1] == "rate":
        rate(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        print(peak(sys.argv[2], Path(sys.argv[3])))
