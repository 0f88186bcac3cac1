"""What can go wrong before a card is used; afterwards nothing may."""

from __future__ import annotations

__all__ = ["CardUnfit"]


class CardUnfit(Exception):
    """There is no card here that decodes as is promised; the message says why, and what to do."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"images can't be decoded on a GPU here: {' '.join(why.split())}; mend this, or build the repository with "
            "--preprocess exact"
        )
