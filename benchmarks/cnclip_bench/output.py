"""Tables on the terminal, JSON and a plot in a folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cnclip_bench.stats import Latency

__all__ = ["conditions", "show_latencies", "show_values", "write"]


def conditions() -> dict[str, Any]:
    """What a figure is worth nothing without: machine, load, versions, day."""
    libraries = ("torch", "onnxruntime", "numpy", "pillow", "tokenizers", "tritonclient")
    return {
        "date": date.today().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
    }


def show_latencies(title: str, latencies: Sequence[Latency]) -> None:
    """Prints a line for each."""
    table = Table("", "mean", "sd", "min", "max", "median", "p95", "p99", title=f"{title}, ms")
    for one in latencies:
        values = (one.mean_ms, one.sd_ms, one.min_ms, one.max_ms, one.median_ms, one.p95_ms, one.p99_ms)
        table.add_row(one.name, *(f"{value:.1f}" for value in values))
    Console().print(table)


def show_values(title: str, values: Mapping[str, str]) -> None:
    """Prints names and values."""
    table = Table("", "", title=title, show_header=False)
    for name, value in values.items():
        table.add_row(name, value)
    Console().print(table)


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
    folder.mkdir(parents=True, exist_ok=True)
    known = (
        [asdict(entry) if isinstance(entry, Latency) else entry for entry in figures]
        if isinstance(figures, list)
        else figures
    )
    text = json.dumps({"what": title, "conditions": conditions(), "figures": known}, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.4 * len(bars)), layout="constrained")
    drawn = axes.barh(list(bars), list(bars.values()), color="#4472a8")
    axes.bar_label(drawn, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / f"{name}.png", dpi=120)
    pyplot.close(figure)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
