"""What models of one repository, and versions of one name, must share, because a config or a server is one for all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch
from cnclip_builder.errors import RepositoryError, SettingError
from cnclip_builder.repository.manifest import MANIFEST_NAME, load_manifest, reading
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.system.atomic import sha256_of_file


def check_model_name(name: str) -> str:
    """Returns a name that is safe as a part of file and model names.

    Raises:
        SettingError: it is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise SettingError(f"{name!r} can't name a model: use letters, digits, '.', '_' and '-', up to 100 of them")
    return name


def check_place(name: str, version: int, arch: Arch, serving: ServingConfig, repository: Path) -> None:
    """Checks, before hours of work, that a version of a model may go into a repository.

    Raises:
        SettingError: the name or the version is none.
        RepositoryError: the repository is not this builder's, or has the name in use for what can't share a config.
    """
    check_model_name(name)
    if not 1 <= version <= 2**31 - 1:
        raise SettingError(f"version {version} is out of range: Triton's versions start at 1")
    versions = load_manifest(repository).models.get(name, {})
    with reading(repository / MANIFEST_NAME):
        _check_same_shape(name, version, arch, serving, versions)


def _check_same_shape(name: str, version: int, arch: Arch, serving: ServingConfig, versions: Mapping[str, Any]) -> None:
    """Versions of a model share one config, so they must share all that stands in it."""
    others = {number: record for number, record in versions.items() if number != str(version)}
    for number, record in others.items():
        for what, theirs, ours in (
            ("architecture", record["arch"], arch.name),
            ("context length", record["serving"]["context_length"], serving.context_length),
            ("platform", record["platform"], serving.platform),
            # They share the input that warms encoders up.
            ("vocabulary", record["vocabulary"]["sha256"], sha256_of_file(arch.vocabulary_file)),
        ):
            if theirs != ours:
                raise RepositoryError(
                    f"{name} version {number} has {what} {theirs}, and versions of a model must share it: "
                    f"serve {what} {ours} under another name (NAME=, --name)"
                )
        if record["serving"]["encoders_only"] != serving.encoders_only:
            models = ("encoders alone", "encoders and what prepares for them")
            theirs, ours = models if not serving.encoders_only else reversed(models)
            raise RepositoryError(
                f"{name} version {number} serves {theirs}, and versions of a model must share it: serve {ours} under "
                "another name (NAME=, --name)"
            )
        # An arch of its own is named by a user.
        if not arch.computes_as(record["model_info"]):
            raise RepositoryError(
                f"{name} version {number} has an architecture of other sizes that is named {arch.name} too, and "
                "versions of a model must share it: serve this one under another name (NAME=, --name)"
            )


def check_same_plans(name: str, version: int, ours: Mapping[str, Any], versions: Mapping[str, Any]) -> None:
    """Refuses plans of other kinds or profiles: one config names those of all versions of an encoder.

    Args:
        name: of the models.
        version: that is built.
        ours: its plans by encoder, as a manifest holds them.
        versions: what the manifest holds of this name.

    Raises:
        RepositoryError: naming both.
    """
    for number, record in versions.items():
        if number == str(version) or record["platform"] != "tensorrt":
            continue
        for tower in ours:
            kinds = [[(plan["file"], plan["profiles"]) for plan in side[tower]] for side in (record["plans"], ours)]
            if kinds[0] != kinds[1]:
                raise RepositoryError(
                    f"{name} version {number} has other {tower} plans ({_brief(kinds[0])}; now "
                    f"{_brief(kinds[1])}), and versions of a model must share kinds of GPU and profiles: build for the "
                    "same, or serve under another name (NAME=, --name)"
                )


def check_one_tensorrt(models: Mapping[str, Any]) -> None:
    """Refuses a repository whose plans were built by several TensorRTs: a tritonserver has one, and would not start.

    Args:
        models: what its manifest holds.

    Raises:
        RepositoryError: naming the versions and who has which.
    """
    owners: dict[str, list[str]] = {}
    for name, versions in models.items():
        for number, record in versions.items():
            for plans in record["plans"].values():
                for plan in plans:
                    owner = f"{name} version {number}"
                    if owner not in owners.setdefault(plan["tensorrt"], []):
                        owners[plan["tensorrt"]].append(owner)
    if len(owners) > 1:
        told = "; ".join(f"TensorRT {version}: {', '.join(names)}" for version, names in sorted(owners.items()))
        raise RepositoryError(
            f"the plans of one repository would be of several TensorRTs ({told}), and a tritonserver has one: build "
            "them all with the version that serves them, or use another repository"
        )


def _brief(plans: Sequence[tuple[str, Sequence[str]]]) -> str:
    return ", ".join(f"{file} for {' and '.join(profiles)}" for file, profiles in plans)
