"""How `cnclip-build repository --dry-run` tells what a build would do."""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

import typer

from cnclip_builder.preview import Preview
from cnclip_builder.repository.store import CONFIG_NAME

_WIDTH = 80
_INDENT = re.compile("^ +", re.MULTILINE)
_HASH = re.compile(r'"([0-9a-f]{8})[0-9a-f]{56}"')


def show_preview(preview: Preview, repository: Path, *, as_json: bool) -> None:
    """Prints a preview on stdout: within 80 columns, of changed configs what changes; or whole as JSON.

    Args:
        preview: what to print.
        repository: the folder that is built.
        as_json: whether as JSON.
    """
    if as_json:
        typer.echo(json.dumps(preview.as_dict(), indent=2, ensure_ascii=False))
        return
    checkpoint = preview.checkpoint
    typer.echo(f"A dry run: nothing of {repository} is made.")
    typer.echo(f"\ncheckpoint {checkpoint['source']}: {checkpoint['action']}")
    if "sha256" in checkpoint:
        typer.echo(f"  sha256 {checkpoint['sha256'][:12]}")
    _list("ONNX files", preview.artefacts)
    _list("plans", preview.plans)
    _list(f"models, version {preview.version}", preview.models)
    typer.echo()
    for note in preview.notes:
        typer.echo(textwrap.fill(f"- {note}", _WIDTH, subsequent_indent="  "))
    for name, (action, text) in preview.configs.items():
        if action == "unchanged":
            typer.echo(f"# {name}/{CONFIG_NAME}: {action}")
            continue
        typer.echo(f"\n# {name}/{CONFIG_NAME}: {action}")
        path = repository / name / CONFIG_NAME
        if path.is_file():
            before = _narrow(path.read_text(encoding="utf-8")).splitlines()
            for line in difflib.unified_diff(before, _narrow(text).splitlines(), "now", "then", lineterm="", n=1):
                typer.echo(line)
        else:
            typer.echo(_narrow(text), nl=False)


def _list(what: str, actions: Mapping[str, str]) -> None:
    if actions:
        typer.echo(f"\n{what}")
    wide = max(map(len, actions.values()), default=0)
    for name, action in actions.items():
        typer.echo(f"  {action:{wide}}  {name}")


def _narrow(text: str) -> str:
    """A config's text with hashes cut and half the indentation, for 80 columns: `--json` has it as it is written."""
    return _INDENT.sub(lambda spaces: " " * (len(spaces[0]) // 2), _HASH.sub(r'"\1..."', text))
