"""`manifest.json` beside the models: what every served version was made from, and how well it was measured to fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnclip_builder.errors import RepositoryError
from cnclip_builder.repository.serving import PER_TOWER, merged_setting
from cnclip_builder.system.atomic import replacing_file

MANIFEST_NAME = "manifest.json"
_SCHEMA = 1


def read_manifest(repository: Path) -> dict[str, Any]:
    """Reads what a repository serves.

    Returns:
        By model name and version number (as a string), the version's entry; empty for a new repository.

    Raises:
        RepositoryError: the file is damaged or of a later schema, or the folder holds something else.
    """
    path = repository / MANIFEST_NAME
    if not path.exists():
        if repository.is_dir() and any(repository.iterdir()):
            raise RepositoryError(
                f"{repository} is not empty and has no {MANIFEST_NAME}, so this builder did not make it: choose "
                "another folder, or empty it"
            )
        return {}
    return parse_manifest(path.read_text(encoding="utf-8"), str(path))


def kept_serving(repository: Path, name: str, version: int, arch: str) -> dict[str, Any]:
    """Gives the settings that a model has in a repository: of this version, or else of its newest.

    Args:
        repository: its folder.
        name: of the model.
        version: that is built.
        arch: its architecture's name; the settings of another one say nothing of this.

    Returns:
        By name; empty for a new model.
    """
    versions = {int(number): record for number, record in read_manifest(repository).get(name, {}).items()}
    if not versions:
        return {}
    record = versions.get(version, versions[max(versions)])
    return dict(record["serving"]) if record["arch"] == arch else {}


def update_serving(repository: Path, name: str, settings: Mapping[str, Any]) -> None:
    """Writes settings of a model into the manifest, so that the next build keeps them.

    All versions of a model share their configs, and so the settings in them.

    Args:
        repository: its folder.
        name: of the model.
        settings: of `ServingConfig`, by name; a number for one encoder leaves the other's as it is.

    Raises:
        RepositoryError: the repository has no manifest, or none of this model.
    """
    models = read_manifest(repository)
    if name not in models:
        raise RepositoryError(f"{repository / MANIFEST_NAME} tells of no model {name}: build it with cnclip-build")
    for record in models[name].values():
        for setting, value in settings.items():
            before = record["serving"].get(setting)
            record["serving"][setting] = merged_setting(before, value) if setting in PER_TOWER else value
    with replacing_file(repository / MANIFEST_NAME) as partial:
        partial.write_text(manifest_text(models), encoding="utf-8")


def parse_manifest(text: str, where: str) -> dict[str, Any]:
    """Reads a manifest's text, as `read_manifest` does its file.

    Raises:
        RepositoryError: it is damaged or of a later schema.
    """
    try:
        manifest = json.loads(text)
        if manifest["schema"] != _SCHEMA:
            raise RepositoryError(f"{where} has schema {manifest['schema']}, this builder reads {_SCHEMA}: update it")
        models: dict[str, Any] = manifest["models"]
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"{where} is damaged ({error!r}): delete the repository and build it again") from error
    return models


def write_manifest(repository: Path, models: Mapping[str, Any]) -> None:
    """Writes the manifest of a repository."""
    (repository / MANIFEST_NAME).write_text(manifest_text(models), encoding="utf-8")


def manifest_text(models: Mapping[str, Any]) -> str:
    """What a manifest's file holds."""
    return json.dumps({"schema": _SCHEMA, "models": models}, indent=2, ensure_ascii=False) + "\n"
