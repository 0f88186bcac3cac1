"""`cnclip extract`: features of any number of images or texts into a file, in a job that can be killed and goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from cnclip_console import counted, gives_options, option, plain_app

from cnclip_client import (
    AccessDenied,
    Client,
    ModelChanged,
    ModelNotFound,
    ModelNotReady,
    Retry,
    ServerError,
    StoreError,
    TransportError,
)
from cnclip_client._cli._destination import Destination, Output, OutputFormat, Shard, ShardItems, Work, destination_of
from cnclip_client._cli._progress import ProgressEvery, ProgressOption, job_progress
from cnclip_client._cli._shared import Normalize
from cnclip_client.command_line import SOME_FAILED, Server, Verbose, asks_server_for, complain, reporting, usage
from cnclip_client.extraction import Engine, ExtractOptions, RepeatedIds, Summary, extract_parts
from cnclip_client.extraction import extract as extract_features
from cnclip_client.features import Dtype
from cnclip_client.sources import ImageFormat, Source, TextFormat, image_source, text_source

__all__ = ["extract"]

_OF_SERVER = (TransportError, AccessDenied, ModelChanged, ModelNotFound, ModelNotReady, ServerError, StoreError)

extract = plain_app(
    no_args_is_help=True,
    help="Write features of any number of images or texts to a file, or to a folder of them. Killed at any moment, it "
    "goes on when run again."
    "\n\n"
    "Example:\n"
    "  cnclip extract images photos/ --output photos.parquet",
    epilog="Exit status: 0 all well; 1 some items failed, see OUTPUT.errors.jsonl; 2 usage, or another job's output; "
    "3 server, model or object store; 4 more failed than --max-errors; 130 interrupted. After 3, 4 (with a higher "
    "--max-errors) and 130 the same command goes on.",
)

IdColumn = Annotated[str | None, option("The column of ids: of parquet, JSONL or a tar's .json.", metavar="NAME")]
Column = Annotated[str | None, option("The column of images, paths or texts; a tar's ending.", metavar="NAME")]
DtypeOption = Annotated[Dtype, option("Of the numbers in a .parquet or .npy file.", "--dtype")]
MaxErrors = Annotated[
    int | None,
    option(
        "Stop, with status 4, once more than N items have failed. Default: if none of the first 1,000 can be read.",
        metavar="N",
        min=0,
    ),
]
Overwrite = Annotated[bool, option("Replace what there is of OUTPUT, once the new one is whole.", "--overwrite")]
RepeatedIdsOption = Annotated[
    RepeatedIds, option("Write features of ids that came before, keep each one's first, or stop.", "--repeated-ids")
]
BatchSize = Annotated[int | None, option("Items a request. Default: what suits the server.", min=1)]
WaitForServer = Annotated[
    float, option("How long to wait for a server that is not there yet, or goes away.", metavar="SECONDS", min=0.001)
]
EngineOption = Annotated[
    Literal["local", "ray"], option("Encode in this process, or on a Ray cluster (RAY_ADDRESS).", "--engine")
]
Actors = Annotated[int | None, option("Ray actors, a client each; by default one for each node.", metavar="N", min=1)]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What both commands are told of a job, as it was typed."""

    dtype: DtypeOption = "float32"
    normalize: Normalize = True
    max_errors: MaxErrors = None
    overwrite: Overwrite = False
    repeated_ids: RepeatedIdsOption = "keep"
    batch_size: BatchSize = None
    wait_for_server: WaitForServer = 600.0
    engine: EngineOption = "local"
    actors: Actors = None
    shard_items: ShardItems = None
    shard: Shard = None
    output_format: OutputFormat = None
    work: Work = None
    progress: ProgressOption = "auto"
    progress_every: ProgressEvery = 60.0

    def options(self, *, preprocess: bool = True) -> ExtractOptions:
        """Returns it as `extract` takes it."""
        return ExtractOptions(
            normalize=self.normalize,
            dtype=self.dtype,
            max_errors=self.max_errors,
            overwrite=self.overwrite,
            batch_size=self.batch_size,
            repeated_ids=self.repeated_ids,
            preprocess=preprocess,
        )

    def destination(self, output: str) -> Destination:
        """Returns where an output goes. Raises ValueError if what was said of it does not go together."""
        return destination_of(output, self.shard_items, self.shard, self.output_format, self.work)


@extract.command("images")
@asks_server_for("images", "files")
@gives_options(_Job, "job")
def _extract_images(
    *,
    server: Server,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, a quoted glob, WebDataset's .tar files ('{00000..00999}.tar' or their folder), a MUGE "
            ".tsv, a cn_clip LMDB, a .parquet file or folder, or a list of paths; here, or s3://, gs://, https://, hf://.",
        ),
    ],
    output: Output,
    format: Annotated[
        ImageFormat | None, option("What SOURCE is, where it does not tell by itself.", "--format")
    ] = None,
    id_column: IdColumn = None,
    column: Column = None,
    job: _Job,
    verbose: Verbose = False,
) -> None:
    """Write the features of images to a file, or to a folder of parts.

    Ids are a folder's relative paths, a glob's or list's paths, a tar's keys, the first column of a TSV, the keys of an
    LMDB, or parquet's column image_id, id or key, or else its row's number. Every file of a folder that is not hidden
    counts.

    Example:
      cnclip extract images photos/ -o photos.parquet
    """
    with reporting(verbose):
        with usage():
            to = job.destination(output)
            opened = image_source(
                source, format=format, id_column=id_column, column=column, item_bytes=server.item_bytes
            )
        _extract(server, opened, to, job, job.options())


