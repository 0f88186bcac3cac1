"""The commands of `cnclip-build` that reach the repository that servers read from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from cnclip_console import option

from cnclip_builder.cli.options import DEFAULT_REPOSITORY, VerboseOption
from cnclip_builder.repository.serving import DEFAULT_SETTLE_S
from cnclip_builder.system.secrets import without_secrets

SettleOption = Annotated[
    float,
    option(
        "How long servers have to take in a step before the next: longer than their --repository-poll-secs.",
        "--settle",
        metavar="SECONDS",
        min=0,
    ),
]


def publish(
    destination: Annotated[
        str, typer.Argument(help="Where servers read it: a folder, s3://BUCKET/PREFIX, or what else fsspec knows.")
    ],
    repository: Annotated[
        Path, option("The repository that was built here.", exists=True, file_okay=False)
    ] = DEFAULT_REPOSITORY,
    name: Annotated[
        list[str] | None, option("Publish only models of this name; may be repeated. Default: all.")
    ] = None,
    changed: Annotated[
        bool, option("Publish files, too, that were changed since they were built.", "--changed")
    ] = False,
    settle: SettleOption = DEFAULT_SETTLE_S,
    verbose: VerboseOption = False,
) -> None:
    """Upload a repository so that a polling Triton never sees half a version.

    If it is cut off, run it again: it goes on. Only one may run at a time.

    Examples:
      cnclip-build publish s3://bucket/models
      cnclip-build publish /mnt/models --name vit-b-16
    """
    from cnclip_builder.repository.publishing import publish_repository

    shown = without_secrets(destination)
    done = publish_repository(repository, destination, name or (), changed=changed, settle_s=settle)
    for version in done.sent:
        typer.echo(f"sent     {version}")
    for version in done.dropped:
        typer.echo(f"dropped  {version}: no longer served; cnclip-build prune {shown} deletes it")
    typer.echo(f"{shown} serves what {repository} does")


def prune(
    repository: Annotated[str, typer.Argument(help="The repository: a folder, s3://BUCKET/PREFIX, ...")],
    keep: Annotated[
        int | None,
        option(
            "Leave only the newest N versions of each model served. What an ensemble needs stays in any case. "
            "Default: delete only what is not served.",
            metavar="N",
        ),
    ] = None,
    dry_run: Annotated[bool, option("Only say what would be deleted.", "--dry-run")] = False,
    settle: SettleOption = DEFAULT_SETTLE_S,
    verbose: VerboseOption = False,
) -> None:
    """Delete the versions of a repository that are not served. Don't run it during a publication.

    Example:
      cnclip-build prune s3://bucket/models --keep 2 --dry-run
    """
    from cnclip_builder.repository.pruning import plan_pruning, prune_repository

    pruning = plan_pruning(repository, keep) if dry_run else prune_repository(repository, keep, settle_s=settle)
    verb = "would delete" if dry_run else "deleted"
    for model, versions in pruning.unserved.items():
        typer.echo(f"{verb}  {model}  {', '.join(map(str, versions))}")
    if not pruning.unserved:
        typer.echo("nothing to delete")
