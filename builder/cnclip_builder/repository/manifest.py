"""`manifest.json` beside the models: what every served version was made from, and how well it was measured to fit.

It holds `schema`, `models` (by name and version number) and `files` (see `sums`); that of a repository that is being
changed file by file at this moment has no `files`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cnclip_builder.errors import RepositoryError
from cnclip_builder.repository.settings import PER_TOWER, merged_setting
from cnclip_builder.repository.values import KINDS
from cnclip_builder.system.atomic import replacing_file, sha256_of_file

MANIFEST_NAME = "manifest.json"
_SCHEMA = 1
_REBUILD = "copy it again, or delete the repository and build it again"


@dataclass(frozen=True)
class Manifest:
    """What a manifest holds.

    Attributes:
        models: by model name and version number (as a string), the version's entry.
        files: the SHA-256 of every served file by its path; None if the manifest does not vouch for them.
    """

    models: dict[str, Any]
    files: dict[str, str] | None = None


def load_manifest(repository: Path) -> Manifest:
    """Reads a repository's manifest; an empty one for a new repository.

    A name whose folders were all deleted by hand is none of its models; its files are still told as gone.

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
        return Manifest({})
    manifest = parse_manifest(path.read_bytes(), str(path))
    gone = {name for name in manifest.models if not any((repository / f"{name}-{kind}").is_dir() for kind in KINDS)}
    return replace(manifest, models={name: manifest.models[name] for name in manifest.models if name not in gone})


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
    versions = {int(number): record for number, record in load_manifest(repository).models.get(name, {}).items()}
    if not versions:
        return {}
    record = versions.get(version, versions[max(versions)])
    with reading(repository / MANIFEST_NAME):
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
    manifest = load_manifest(repository)
    if name not in manifest.models:
        raise RepositoryError(f"{repository / MANIFEST_NAME} tells of no model {name}: build it with cnclip-build")
    with reading(repository / MANIFEST_NAME):
        for record in manifest.models[name].values():
            for setting, value in settings.items():
                before = record["serving"].get(setting)
                record["serving"][setting] = merged_setting(before, value) if setting in PER_TOWER else value
    _replace(repository, manifest)


def renew_files(repository: Path, paths: Iterable[Path]) -> None:
    """Hashes files anew that were changed on purpose; a manifest that vouches for none is left as it is.

    Args:
        repository: its folder.
        paths: of the changed files, in it.

    Raises:
        RepositoryError: the manifest is damaged.
    """
    if not (repository / MANIFEST_NAME).exists():
        return
    manifest = load_manifest(repository)
    if manifest.files is not None:
        renewed = {path.relative_to(repository).as_posix(): sha256_of_file(path) for path in paths}
        _replace(repository, replace(manifest, files={**manifest.files, **renewed}))


@contextlib.contextmanager
def reading(where: str | Path) -> Iterator[None]:
    """Turns what a manifest's odd content makes of code that reads it into one line.

    Args:
        where: the manifest.

    Raises:
        RepositoryError: something is missing in it, or of another kind.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RepositoryError(f"{where} is damaged ({error!r}): {_REBUILD}") from error


def parse_manifest(text: bytes, where: str) -> Manifest:
    """Reads a manifest's text, as `load_manifest` does its file.

    Raises:
        RepositoryError: it is damaged or of a later schema.
    """
    with reading(where):
        try:
            manifest = json.loads(text.decode("utf-8"))
        except RecursionError:
            raise ValueError("nested without end") from None
        if manifest["schema"] != _SCHEMA:
            raise RepositoryError(f"{where} has schema {manifest['schema']}, this builder reads {_SCHEMA}: update it")
        models, files = manifest["models"], manifest.get("files")
        for number, record in (entry for versions in models.values() for entry in versions.items()):
            if not number.isdecimal() or not isinstance(record, dict):
                raise ValueError(f"{number!r} is no version")
        if files is not None and not all(isinstance(digest, str) for digest in files.values()):
            raise ValueError("'files' holds no hashes")
        # Older builders kept a name of which nothing was left.
        return Manifest({name: versions for name, versions in models.items() if versions}, files)


def write_manifest(repository: Path, models: Mapping[str, Any], files: Mapping[str, str] | None = None) -> None:
    """Writes the manifest of a repository that is being made.

    Args:
        repository: its folder.
        models: by name and version number.
        files: hashes by path; None to vouch for none.
    """
    path = repository / MANIFEST_NAME
    path.unlink(missing_ok=True)  # it may be a link to the published one
    path.write_text(manifest_text(models, files), encoding="utf-8")


def manifest_text(models: Mapping[str, Any], files: Mapping[str, str] | None) -> str:
    """What a manifest's file holds."""
    vouched = {} if files is None else {"files": files}
    return json.dumps({"schema": _SCHEMA, "models": models, **vouched}, indent=2, ensure_ascii=False) + "\n"


def _replace(repository: Path, manifest: Manifest) -> None:
    with replacing_file(repository / MANIFEST_NAME) as partial:
        partial.write_text(manifest_text(manifest.models, manifest.files), encoding="utf-8")
