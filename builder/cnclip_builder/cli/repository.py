"""The command that builds a model repository."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH
from cnclip_builder.checkpoint.choose import choose_arch
from cnclip_builder.cli.options import (
    DEFAULT_ARTEFACTS,
    DEFAULT_DOWNLOAD_ROOT,
    DEFAULT_REPOSITORY,
    ArchOption,
    ArtefactsOption,
    CheckpointOption,
    DownloadRootOption,
    FastOption,
    HubOption,
    ImageProfileOption,
    LeastInt8SpeedUpOption,
    NameOption,
    OptimizationLevelOption,
    TextProfileOption,
    Tf32Option,
    VerboseOption,
    VocabularyOption,
    WorkspaceOption,
    plan_settings,
)
from cnclip_builder.errors import SettingError
from cnclip_builder.int8.report import LEAST_INT8_SPEED_UP
from cnclip_builder.repository.manifest import kept_serving
from cnclip_builder.repository.serving import (
    DEFAULT_MAX_IMAGE_PIXELS,
    PER_TOWER,
    Accelerator,
    Platform,
    Target,
    check_setting,
    choose_settings,
    parse_gpus,
    parse_lengths,
    parse_per_tower,
)
from cnclip_builder.tensors import TOWERS, Precision

_EACH = "; image=N,text=N for one of each"


def repository(
    arch: ArchOption = None,
    checkpoint: CheckpointOption = None,
    vocabulary: VocabularyOption = None,
    repository: Annotated[
        Path, typer.Option(help="The model repository's folder.", file_okay=False)
    ] = DEFAULT_REPOSITORY,
    target: Annotated[
        Optional[Target],  # noqa: UP045  # Typer reads it at run time, on Python 3.10 too
        typer.Option(
            help="What encoders run on. Default: gpu where nvidia-smi lists one, else cpu.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        Optional[Precision],  # noqa: UP045
        typer.Option(
            help="Of the served encoders; int8 on CPUs alone. Default: fp16 on a GPU, fp32 on a CPU.",
            show_default=False,
        ),
    ] = None,
    platform: Annotated[
        Optional[Platform],  # noqa: UP045
        typer.Option(help="Triton's backend for the encoders. Default: onnxruntime.", show_default=False),
    ] = None,
    accelerator: Annotated[
        Optional[Accelerator],  # noqa: UP045
        typer.Option(
            help="What the onnxruntime backend runs ONNX files with on a GPU; tensorrt builds at load time, none "
            "leaves the choice of kernels to ONNX Runtime. Default: cuda on a GPU.",
            show_default=False,
        ),
    ] = None,
    plans: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            help="A folder of plans made elsewhere, for --platform tensorrt; one for each kind of GPU.",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    image_profile: ImageProfileOption = None,
    text_profile: TextProfileOption = None,
    workspace_mib: WorkspaceOption = None,
    optimization_level: OptimizationLevelOption = None,
    fast: FastOption = False,
    cuda_graphs: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            help="Record the launches of plans and replay them, at the batch sizes that are likely. Default: no.",
            show_default=False,
        ),
    ] = None,
    pinned_memory: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(help="Copy to and from a GPU by page-locked memory. Default: yes.", show_default=False),
    ] = None,
    tf32: Tf32Option = None,
    context_length: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help=f"Most tokens of a text; longer ones are cut. Default: {DEFAULT_CONTEXT_LENGTH}.", show_default=False
        ),
    ] = None,
    max_batch_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N",
            help=f"Most rows of a batch{_EACH}. Default: 64 on a GPU, 128 texts in ONNX Runtime, 32 on a CPU.",
            show_default=False,
        ),
    ] = None,
    preferred_batch_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N",
            help=f"Rows of the requests that clients send{_EACH}. Default: 4 images on a CPU, 8 on a GPU, 32 texts.",
            show_default=False,
        ),
    ] = None,
    merged_batch_size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N",
            help=f"Rows up to which requests share a batch, 0: up to the largest{_EACH}. Default: the preferred images "
            "on a CPU, else 0.",
            show_default=False,
        ),
    ] = None,
    max_queue_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Requests that may wait for a model; 0: any number. A bound costs throughput: docs/serving.md. "
            "Default: 0.",
            show_default=False,
        ),
    ] = None,
    encoder_instances: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="N", help=f"Copies of each encoder, of each GPU{_EACH}. Default: 1.", show_default=False),
    ] = None,
    encoder_queue_delay: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="MICROSECONDS",
            help=f"How long a request waits for others to share its batch{_EACH}. Default: 1000.",
            show_default=False,
        ),
    ] = None,
    encoder_threads: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N", help=f"Threads of an encoder on a CPU, 0: all cores{_EACH}. Default: 0.", show_default=False
        ),
    ] = None,
    gpus: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N,N",
            help="Numbers of the GPUs that serve encoders, as tritonserver counts them. Default: all that it sees.",
            show_default=False,
        ),
    ] = None,
    preprocess_instances: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Processes that decode images; they divide the cores. Default: 1 before a CPU, 4 before GPUs.",
            show_default=False,
        ),
    ] = None,
    preprocess_threads: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Threads in each of them; 0: as many as cores. Default: 0.", show_default=False),
    ] = None,
    tokenize_instances: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Processes that tokenise texts. Default: 1.", show_default=False),
    ] = None,
    text_lengths: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="N,N",
            help="Tokens to which texts are padded, besides the context length. Default: 40 on a GPU, none on a CPU, "
            "where padding costs nothing.",
            show_default=False,
        ),
    ] = None,
    max_image_pixels: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Width times height of the largest image that is decoded; a larger one is refused. "
            f"Default: {DEFAULT_MAX_IMAGE_PIXELS}.",
            show_default=False,
        ),
    ] = None,
    image_formats: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAMES",
            help="Formats to decode beside those that Pillow decodes by itself, such as MPEG,WMF: docs/security.md.",
            show_default=False,
        ),
    ] = None,
    reduced_decoding: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            help="Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, above twice the resolution: twice as fast, grey "
            "levels off by 0.3 on average (1.5 at 12 megapixels), features by 1 - cosine = 1e-5: docs/serving.md. "
            "Default: no.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="A JSON file of settings by name, as manifest.json has them under `serving`; options count more.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    keep_settings: Annotated[
        bool,
        typer.Option(help="Keep what the repository's settings of this name are, where no option says otherwise."),
    ] = True,
    name: NameOption = None,
    model_version: Annotated[
        int, typer.Option(help="Triton's version number; a new one stays beside the old ones.")
    ] = 1,
    verify: Annotated[
        bool, typer.Option("--verify", help="Serve it and compare it with PyTorch before it takes its place.")
    ] = False,
    least_int8_speed_up: LeastInt8SpeedUpOption = LEAST_INT8_SPEED_UP,
    artefacts: ArtefactsOption = DEFAULT_ARTEFACTS,
    download_root: DownloadRootOption = DEFAULT_DOWNLOAD_ROOT,
    hub: HubOption = "huggingface",
    verbose: VerboseOption = False,
) -> None:
    """Build a model repository: checkpoint, ONNX files, and all that Triton needs.

    Models of other names, and other versions, that are in the repository stay in it. A model that is built again keeps
    the settings that it has, those that cnclip-bench tune found among them.
    """
    from cnclip_builder.build import BuildRequest, build_repository

    chosen_arch = choose_arch(arch, checkpoint, vocabulary, name)
    options = {
        "target": target,
        "precision": precision,
        "context_length": context_length,
        "max_batch_size": max_batch_size,
        "platform": platform,
        "accelerator": accelerator,
        "cuda_graphs": cuda_graphs,
        "pinned_memory": pinned_memory,
        "tf32": tf32,
        "max_queue_size": max_queue_size,
        "encoder_instances": encoder_instances,
        "encoder_queue_delay_microseconds": encoder_queue_delay,
        "encoder_threads": encoder_threads,
        "preferred_batch_size": preferred_batch_size,
        "merged_batch_size": merged_batch_size,
        "gpus": None if gpus is None else parse_gpus(gpus),
        "preprocess_instances": preprocess_instances,
        "preprocess_threads": preprocess_threads,
        "max_image_pixels": max_image_pixels,
        "image_formats": image_formats,
        "reduced_decoding": reduced_decoding,
        "tokenize_instances": tokenize_instances,
        "text_lengths": None if text_lengths is None else parse_lengths(text_lengths),
    }
    chosen = {**_read_settings(settings), **_given(options)}
    kept = kept_serving(repository, name or chosen_arch.slug, model_version, chosen_arch.name) if keep_settings else {}
    serving, told = choose_settings(chosen, kept, DEFAULT_CONTEXT_LENGTH)
    chosen_arch.checked_context_length(serving.context_length)
    if told:
        values = serving.as_dict()
        shown = ", ".join(f"{setting} {_shown(values[setting])}" for setting in told)
        typer.echo(f"Keeping the settings of {repository}: {shown} (--no-keep-settings begins anew)", err=True)
    entry = build_repository(
        BuildRequest(
            arch=chosen_arch,
            checkpoint=checkpoint,
            serving=serving,
            repository=repository,
            artefacts=artefacts,
            download_root=download_root,
            name=name,
            version=model_version,
            hub=hub,
            verify=verify,
            plan_settings=plan_settings(
                serving.largest_batch_size,
                serving.context_length,
                image_profile,
                text_profile,
                workspace_mib,
                optimization_level,
                serving.tf32,
                fast,
                serving.padded_lengths[0],
            ),
            plan_folders=tuple(plans or ()),
            least_int8_speed_up=least_int8_speed_up,
        )
    )
    batches = {tower: serving.encoder(tower).max_batch_size for tower in TOWERS}
    shown = str(batches["image"]) if len(set(batches.values())) == 1 else f"{batches['image']} and {batches['text']}"
    typer.echo(
        f"{repository} serves {entry.name}-image and {entry.name}-text, version {entry.version}: {entry.arch.name}, "
        f"{entry.precision} on {serving.target}, batches of up to {shown}, texts of up to "
        f"{serving.context_length} tokens"
    )


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, those of both encoders as numbers."""
    return {
        name: parse_per_tower(name, value) if name in PER_TOWER else value
        for name, value in options.items()
        if value is not None
    }


def _read_settings(path: Path | None) -> dict[str, Any]:
    """Reads a file of settings.

    Raises:
        SettingError: it is no JSON object, or a setting in it is none.
    """
    if path is None:
        return {}
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SettingError(
            f'{path} is no JSON ({error}): write settings by name, {{"encoder_instances": 2}}'
        ) from error
    if not isinstance(settings, dict):
        raise SettingError(f'{path} holds no settings by name: write a JSON object, such as {{"encoder_instances": 2}}')
    for name, value in settings.items():
        try:
            check_setting(name, value)
        except SettingError as error:
            raise SettingError(f"{path}: {error}") from error
    return settings


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{tower}={number}" for tower, number in value.items())
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
