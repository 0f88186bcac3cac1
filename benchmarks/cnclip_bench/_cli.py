"""`cnclip-bench`: each comparison a command, and `all` for all of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cnclip_bench.stats import Latency, median_ratio

if TYPE_CHECKING:
    from cnclip_bench.comparisons import Subject

app = typer.Typer(
    name="cnclip-bench",
    help="Measures encoders, and what is served around them, side by side in one run.\n\n"
    "A repository is built where there is none. Tables go to stdout, JSON and a plot of each to --output.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_TOWERS: tuple[Literal["image", "text"], ...] = ("image", "text")
_FOLDER = Path("build/bench")

ArchOption = Annotated[str, typer.Option(help="The architecture, or a .json file, as for cnclip-build.")]
CheckpointOption = Annotated[str, typer.Option(help="A .pt file, or random:SEED.")]
RepositoryOption = Annotated[Path, typer.Option(help="The model repository; built where it lacks the model.")]
ImagesOption = Annotated[Path | None, typer.Option(help="A folder of images. Default: the builder's samples.")]
CaptionsOption = Annotated[Path | None, typer.Option(help="A file of texts, one a line. Default: the builder's.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="How often each thing is measured.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Rows a batch.")]
ItemsOption = Annotated[int, typer.Option(min=1, help="Images, and four times as many texts, a round.")]
OutputOption = Annotated[Path, typer.Option(help="Where JSON and plots go.")]

_RANDOM, _REPOSITORY, _OUTPUT = "random:0", _FOLDER / "repository", Path("build/benchmarks")


@app.command()
def latency(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = _RANDOM,
    repository: RepositoryOption = _REPOSITORY,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    batch_size: BatchOption = 1,
    rounds: RoundsOption = 20,
    output: OutputOption = _OUTPUT,
) -> None:
    """Time a batch in PyTorch, in ONNX Runtime and through the server, as speed_benchmark.py does."""
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_latencies, write

    subject = _subject(arch, checkpoint, repository, images, captions)
    with _served(subject) as (_, client):
        for tower in _TOWERS:
            timings = comparisons.encoders(subject, tower, batch_size, rounds, client)
            found = [Latency.of(name, seconds) for name, seconds in timings.items()]
            title = f"{subject.arch.name}, {tower}s, batch of {batch_size}"
            show_latencies(title, found)
            bars = {one.name: one.median_ms for one in found}
            write(output, f"latency-{tower}-{batch_size}", f"{title}: median", found, bars, "ms")


@app.command()
def served(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = _RANDOM,
    repository: RepositoryOption = _REPOSITORY,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    items: ItemsOption = 48,
    batch_size: BatchOption = 8,
    rounds: RoundsOption = 6,
    output: OutputOption = _OUTPUT,
) -> None:
    """Divide the rate of the served ensembles by that of the same sessions in one process."""
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_values, write

    subject = _subject(arch, checkpoint, repository, images, captions)
    with _served(subject) as (_, client):
        for tower in _TOWERS:
            count = items if tower == "image" else 4 * items
            timings = comparisons.served_over_in_process(subject, tower, count, rounds, client, batch_size)
            rates = {name: [count / one for one in seconds] for name, seconds in timings.items()}
            ratio = median_ratio(rates["served"], rates["in process"])
            title = f"{subject.arch.name}, {tower}s a second"
            shown = {name: f"{sorted(rate)[len(rate) // 2]:.2f}" for name, rate in rates.items()}
            show_values(title, {**shown, "served / in process, median of rounds": f"{ratio:.3f}"})
            bars = {name: sorted(rate)[len(rate) // 2] for name, rate in rates.items()}
            figures = {"items": count, "rates": rates, "median_ratio": ratio}
            write(
                output, f"served-{tower}", f"{title}; served / in process {ratio:.3f}", figures, bars, "items a second"
            )


@app.command()
def stages(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = _RANDOM,
    repository: RepositoryOption = _REPOSITORY,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    items: ItemsOption = 48,
    output: OutputOption = _OUTPUT,
) -> None:
    """Tell what each step of the ensembles takes of an item, from Triton's own statistics."""
    from cnclip_bench import comparisons
    from cnclip_bench.output import show_values, write

    subject = _subject(arch, checkpoint, repository, images, captions)
    with _served(subject) as (url, client):
        for tower in _TOWERS:
            count = items if tower == "image" else 4 * items
            taken = comparisons.stages(subject, tower, count, url, client)
            title = f"{subject.arch.name}, ms {'an image' if tower == 'image' else 'a text'}"
            show_values(title, {name: f"{value:.2f}" for name, value in taken.items()})
            write(output, f"stages-{tower}", title, taken, taken, "ms an item")


