"""All that was found so far, what follows from it, and the two files that hold it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cnclip_builder.tensors import Tower

from cnclip_bench.gpu_report.rows import Ceiling, Fact, Memory, Rate, Row, Setup, Timing, Verified, Work
from cnclip_bench.gpu_report.run import Outcome
from cnclip_bench.output import write_json

__all__ = ["Findings"]

_R = TypeVar("_R", bound=Row)
_SECTIONS: tuple[tuple[str, type[Row]], ...] = (
    ("installed", Fact),
    ("ceiling", Ceiling),
    ("work", Work),
    ("in_process", Timing),
    ("verified", Verified),
    ("served", Rate),
    ("memory", Memory),
)


@dataclass
class Findings:
    """What was found so far.

    Attributes:
        title: What was measured, on what.
        setup: How.
        conditions: Machine, versions and day.
        outcomes: How the steps that are over ended.
        rows: What they found.
    """

    title: str
    setup: Setup
    conditions: Mapping[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    def of(self, kind: type[_R]) -> list[_R]:
        """The rows of a kind."""
        return [row for row in self.rows if isinstance(row, kind)]

    def share(self, timing: Timing) -> float | None:
        """The part of the ceiling that a batch comes to, by what cn_clip's model would compute; None if unknown."""
        ceiling = next(iter(self.of(Ceiling)), None)
        work = next((one for one in self.of(Work) if (one.tower, one.length) == (timing.tower, timing.length)), None)
        if ceiling is None or work is None:
            return None
        return work.gflop * timing.items_per_s / 1000 / ceiling.tflops

    def best_in_process(self, tower: Tower, length: int, way: str) -> float | None:
        """The most items a second that an encoder did in process; None if that was not measured."""
        timings = [one for one in self.of(Timing) if (one.tower, one.length) == (tower, length)]
        return max((one.items_per_s for one in timings if one.way.startswith(way)), default=None)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes `gpu-report.md` and `gpu-report.json`, and gives their paths."""
        from cnclip_bench.gpu_report.page import render

        page, data = folder / "gpu-report.md", folder / "gpu-report.json"
        figures: dict[str, Any] = {
            "asked": {**asdict(self.setup), "folder": str(self.setup.folder)},
            "steps": [asdict(outcome) for outcome in self.outcomes],
        }
        for name, kind in _SECTIONS:
            figures[name] = [self._as_dict(row) for row in self.of(kind)]
        write_json(data, self.title, figures, self.conditions)
        page.write_text(render(self), encoding="utf-8")
        return page, data

    def _as_dict(self, row: Row) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if isinstance(row, Timing):
            more = {"items_per_s": row.items_per_s, "share_of_ceiling": self.share(row)}
        return {**asdict(row), **more}

    def ways(self, tower: Tower, length: int) -> Iterator[tuple[str, dict[int, Timing]]]:
        """Each way that an encoder ran in process, and its timings by the batch."""
        timings = [one for one in self.of(Timing) if (one.tower, one.length) == (tower, length)]
        for way in dict.fromkeys(one.way for one in timings):
            yield way, {one.batch_size: one for one in timings if one.way == way}
