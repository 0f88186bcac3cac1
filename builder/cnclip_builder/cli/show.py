"""The command that tells what a repository serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from cnclip_console import option, visible

from cnclip_builder.cli.options import DEFAULT_REPOSITORY
from cnclip_builder.errors import RepositoryError


def show(
    repository: Annotated[
        Path, typer.Argument(help="The model repository's folder.", exists=True, file_okay=False)
    ] = DEFAULT_REPOSITORY,
    as_json: Annotated[bool, option("As JSON, with every setting.", "--json")] = False,
    check: Annotated[
        bool,
        option("Compare every served file with its hash in manifest.json; one that differs is an error.", "--check"),
    ] = False,
) -> None:
    """Tell what a repository serves: models, checkpoints, precisions, sizes, and how well each was measured to fit.

    Example:
      cnclip-build show build/repository --check
    """
    from cnclip_builder.repository.contents import changed_files, describe_repository
    from cnclip_builder.repository.manifest import MANIFEST_NAME, reading

    models = describe_repository(repository)
    changed = changed_files(repository) if check else {}
    if as_json:
        typer.echo(
            json.dumps({"models": models, **({"changed": changed} if check else {})}, indent=2, ensure_ascii=False)
        )
    else:
        with reading(repository / MANIFEST_NAME):
            for name, versions in models.items():
                for number, version in versions.items():
                    _print(name, number, version)
        for path, how in changed.items():
            typer.echo(visible(f"{how:8}  {path}"))
    if changed:
        count = "1 file is" if len(changed) == 1 else f"{len(changed)} files are"
        raise RepositoryError(
            f"{count} not what {repository / MANIFEST_NAME} says, such as {next(iter(changed))}: build it again, or "
            "if you meant it, serve it with cnclip-serve --serve-changed and publish it with --changed"
        )


def _print(name: str, number: str, version: Mapping[str, Any]) -> None:
    checkpoint = version["checkpoint"]
    served_by = ", ".join(version["served_by"]) or "no ensemble; only by its number"
    revision = f" at {checkpoint['revision']}" if checkpoint.get("revision") else ""
    untrained = "  (untrained)" if checkpoint["untrained"] else ""
    typer.echo(f"{name}, version {number}: {version['arch']}, {version['platform']} on {version['target']}")
    typer.echo(f"  served by   {served_by}")
    typer.echo(f"  built       {version['built']}")
    typer.echo(f"  checkpoint  {checkpoint['source']}{revision}{untrained}, sha256 {checkpoint['sha256'][:12]}")
    if version["settings"]["preprocess"] == "gpu":
        typer.echo(f"  decodes     {_card(version)}")
    for tower, encoder in version["encoders"].items():
        gpus = (
            f", plans of TensorRT {', '.join(encoder['tensorrt'])} for {', '.join(encoder['gpus'])}"
            if encoder["gpus"]
            else ""
        )
        typer.echo(f"  {tower:10}  {encoder['precision']}, {encoder['bytes'] / 1e6:.1f} MB{gpus}{_measured(encoder)}")


def _card(version: Mapping[str, Any]) -> str:
    """How images are decoded on a GPU, and how far from exactly."""
    found = version["card_decoding"]
    if not found:
        return "JPEGs on the GPU; how far from exactly was not measured where it was built"
    features = found["features"]
    return (
        f"JPEGs on the GPU; of {found['images']} images {found['exact_share']:.0%} exactly, the others' pixels off by "
        f"{found['mean_pixel_difference']:.2g} on average and {found['largest_pixel_difference']} at most, "
        f"1 - cosine <= {features['cosine_distance']:.0e}, {features['centred_distance']:.0e} centred"
    )


def _measured(encoder: Mapping[str, Any]) -> str:
    """How far features are from PyTorch's; live ones say most."""
    parity, where = (encoder["live_parity"], "served") if encoder["live_parity"] else (encoder["parity"], "in process")
    return f", 1 - cosine <= {parity['cosine_distance']:.0e} {where}"
