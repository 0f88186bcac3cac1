"""`cnclip index`: an approximate index over extracted features, made once, searched in a fraction of the time."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from cnclip_console import gives_options, option, plain_app, print_table

from cnclip_client._cli._progress import stages
from cnclip_client._cli._retrieval import Normalize
from cnclip_client._cli._shared import AsJson, write
from cnclip_client._vocabulary import Kind
from cnclip_client.command_line import Verbose, complain, reporting, usage
from cnclip_client.index import Built, IndexOptions, Record, build_index
from cnclip_client.index._plan import parse_bytes

__all__ = ["index"]

index = plain_app(
    no_args_is_help=True,
    help="Make an approximate index of features, which `cnclip search --index` searches; or add to it what is new."
    "\n\n"
    "Example:\n"
    "  cnclip index images features/ -o photos.index",
    epilog="Exit status: 0 all well; 2 usage, a damaged file, another index or another checkpoint at OUTPUT; 130 "
    "interrupted. OUTPUT is replaced when the new one is whole, and stays as it was otherwise.",
)

FeaturesArgument = Annotated[
    list[Path],
    typer.Argument(metavar="FEATURES...", help="What cnclip extract wrote: files, or folders of parts or of .parquet."),
]
Output = Annotated[Path, option("The index.", "--output", "-o", metavar="FOLDER")]
Memory = Annotated[
    str | None,
    option(
        "What making and searching it may take, such as 4GiB: the kind is chosen to fit. Default: half of what is "
        "free.",
        metavar="SIZE",
    ),
]
Factory = Annotated[
    str | None, option("faiss's index_factory string, such as IVF4096,PQ64, instead of a chosen one.", metavar="STRING")
]
RecallOption = Annotated[
    float, option("Share of the exact best 10 that it is tuned to find.", "--recall", min=0.01, max=1.0)
]
Rescore = Annotated[
    bool | None,
    option(
        "Keep features beside it (float16) and score anew with them what it proposes. Default: where it is lossy.",
        "--rescore/--no-rescore",
    ),
]
Overwrite = Annotated[bool, option("Make an index that is there anew, rather than add to it.", "--overwrite")]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """How an index is to be made, as it was typed."""

    memory: Memory = None
    factory: Factory = None
    recall: RecallOption = 0.95
    normalize: Normalize = False
    rescore: Rescore = None
    overwrite: Overwrite = False

    def options(self) -> IndexOptions:
        """Returns it as `build_index` takes it. Raises ValueError for what is no size."""
        return IndexOptions(
            memory_bytes=None if self.memory is None else parse_bytes(self.memory),
            factory=self.factory,
            recall=self.recall,
            normalize=self.normalize,
            rescore=self.rescore,
            overwrite=self.overwrite,
        )


@index.command("images")
@gives_options(_Asked, "asked")
def _index_images(
    *,
    features: FeaturesArgument,
    output: Output,
    queries: Annotated[
        Path | None, option("Features of texts such as will be asked, to tune and measure it with.", metavar="FEATURES")
    ] = None,
    asked: _Asked,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make an index of images' features, or add to it the files that it does not have yet.

    Example:
      cnclip index images features/ -o photos.index --queries texts.parquet
    """
    _index("image", features, output, queries, asked, as_json, verbose)


@index.command("texts")
@gives_options(_Asked, "asked")
def _index_texts(
    *,
    features: FeaturesArgument,
    output: Output,
    queries: Annotated[
        Path | None,
        option("Features of images such as will be asked, to tune and measure it with.", metavar="FEATURES"),
    ] = None,
    asked: _Asked,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    r"""Make an index of texts' features, or add to it the files that it does not have yet.

    Example:
      cnclip index texts captions.parquet -o captions.index \
        --queries images.parquet
    """
    _index("text", features, output, queries, asked, as_json, verbose)


def _index(
    kind: Kind, features: list[Path], output: Path, queries: Path | None, asked: _Asked, as_json: bool, verbose: bool
) -> None:
    with reporting(verbose), usage(), stages() as report:
        built = build_index(features, output, kind, asked.options(), queries=queries, report=report)
    with reporting(verbose):
        _tell(built, output, asked.recall, as_json)


def _tell(built: Built, output: Path, target: float, as_json: bool) -> None:
    record, measured = built.record, built.record.measured
    if not built.added:
        complain(f"{output} has all of that already; nothing to do")
    if as_json:
        shown = {key: value for key, value in dataclasses.asdict(record).items() if key not in ("files", "parts")}
        write((json.dumps({**shown, "added": built.added, "parts": len(record.parts)}) + "\n").encode())
    else:
        _print(record, built.added)
    if built.added and not measured.reached:
        more = f", or search with --index-parameters above {measured.parameters}" if measured.parameters else ""
        complain(
            f"recall@10 is {measured.recall_at_10:.3f}, and {target:g} could not be reached; give more --memory, allow "
            f"--rescore{more}"
        )


def _print(record: Record, added: int) -> None:
    measured = record.measured
    faster = measured.exact_milliseconds / measured.milliseconds
    rows = (
        ("rows", f"{record.rows:,} {record.kind}s of {record.size} numbers, {added:,} of them new"),
        ("kind", f"{record.factory} ({measured.parameters})" if measured.parameters else record.factory),
        ("of", str(record.origin) if record.origin else "an unknown checkpoint"),
        ("recall@10", f"{measured.recall_at_10:.3f}, by {measured.queries:,} {measured.asked}"),
        (
            "a query",
            f"{measured.milliseconds:.3g} ms; exact search {measured.exact_milliseconds:.3g} ms ({faster:.0f} times)",
        ),
        ("a vector", f"{record.memory_bytes_a_row:,.0f} bytes of memory, {record.disk_bytes_a_row:,.0f} of disk"),
        ("made in", f"{record.seconds:,.0f} s"),
    )
    print_table(("", ""), rows)
