"""Tables on the terminal, JSON and a plot in a folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from cnclip_console import print_table
from cnclip_machine import usable_cores

from cnclip_bench.stats import Latency

__all__ = [
    *("Panel", "conditions", "installed_version"),
    *("show_latencies", "show_ratios", "show_rows", "show_values"),
    *("write", "write_curves", "write_json"),
]


@dataclass(frozen=True)
class Panel:
    """One plot of several curves.

    Attributes:
        x, y: What the axes are.
        curves: Points of each, by name.
    """

    x: str
    y: str
    curves: Mapping[str, Sequence[tuple[float, float]]]


def conditions() -> dict[str, Any]:
    """What a figure is worth nothing without: machine, load, versions, day."""
    libraries = (
        "torch",
        "onnxruntime",
        "onnxruntime-gpu",
        "faiss-cpu",
        "numpy",
        "pillow",
        "tokenizers",
        "tritonclient",
    )
    return {
        "date": date.today().isoformat(),
        "cores": usable_cores(),
        "processor": _processor(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: found for name in libraries if (found := installed_version(name))},
    }


def installed_version(distribution: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def show_latencies(title: str, latencies: Sequence[Latency]) -> None:
    """Prints a line for each."""
    rows = [
        (
            one.name,
            *(
                f"{value:.1f}"
                for value in (one.mean_ms, one.sd_ms, one.min_ms, one.max_ms, one.median_ms, one.p95_ms, one.p99_ms)
            ),
        )
        for one in latencies
    ]
    show_rows(f"{title}, ms", ("", "mean", "sd", "min", "max", "median", "p95", "p99"), rows)


def show_values(title: str, values: Mapping[str, str]) -> None:
    """Prints names and values."""
    show_rows(title, ("", ""), values.items())


def show_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table."""
    print_table(columns, rows, f"\n{title}")


def show_ratios(
    folder: Path,
    name: str,
    title: str,
    series: Mapping[str, Sequence[float]],
    ratios: Mapping[str, float],
    figures: Any,
    *,
    unit: str,
    over: str = "times",
    decimals: tuple[int, int] = (2, 2),
    left_out: Mapping[str, str] | None = None,
    axis: str | None = None,
) -> None:
    """Prints the median of each way, and how many times another's it is; writes both as `write` does.

    Args:
        folder: Where to.
        name: Of the files.
        title: Of the table and the plot.
        series: What each way came to in each round.
        ratios: Of some ways, what the table's last column holds.
        figures: What the JSON holds.
        unit: Of the series.
        over: What the ratios are.
        decimals: How many of the series and of the ratios are shown.
        left_out: Ways that could not be measured, and why.
        axis: What the plot calls the unit.
    """
    bars = {way: median(rounds) for way, rounds in series.items()}
    shown, more = decimals
    rows = [(way, f"{bars[way]:.{shown}f}", f"{ratios[way]:.{more}f}" if way in ratios else "") for way in bars]
    rows += [(way, "left out", reason) for way, reason in (left_out or {}).items()]
    show_rows(title, ("", unit, over), rows)
    write(folder, name, title, figures, bars, axis or unit)


def write(folder: Path, name: str, title: str, figures: Any, bars: Mapping[str, float], unit: str) -> None:
    """Writes `NAME.json` and `NAME.png`, a plot of horizontal bars.

    Args:
        folder: Where to; made if it is missing.
        name: Of the files.
        title: Of the plot.
        figures: What the JSON holds beside the conditions.
        bars: What the plot shows.
        unit: Of the bars.

    Raises:
        ModuleNotFoundError: matplotlib is missing; the JSON is written.
    """
    write_json(folder / f"{name}.json", title, figures)
    with _drawn(folder / f"{name}.png", title, (7, 1 + 0.4 * len(bars)), 1) as (axes,):
        axes.bar_label(axes.barh(list(bars), list(bars.values()), color="#4472a8"), fmt="%.3g", padding=3)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.margins(x=0.12)


def write_curves(folder: Path, name: str, title: str, figures: Any, panels: Sequence[Panel]) -> None:
    """Writes `NAME.json` and `NAME.png`, a plot of curves side by side; as `write` otherwise."""
    write_json(folder / f"{name}.json", title, figures)
    with _drawn(folder / f"{name}.png", title, (5 * len(panels), 3.5), len(panels)) as all_axes:
        for axes, panel in zip(all_axes, panels, strict=True):
            for label, points in panel.curves.items():
                axes.plot(*zip(*points, strict=True), marker="o", label=label)
            axes.set_xlabel(panel.x)
            axes.set_ylabel(panel.y)
            axes.set_ylim(0, 1.1 * max(y for points in panel.curves.values() for _, y in points))
            axes.legend()


def write_json(file: Path, title: str, figures: Any, measured_on: Mapping[str, Any] | None = None) -> None:
    """Writes figures and what they are worth nothing without.

    Args:
        file: Where to; its folder is made if it is missing.
        title: What they are of.
        figures: Dataclasses may be among them.
        measured_on: What `conditions` gave when it began; None for now.
    """
    content = {"what": title, "conditions": measured_on or conditions(), "figures": figures}
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False, default=asdict)
    file.write_text(text + "\n", encoding="utf-8")


@contextmanager
def _drawn(file: Path, title: str, size: tuple[float, float], panels: int) -> Iterator[list[Any]]:
    """Gives axes side by side, and saves what was drawn on them."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    try:
        yield list(axes[0])
        figure.suptitle(title, fontsize=10)
        for one in axes[0]:
            one.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, dpi=120)
    finally:
        pyplot.close(figure)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
