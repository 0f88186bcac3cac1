"""The command that builds a model repository."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from cnclip_console import gives_options, option

from cnclip_builder.cli.options import (
    BUILD,
    DEFAULT_ARTEFACTS,
    DEFAULT_REPOSITORY,
    FILES,
    MODEL,
    PLANS,
    ArtefactsOption,
    LeastInt8SpeedUpOption,
    ModelOptions,
    PlanOptions,
    VerboseOption,
)
from cnclip_builder.cli.serving import ServingOptions
from cnclip_builder.cli.verify import show_live_parity
from cnclip_builder.errors import SettingError
from cnclip_builder.int8.report import LEAST_INT8_SPEED_UP
from cnclip_builder.repository.choosing import check_setting, choose_settings
from cnclip_builder.repository.manifest import kept_serving, load_manifest
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.tensors import TOWERS

if TYPE_CHECKING:
    from cnclip_builder.repository.entry import RepositoryEntry


@gives_options(ModelOptions, "model")
@gives_options(PlanOptions, "plan_options")
@gives_options(ServingOptions, "serving_options")
def repository(
    *,
    model: ModelOptions,
    model_version: Annotated[
        int, option("Triton's version number; a new one stays beside the old ones.", panel=MODEL, show_default=True)
    ] = 1,
    repository: Annotated[
        Path, option("The model repository's folder.", panel=FILES, file_okay=False, show_default=True)
    ] = DEFAULT_REPOSITORY,
    artefacts: ArtefactsOption = DEFAULT_ARTEFACTS,
    serving_options: ServingOptions,
    plans: Annotated[
        list[Path] | None,
        option(
            "A folder of plans made elsewhere, for --platform tensorrt; one for each kind of GPU.",
            panel=PLANS,
            metavar="DIR",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    plan_options: PlanOptions,
    verify: Annotated[
        bool, option("Serve it and compare it with PyTorch before it takes its place.", "--verify", panel=BUILD)
    ] = False,
    card_images: Annotated[
        Path | None,
        option(
            "Images on which --preprocess gpu is measured besides the built-in ones, 256 of them at most.",
            panel=BUILD,
            metavar="DIR",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        option(
            "A JSON file of settings by name, as manifest.json has them under `serving`; options count more.",
            panel=BUILD,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    keep_settings: Annotated[
        bool,
        option(
            "Keep what the repository's settings of this name are, where no option says otherwise. Default: yes.",
            panel=BUILD,
            show_default=False,
        ),
    ] = True,
    least_int8_speed_up: LeastInt8SpeedUpOption = LEAST_INT8_SPEED_UP,
    dry_run: Annotated[
        bool,
        option(
            "Only tell what would be made, reused or refused, and the configs; makes, fetches and writes nothing.",
            "--dry-run",
            panel=BUILD,
        ),
    ] = False,
    as_json: Annotated[bool, option("A dry run's findings as JSON.", "--json", panel=BUILD)] = False,
    verbose: VerboseOption = False,
) -> None:
    """Build a model repository: checkpoint, ONNX files, and all that Triton needs.

    Models of other names, and other versions, that are in the repository stay in it. A model that is built again keeps
    the settings that it has, those that cnclip-bench tune found among them.

    Examples:
      cnclip-build repository --arch ViT-B-16
      cnclip-build repository --arch ViT-B-16 --checkpoint epoch_latest.pt --verify
      cnclip-build repository --arch RN50 --checkpoint random:0 --target cpu
      cnclip-build repository --arch ViT-B-16 --encoders-only
      cnclip-build repository --arch ViT-B-16 --max-batch-size 16 --dry-run
    """
    from cnclip_builder.build import BuildRequest, build_repository

    if as_json and not dry_run:
        raise SettingError("--json is what a dry run says: add --dry-run")
    if repository.name in ("", ".."):
        repository = repository.resolve()  # "." would be the old folder once the new one is in its place
    chosen_arch = model.choose_arch(fetch=not dry_run)
    chosen = {**_read_settings(settings), **serving_options.given()}
    name = model.served_name(chosen_arch)
    kept = kept_serving(repository, name, model_version, chosen_arch.name) if keep_settings else {}
    serving, told = choose_settings(chosen, kept, chosen_arch.default_context_length)
    chosen_arch.checked_context_length(serving.context_length)
    _require_used(serving, [*(["--plans"] if plans else []), *plan_options.given()], card_images)
    if told:
        values = serving.as_dict()
        shown = ", ".join(f"{setting} {_shown(values[setting])}" for setting in told)
        typer.echo(f"Keeping the settings of {repository}: {shown} (--no-keep-settings begins anew)", err=True)
    request = BuildRequest(
        arch=chosen_arch,
        checkpoint=model.checkpoint,
        serving=serving,
        repository=repository,
        artefacts=artefacts,
        download_root=model.download_root,
        name=model.name,
        version=model_version,
        hub=model.hub,
        verify=verify,
        plan_settings=plan_options.settings(
            serving.largest_batch_size, serving.context_length, serving.tf32, serving.padded_lengths[0]
        ),
        plan_folders=tuple(plans or ()),
        least_int8_speed_up=least_int8_speed_up,
        card_images=card_images,
    )
    if dry_run:
        from cnclip_builder.cli.dry_run import show_preview
        from cnclip_builder.preview import preview_build

        show_preview(preview_build(request), repository, as_json=as_json)
        return
    entry = build_repository(request)
    _tell(repository, entry)
    if verify:
        show_live_parity(load_manifest(repository).models[entry.name][str(entry.version)]["live_parity"])


def _tell(repository: Path, entry: RepositoryEntry) -> None:
    """Says what is served now."""
    serving = entry.serving
    images, texts = (serving.encoder(tower).max_batch_size for tower in TOWERS)
    batches = str(images) if images == texts else f"{images} and {texts}"
    front, alone = ("-encoder", ", for clients that prepare") if serving.encoders_only else ("", "")
    typer.echo(
        f"{repository} serves {entry.name}-image{front} and {entry.name}-text{front}, version {entry.version}{alone}: "
        f"{entry.arch.name}, {entry.precision} on {serving.target}, batches of up to {batches}, texts of up to "
        f"{serving.context_length} tokens"
    )


def _require_used(serving: ServingConfig, of_plans: Sequence[str], card_images: Path | None) -> None:
    """Refuses options that what is served has no use for, and whoever gave them takes it for something else.

    Raises:
        SettingError: naming them.
    """
    if of_plans and serving.platform != "tensorrt":
        raise SettingError(
            f"{', '.join(of_plans)}: for TensorRT plans alone, and {serving.platform} serves none: choose --platform "
            "tensorrt, or leave it out"
        )
    if card_images is not None and serving.preprocess != "gpu":
        raise SettingError(
            "--card-images: for a GPU that decodes, and here processors do: choose --preprocess gpu, or leave it out"
        )


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
