"""`cnclip-bench jobs`: what the sources of batch jobs cost, in time and in the client's memory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cnclip_console import option

from cnclip_bench._cli._options import OUTPUT, Asked, OutputOption, RoundsOption, of_a_subject
from cnclip_bench.stats import median_ratio
from cnclip_bench.subject import serving

MemoryItems = Annotated[
    list[int] | None,
    option(
        "Measure the client's peak memory at so many items; give it twice, such as 10000 and 1000000.",
        "--memory-items",
        metavar="N",
        min=1,
    ),
]
Items = Annotated[int, option("Images in each source.", min=1)]
Work = Annotated[Path | None, option("Where sources are written. Default: a temporary folder.")]
Sources = Annotated[list[str] | None, option("Only this kind; may be given many times.", "--source")]


@of_a_subject
def jobs(
    asked: Asked,
    items: Items = 4000,
    rounds: RoundsOption = 5,
    memory_items: MemoryItems = None,
    source: Sources = None,
    work: Work = None,
    output: OutputOption = OUTPUT,
) -> None:
    """Tell how fast `cnclip extract` is from each kind of source, beside the same items from memory, in one run.

    S3 is moto's, on this machine, where it and s3fs are installed. Memory is that of a whole job whose server answers
    at once.

    Example:
      cnclip-bench jobs --items 1000
    """
    from cnclip_bench import jobs as measured
    from cnclip_bench.output import show_ratios

    unknown = set(source or ()) - set(measured.RATE_WAYS)
    if unknown:
        raise ValueError(f"there is no source {', '.join(sorted(unknown))}; they are {', '.join(measured.RATE_WAYS)}")
    ways = [way for way in measured.RATE_WAYS if not source or way in source]
    subject = asked.subject()
    with tempfile.TemporaryDirectory(prefix="jobs-", dir=work) as folder:
        there = measured.write_sources(Path(folder) / "sources", subject.images, items, ways)
        remote = {way: path for way, path in there.items() if f"s3 {way}" in ways}
        with measured.local_s3(Path(folder), remote) as far, serving(subject) as (server, _):
            sources = {**{way: path for way, path in there.items() if way in ways}, **far}
            found = measured.rates(server.grpc_url, sources, subject.images, items, rounds, Path(folder))
    ratios = {way: median_ratio(rates, found["memory"]) for way, rates in found.items() if way != "memory"}
    left_out = {way: "moto, s3fs or lmdb is not installed" for way in ways if way not in found}
    show_ratios(
        output,
        "jobs",
        f"{subject.arch.name}, cnclip extract, {items} images",
        found,
        ratios,
        {"items_a_second": found, "of_memory": ratios, "items": items},
        unit="items/s",
        over="of memory",
        decimals=(0, 2),
        left_out=left_out,
    )
    if memory_items:
        ways = [way for way in measured.MEMORY_WAYS if not source or way in source]
        _memory(sorted(memory_items), ways, min(subject.images, key=len), work, output)


def _memory(counts: Sequence[int], ways: Sequence[str], image: bytes, work: Path | None, output: Path) -> None:
    """Measures the client's memory at each number of items, all of one image."""
    from cnclip_bench import jobs as measured
    from cnclip_bench.output import show_rows, write_json

    peaks: dict[str, dict[int, float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="jobs-", dir=work) as folder:
            there = measured.write_sources(Path(folder) / "sources", [image], count, ways)
            for way, mib in measured.peaks(there, Path(folder)).items():
                peaks.setdefault(way, {})[count] = mib
    rows = [
        (way, *(f"{by_count[count]:.0f}" for count in counts), f"{by_count[counts[-1]] - by_count[counts[0]]:+.1f}")
        for way, by_count in peaks.items()
    ]
    show_rows("Peak memory of the client, MiB", ("", *(f"{count:,} items" for count in counts), "more"), rows)
    write_json(output / "jobs-memory.json", "Peak memory of the client, MiB", peaks)
