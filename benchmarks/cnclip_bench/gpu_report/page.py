"""The findings as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from cnclip_builder.tensors import Tower

from cnclip_bench.gpu_report.inputs import BATCH_SIZES, LENGTHS
from cnclip_bench.gpu_report.rows import Ceiling, Fact, Memory, Rate, Verified, Work

if TYPE_CHECKING:
    from cnclip_bench.gpu_report.findings import Findings

__all__ = ["render"]

_SIZES = BATCH_SIZES["text"]
_ENGINES = {"onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT", "card": "decoded on the card"}
_ENCODERS: tuple[tuple[Tower, int], ...] = (("image", 0), *(("text", length) for length in LENGTHS))


def render(findings: Findings) -> str:
    """Writes the page: what there is no figure for is not in it, but for the list of steps, which says why."""
    sections = (_steps, _installed, _ceiling, _in_process, _first_runs, _verified, _served, _memory)
    head = f"# {findings.title}\n\n{_told(findings)}"
    return "\n\n".join([head, *(text for section in sections if (text := "\n".join(section(findings))))]) + "\n"


def _told(findings: Findings) -> str:
    conditions, setup = findings.conditions, findings.setup
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    precision = "FP16" if setup.gpu else "FP32 on the CPU"
    return (
        f"{conditions['date']}, {setup.arch}, checkpoint {setup.checkpoint}, {precision}. "
        f"Host: {conditions['processor']}, {conditions['cores']} cores, load {conditions['load_average']:.1f} at the "
        f"start, Python {conditions['python']}, {versions}. Each thing was measured for {setup.seconds:g} s at least."
    )


def _steps(findings: Findings) -> Iterator[str]:
    yield "## What was done?\n"
    rows = [(one.name, f"{one.seconds:.0f}", one.status, one.reason) for one in findings.outcomes]
    yield from _table(("step", "seconds", "", "why"), rows)


def _installed(findings: Findings) -> Iterator[str]:
    if facts := findings.of(Fact):
        yield "## What is installed?\n"
        yield from _table(("", ""), [(fact.what, fact.value) for fact in facts])


def _ceiling(findings: Findings) -> Iterator[str]:
    for one in findings.of(Ceiling):
        yield "## How fast is a matrix product here?\n"
        yield (
            f"A matrix product of {one.side} x {one.side} by torch, {one.dtype}: **{one.tflops:.3g} TFLOP/s**. That is "
            "the ceiling which shares below are of. They count what cn_clip's model computes: "
            + ", ".join(f"{work.gflop:.3g} GFLOP {_item(work.tower, work.length)}" for work in findings.of(Work))
            + "; ours leave out the last block of all tokens but one, and so do a little less."
        )


def _in_process(findings: Findings) -> Iterator[str]:
    rows = []
    for tower, length in _ENCODERS:
        for way, timings in findings.ways(tower, length):
            best = max(timings.values(), key=lambda one: one.items_per_s)
            share = findings.share(best)
            rows.append(
                (
                    _items(tower, length),
                    way,
                    *(f"{timings[size].ms:.3g}" if size in timings else "" for size in _SIZES),
                    f"{best.items_per_s:,.0f} ({best.batch_size})",
                    "" if share is None else f"{share:.2f}",
                )
            )
    if rows:
        yield "## How fast are the encoders in one process?\n"
        yield "Milliseconds a batch: the median of runs that each wait for their result, which stays where they ran.\n"
        sizes = [f"batch {size}" for size in _SIZES]
        yield from _table(("", "", *sizes, "most a second (batch)", "of the ceiling"), rows)


def _first_runs(findings: Findings) -> Iterator[str]:
    rows = [
        (
            _items(tower, length),
            way,
            *(f"{timings[size].first_ms:.3g}" if size in timings else "" for size in _SIZES),
        )
        for tower, length in _ENCODERS
        for way, timings in findings.ways(tower, length)
    ]
    if rows:
        yield "### What does the first run of a new batch size cost?\n"
        yield "Milliseconds, in this order; the very first also loads what the others find.\n"
        yield from _table(("", "", *(f"batch {size}" for size in _SIZES)), rows)


def _verified(findings: Findings) -> Iterator[str]:
    if found := findings.of(Verified):
        yield "## Are the served features PyTorch's?\n"
        rows = [
            (
                _ENGINES[one.way],
                f"{one.tower}s",
                str(one.rows),
                *(f"{value:.1e}" for value in (one.cosine, one.cosine_bound, one.centred, one.centred_bound)),
            )
            for one in found
        ]
        yield from _table(("", "", "rows", "1 - cosine", "at most", "centred", "at most"), rows)


def _served(findings: Findings) -> Iterator[str]:
    if not (rates := findings.of(Rate)):
        return
    yield "## How fast is what is served?\n"
    yield (
        "Pixels and ids go to the encoders alone, JPEGs and texts through decoding and tokenising; a job is given to "
        "the client at once. What an item takes of the host's processors is the server's part, or in process all. The "
        "last column is of the best of the same encoder in one process.\n"
    )
    rows = []
    for one in rates:
        length = next((length for length in LENGTHS if one.what.startswith(f"ids, {length} a text")), 0)
        known = one.tower == "image" or length
        best = findings.best_in_process(one.tower, length, _ENGINES[one.way]) if known else None
        rows.append(
            (
                _ENGINES[one.way],
                one.what,
                str(one.items),
                str(one.at_once),
                f"{one.per_s:,.0f}" if one.per_s >= 100 else f"{one.per_s:.3g}",
                f"{one.median_ms:.3g}",
                f"{one.p95_ms:.3g}",
                f"{one.host_ms:.2g}",
                "" if best is None else f"{one.per_s / best:.2f}",
            )
        )
    yield from _table(
        (
            *("", "sent", "a request", "requests at once", "a second", "median ms", "p95"),
            *("processors' ms an item", "of in process"),
        ),
        rows,
    )


def _memory(findings: Findings) -> Iterator[str]:
    if found := findings.of(Memory):
        where = "GPU" if findings.setup.gpu else "the machine's"
        yield f"## How much {where} memory is taken?\n"
        rows = [(_ENGINES.get(one.way, one.way), one.what, f"{one.mib:,.0f}") for one in found]
        yield from _table(("", "", "MiB"), rows)


def _items(tower: Tower, length: int) -> str:
    return "images" if tower == "image" else f"texts of {length} tokens"


def _item(tower: Tower, length: int) -> str:
    return "an image" if tower == "image" else f"a text of {length} tokens"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{'---|' * len(columns)}"
    for row in rows:
        cells = (cell.replace("|", r"\|") for cell in row)
        yield f"| {' | '.join(cells)} |"