@extract.command("texts")
@asks_server_for("texts", "files")
@gives_options(_Job, "job")
def _extract_texts(
    *,
    server: Server,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="MUGE's .jsonl, a text a line, WebDataset's .tar files, or a .parquet file or folder; here, or s3://, "
            "gs://, https://, hf://.",
        ),
    ],
    output: Output,
    format: Annotated[
        TextFormat | None, option("What SOURCE is, where it does not tell by itself.", "--format")
    ] = None,
    id_column: IdColumn = None,
    column: Column = None,
    preprocess: Annotated[
        bool, option("Lower case and straight quotation marks, as cn_clip has them.", "--preprocess/--no-preprocess")
    ] = True,
    job: _Job,
    verbose: Verbose = False,
) -> None:
    """Write the features of texts to a file, or to a folder of parts.

    Ids are JSONL's text_id, the lines' numbers from 1, a tar's keys, or parquet's column text_id, id or key, or else
    its row's number. Of a tar's samples the .txt is taken, or --column of the .json.
    Texts are made lower case and their quotation marks straight, as cn_clip's own extract_features.py does; its
    tokenize does not, which is --no-preprocess here and the default of `cnclip features texts`.

    Example:
      cnclip extract texts test_texts.jsonl -o texts.jsonl
    """
    with reporting(verbose):
        with usage():
            to = job.destination(output)
            opened = text_source(source, format=format, id_column=id_column, column=column)
        _extract(server, opened, to, job, job.options(preprocess=preprocess))


def _extract(server: Server, source: Source, to: Destination, job: _Job, options: ExtractOptions) -> None:
    connect = partial(server.connect, retry=Retry.patient(job.wait_for_server))
    on = _engine(job.engine, connect, job.actors)
    shown = partial(job_progress, job.progress, job.progress_every)
    output, sharding = to.output, to.sharding

    def total() -> int | None:
        there = source.total()
        return there if there is None or sharding is None else sharding.items_of(there)

    with usage(), _resumable(to.partial), connect() as client, shown(total) as report:
        if sharding is None:
            summary = extract_features(client, source, output, options, report=report, engine=on)
        else:
            summary = extract_parts(
                client, source, output, options, sharding=sharding, work=to.work, report=report, engine=on
            )
    if summary.already_finished:
        anew = f"; to do it anew remove {output} first" if sharding is not None and options.overwrite else ""
        complain(f"{output} was finished before: {_words(summary)}; nothing to do{anew}")
    else:
        complain(_words(summary))
    if client.prepares_itself is not None:
        complain(f"--prepare auto had images prepared {'here' if client.prepares_itself else 'by the server'}")
    if summary.repeated:
        became = (
            "each one's first feature was kept"
            if options.repeated_ids == "first"
            else "search wants each once, which --repeated-ids first gives"
            if sharding is None
            else "in the same part; search wants each once"
        )
        complain(f"{counted(summary.repeated, 'id')} came again; {became}")
    if summary.failures:
        errors = f"{output}.errors.jsonl" if sharding is None else f"the .errors.jsonl of each part in {output}"
        complain(f"what failed, and why: {errors}")
        raise typer.Exit(SOME_FAILED)


def _engine(name: str, connect: Callable[[], Client], actors: int | None) -> Engine | None:
    if name == "local":
        if actors is not None:
            raise typer.BadParameter("--actors are Ray's; give --engine ray with it")
        return None
    # Here, as Ray takes a second to import.
    from cnclip_client.ray import RayEngine

    return RayEngine(connect, actors)


def _words(summary: Summary) -> str:
    rate = summary.items / summary.seconds if summary.seconds else 0.0
    parts = f" in {counted(summary.parts, 'part')}" if summary.parts else ""
    done = f"{counted(summary.items, 'item')}{parts}, {counted(summary.failures, 'failure')}"
    return f"{done}, {summary.seconds:.1f} s, {rate:,.1f} items/s"


@contextmanager
def _resumable(work: Path) -> Iterator[None]:
    """Says, where a job did not come to its end for no fault of its own, how it can, if there is work to go on with."""
    try:
        yield
    except (*_OF_SERVER, KeyboardInterrupt) as error:
        kept = "; what was done is kept: run the same command again to go on" if work.exists() else ""
        if isinstance(error, KeyboardInterrupt):
            complain(f"interrupted{kept}")
        error.args = (f"{error}{kept}",)
        raise