@app.command()
def preprocess(
    arch: ArchOption = "ViT-B-16",
    images: ImagesOption = None,
    rounds: RoundsOption = 10,
    output: OutputOption = _OUTPUT,
) -> None:
    """Time decoding and resizing on one core, beside cn_clip's transform."""
    from cnclip_bench import comparisons

    subject = _subject(arch, _RANDOM, None, images, None)
    _beside_cn_clip("preprocess", "images", comparisons.preprocessing(subject, rounds), len(subject.images), output)


@app.command()
def tokenize(
    captions: CaptionsOption = None,
    rounds: RoundsOption = 10,
    output: OutputOption = _OUTPUT,
) -> None:
    """Time tokenising on one core, beside cn_clip's."""
    from cnclip_bench import comparisons

    subject = _subject("ViT-B-16", _RANDOM, None, None, captions)
    _beside_cn_clip("tokenize", "texts", comparisons.tokenizing(subject, rounds, 2000), 2000, output)


@app.command("all")
def everything(
    arch: ArchOption = "ViT-B-16",
    checkpoint: CheckpointOption = _RANDOM,
    repository: RepositoryOption = _REPOSITORY,
    images: ImagesOption = None,
    captions: CaptionsOption = None,
    output: OutputOption = _OUTPUT,
) -> None:
    """Run all of them."""
    given = (arch, checkpoint, repository, images, captions)
    tokenize(captions, 10, output)
    preprocess(arch, images, 10, output)
    for batch_size, rounds in ((1, 20), (8, 8)):
        latency(*given, batch_size, rounds, output)
    served(*given, 48, 8, 6, output)
    stages(*given, 48, output)


def _beside_cn_clip(name: str, what: str, timings: dict[str, list[float]], count: int, output: Path) -> None:
    from cnclip_bench.output import show_values, write

    rates = {who: [count / one for one in seconds] for who, seconds in timings.items()}
    ratio = median_ratio(rates["served"], rates["cn_clip"])
    bars = {who: sorted(rate)[len(rate) // 2] for who, rate in rates.items()}
    title = f"{name}: {what} a second on one core"
    show_values(title, {**{who: f"{rate:.0f}" for who, rate in bars.items()}, "served / cn_clip": f"{ratio:.2f}"})
    write(output, name, title, {"rates": rates, "median_ratio": ratio}, bars, f"{what} a second")


def _subject(
    arch: str, checkpoint: str, repository: Path | None, images: Path | None, captions: Path | None
) -> Subject:
    """Gathers what is measured; builds its repository where one is asked for and lacks the model."""
    from cnclip_builder.arch import get_arch
    from cnclip_builder.build import BuildRequest, build_repository
    from cnclip_builder.serving import ServingConfig

    from cnclip_bench import inputs
    from cnclip_bench.comparisons import Subject

    chosen = get_arch(arch)
    path, artefacts = Path(), _FOLDER / "artefacts" / chosen.slug
    if repository is not None:
        serving = ServingConfig(target="cpu", precision="fp32", context_length=52, max_batch_size=16)
        request = BuildRequest(
            arch=chosen,
            checkpoint=checkpoint,
            serving=serving,
            repository=repository,
            artefacts=_FOLDER / "artefacts",
            download_root=_FOLDER / "checkpoints",
        )
        path = build_repository(request).artefacts.checkpoint.file.path
    return Subject(
        arch=chosen,
        checkpoint=path,
        repository=repository or Path(),
        artefacts=artefacts,
        name=chosen.slug,
        images=inputs.images(images, chosen.resolution),
        texts=inputs.captions(captions),
    )


@contextmanager
def _served(subject: Subject) -> Iterator[tuple[str, Any]]:
    from cnclip_client import Client
    from cnclip_server import TritonServer

    with (
        TritonServer(subject.repository, grpc_port=0, http_port=0, metrics_port=0) as server,
        Client(server.grpc_url, model=subject.name) as client,
    ):
        yield server.grpc_url, client


def main() -> None:
    """Runs the command. What goes wrong is one line on stderr and exit status 1."""
    from cnclip_builder.errors import BuildError

    try:
        app()
    except (BuildError, OSError, ValueError, ModuleNotFoundError) as error:
        missing = isinstance(error, ModuleNotFoundError)
        fix = ": pip install 'cn-clip-triton[builder,server,bench]' installs all that is measured" if missing else ""
        print(f"error: {error}{fix}", file=sys.stderr)
        sys.exit(1)
