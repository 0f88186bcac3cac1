"""What a server tells of a card that decodes: how many images it took, and that it failed, if it did."""

from __future__ import annotations

from typing import Any, Protocol


class _Prepared(Protocol):
    rows: list[Any]
    on_card: int
    why_not: str
    full: bool


class CardLog:
    """Counts in Triton's metrics which way images took, and logs once each why batches left the card.

    Args:
        model: the model's name.
        version: its version.
        pb_utils: Triton's module of that name.
    """

    def __init__(self, model: str, version: str, pb_utils: Any) -> None:
        self._model = model
        self._warn = pb_utils.Logger.log_warn
        self._told: set[bool] = set()
        labels = {"model": model, "version": version}
        try:
            images = pb_utils.MetricFamily(
                name="cnclip_card_images",
                description="Images by the way that they took: decoded on the card, or exactly beside it",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            failures = pb_utils.MetricFamily(
                name="cnclip_card_failures",
                description="Batches of which images left the card since it was full, or failed",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            self._images = {way: images.Metric(labels={**labels, "way": way}) for way in ("card", "exact")}
            self._failures = {why: failures.Metric(labels={**labels, "why": why}) for why in ("full", "failed")}
            self._families = images, failures  # their metrics need them alive
        except pb_utils.TritonModelException:  # where a server's metrics are turned off
            self._images = self._failures = {}

    def tell(self, prepared: _Prepared) -> None:
        """Counts a batch, and logs why the card failed at it, if it did and that was not logged before."""
        beside = len(prepared.rows) - prepared.on_card
        for way, count in (("card", prepared.on_card), ("exact", beside)):
            if count and way in self._images:
                self._images[way].increment(count)
        if not prepared.why_not:
            return
        why = "full" if prepared.full else "failed"
        if why in self._failures:
            self._failures[why].increment(1)
        if prepared.full not in self._told:
            self._told.add(prepared.full)
            self._warn(
                f"{self._model}: the card {'is full' if prepared.full else 'failed'}, and images of such batches are "
                f"decoded on the host ({' '.join(prepared.why_not.split())}); the metric cnclip_card_failures counts "
                "them, and this is told once"
            )
