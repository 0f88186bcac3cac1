"""What a repository serves, told from its manifest and its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnclip_builder.errors import RepositoryError
from cnclip_builder.repository.manifest import MANIFEST_NAME, load_manifest, reading
from cnclip_builder.repository.render import parse_config
from cnclip_builder.repository.sums import files_of_folder
from cnclip_builder.tensors import TOWERS, Tower


def describe_repository(repository: Path) -> dict[str, Any]:
    """Tells what a repository serves.

    Returns:
        For JSON: by model name and version number, what the version was made from and how well it was measured, its
        size in bytes, and which models serve it unless asked for another version: ensembles, or encoders alone.

    Raises:
        RepositoryError: the folder has no manifest, or a damaged one, or a config is.
    """
    if not (repository / MANIFEST_NAME).is_file():
        raise RepositoryError(f"{repository} has no {MANIFEST_NAME}: name the folder that cnclip-build wrote")
    models = load_manifest(repository).models
    with reading(repository / MANIFEST_NAME):
        return {
            name: {
                number: _describe_version(repository, name, number, record)
                for number, record in sorted(versions.items(), key=lambda item: int(item[0]))
            }
            for name, versions in sorted(models.items())
        }


def changed_files(repository: Path) -> dict[str, str]:
    """Compares every served file with its hash in the manifest; reads all of them.

    What `cnclip-bench tune` or another build changed has its new hash there, and is not among them.

    Returns:
        By path, "changed", "missing" or "new"; empty if all is as it was written.

    Raises:
        RepositoryError: the manifest has no hashes.
    """
    vouched = load_manifest(repository).files
    if vouched is None:
        raise RepositoryError(
            f"{repository / MANIFEST_NAME} has no hashes, since a publication was cut off: build or publish it again"
        )
    there = files_of_folder(repository, {})
    told = dict.fromkeys(vouched.keys() - there.keys(), "missing")
    told |= dict.fromkeys(there.keys() - vouched.keys(), "new")
    told |= {path: "changed" for path in there.keys() & vouched.keys() if there[path] != vouched[path]}
    return dict(sorted(told.items()))


def _describe_version(repository: Path, name: str, number: str, record: Mapping[str, Any]) -> dict[str, Any]:
    front = "-encoder" if record["serving"]["encoders_only"] else ""
    return {
        "arch": record["arch"],
        "checkpoint": record["checkpoint"],
        "built": record["built"],
        "platform": record["platform"],
        "target": record["serving"]["target"],
        "served_by": [
            model
            for model in (f"{name}-{tower}{front}" for tower in TOWERS)
            if _served_version(repository, model) == number
        ],
        "encoders": {tower: _describe_encoder(repository, name, number, record, tower) for tower in TOWERS},
        # Measured with the building machine's GPU; None where it decodes no images, or there was none.
        "card_decoding": record.get("card_decoding"),
        "settings": record["serving"],
    }


def _describe_encoder(
    repository: Path, name: str, number: str, record: Mapping[str, Any], tower: Tower
) -> dict[str, Any]:
    folder = repository / f"{name}-{tower}-encoder" / number
    plans = record["plans"].get(tower, [])
    return {
        "precision": record["served_precision"][tower],
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        # Measured in process on probes, and live on real pictures and texts if it was built with --verify.
        "parity": record["served_parity"][f"{tower}-encoder"],
        "live_parity": record.get("live_parity", {}).get(tower),
        "gpus": [plan["gpu"]["name"] for plan in plans],
        "tensorrt": sorted({plan["tensorrt"] for plan in plans}),
    }


def _served_version(repository: Path, model: str) -> str | None:
    """The version of an encoder that its ensemble asks, or of which it tells clients itself."""
    path = repository / model / "config.pbtxt"
    if not path.is_file():
        raise RepositoryError(f"{path} is missing: copy the repository again, or build it again")
    config = parse_config(path.read_bytes(), str(path))
    if not config.HasField("ensemble_scheduling"):
        return str(config.parameters["version"].string_value)
    steps = config.ensemble_scheduling.step
    return next((str(step.model_version) for step in steps if step.model_name == f"{model}-encoder"), None)
