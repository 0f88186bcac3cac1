"""`cnclip-bench index`: approximate indexes beside exact search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cnclip_console import option

from cnclip_bench._cli._options import OUTPUT, OutputOption, RoundsOption

if TYPE_CHECKING:
    from cnclip_bench.index import Measurement

_MEMORIES = ["4GiB", "1GiB"]


def index(
    rows: Annotated[int, option("How many features.", min=100)] = 1_000_000,
    size: Annotated[int, option("How many numbers each has.", min=8)] = 512,
    clusters: Annotated[
        int | None, option("How many clusters they are in. Default: one for 50 features.", min=1)
    ] = None,
    queries: Annotated[int, option("Texts to tune with, and as many others to measure.", min=2)] = 1000,
    memory: Annotated[list[str], option("For `cnclip index --memory`; repeatable.")] = _MEMORIES,
    rounds: RoundsOption = 3,
    output: OutputOption = OUTPUT,
) -> None:
    """Make indexes of made-up features by `cnclip index`: minutes, memory, recall, and time beside exact search.

    Example:
      cnclip-bench index --rows 100000 --memory 1GiB
    """
    from cnclip_bench.index import MadeUp, measure_index
    from cnclip_bench.output import show_rows, write

    made = MadeUp(rows, size, clusters or max(1, rows // 50))
    found = list(measure_index(made, queries, memory, rounds, output))
    title = f"{rows:,} features of {size} numbers"
    columns = [_shown(one) for one in found]
    show_rows(title, ("--memory", *memory), [[name, *(column[name] for column in columns)] for name in columns[0]])
    bars = {"exact": found[0].exact_ms, **{f"{one.factory}, {one.memory}": one.ms for one in found}}
    write(output, "index", title, {"made": made, "indexes": found}, bars, "ms a query")


def _shown(one: Measurement) -> dict[str, str]:
    return {
        "kind": one.factory,
        "tuned to": one.parameters,
        "minutes to make": f"{one.minutes:.1f}",
        "minutes of the processor": f"{one.cpu_minutes:.1f}",
        "MiB, mapped files included": f"{one.peak_mib:,.0f}",
        "recall@10, of the queries tuned with": f"{one.own_recall:.3f}",
        "recall@10, of others": f"{one.recall:.3f}",
        "ms a query, many at once": f"{one.ms:.3g}",
        "exact search": f"{one.exact_ms:.3g} ({one.exact_ms / one.ms:.1f} times)",
        "ms a query, alone": f"{one.alone_ms:.3g}",
        "exact search, alone": f"{one.exact_alone_ms:.3g} ({one.exact_alone_ms / one.alone_ms:.1f} times)",
        "bytes of memory a vector": f"{one.memory_bytes:,.0f}",
        "bytes of disk a vector": f"{one.disk_bytes:,.0f}",
    }
