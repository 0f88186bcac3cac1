"""From artefacts to a Triton model repository: six models an architecture or its two encoders, all or nothing."""

from __future__ import annotations

import importlib
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from cnclip_templates import templates_folder

from cnclip_builder.errors import RepositoryError
from cnclip_builder.export.files import served_input
from cnclip_builder.repository.encoder_config import plan_filename, warmup_file
from cnclip_builder.repository.encoders import SERVED_RECIPE, library_versions, write_encoders
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.graphs import served_graph
from cnclip_builder.repository.manifest import MANIFEST_NAME, Manifest, load_manifest, reading, write_manifest
from cnclip_builder.repository.render import parse_config, render_config
from cnclip_builder.repository.sharing import check_one_tensorrt, check_place, check_same_plans
from cnclip_builder.repository.store import CONFIG_NAME
from cnclip_builder.repository.sums import files_of_folder
from cnclip_builder.repository.values import KINDS, TOWER_OF, kinds_of, template_values
from cnclip_builder.repository.wiring import check_wiring
from cnclip_builder.system.atomic import let_read, link_tree, locked, replacing_folder, sha256_of_file
from cnclip_builder.tensors import TOWERS

_ENSEMBLES = ("image", "text")

# What each Python model takes along: modules of the templates, and the packages with its work, which clients have too.
_MODULES = {
    "image-preprocess": ("cnclip_bad_rows.py", "cnclip_card_log.py", "cnclip_handover.py", "cnclip_refusal_log.py"),
    "text-tokenize": ("cnclip_bad_rows.py", "cnclip_refusal_log.py"),
}
_PACKAGES = {"image-preprocess": ("cnclip_machine", "cnclip_pixels"), "text-tokenize": ("cnclip_token_ids",)}

_WARMUP_TEXT = "一只游隼停在木桩上，望着远处的草地"


def add_version(
    entry: RepositoryEntry, repository: Path, verify: Callable[[Path], Mapping[str, Any]] | None = None
) -> None:
    """Adds a version of an architecture's models to a repository, or replaces it, in one step.

    Other models and versions in the repository stay. Ensembles serve the version that was published last, and only
    that; of encoders and Python models all versions stay loaded, so that each can be called by its number.

    Args:
        entry: what to add.
        repository: the folder; made if it is missing.
        verify: called with the folder of the finished repository before it takes its place; it raises to refuse it,
            and what it returns goes into the manifest.

    Raises:
        RepositoryError: the repository is not this builder's, or has the name in use for another architecture.
        ParityError: a served encoder differs from PyTorch beyond its tolerance.
    """
    with locked(repository, wait=True), replacing_folder(repository) as new:
        before = check_neighbours(entry, repository)
        models = dict(before.models)
        versions = models.get(entry.name, {})
        if repository.exists():
            link_tree(repository, new)
        for kind in KINDS:
            if kind in kinds_of(entry.serving.encoders_only):
                _start_model(new, entry, kind)
            else:
                shutil.rmtree(new / f"{entry.name}-{kind}", ignore_errors=True)
        written = write_encoders(new, entry, repository, before)
        models[entry.name] = {**versions, str(entry.version): _manifest_entry(entry, written.parity)}
        for name, text in render_configs(entry, before).items():
            config = new / name / CONFIG_NAME
            config.unlink(missing_ok=True)  # it may be a link to the published one
            config.write_text(text, encoding="utf-8")
        check_repository(new)
        if verify is not None:
            models[entry.name][str(entry.version)]["live_parity"] = verify(new)
        # What this build did not write keeps the hash that it was written with: a change since then stays told, and of
        # a version that is there what is gone.
        kept = {path: digest for path, digest in (before.files or {}).items() if not _is_written(path, entry)}
        of_folders = {path: digest for path, digest in kept.items() if (new / path).parent.is_dir()}
        files = {**of_folders, **files_of_folder(new, {**kept, **written.hashes})}
        write_manifest(new, models, dict(sorted(files.items())))
        ours = {MANIFEST_NAME, *(f"{entry.name}-{kind}" for kind in KINDS)}
        for path in new.rglob("*"):
            if path.relative_to(new).parts[0] in ours:
                let_read(path, new)


def check_neighbours(entry: RepositoryEntry, repository: Path) -> Manifest:
    """Checks that a version may go beside what a repository holds; gives the repository's manifest.

    Raises:
        RepositoryError: the repository is not this builder's, or has what can't share a config or a server with it.
    """
    check_place(entry.name, entry.version, entry.arch, entry.serving, repository)
    before = load_manifest(repository)
    versions = before.models.get(entry.name, {})
    plans = _plans_record(entry)
    with reading(repository / MANIFEST_NAME):
        check_same_plans(entry.name, entry.version, plans, versions)
        check_one_tensorrt({**before.models, entry.name: {**versions, str(entry.version): {"plans": plans}}})
    return before


def _is_written(path: str, entry: RepositoryEntry) -> bool:
    """Whether a build writes a file of a repository: an ensemble's, another model's shared ones and this version's."""
    model, *rest = path.split("/")
    if model in {f"{entry.name}-{kind}" for kind in _ENSEMBLES}:
        return True
    ours = model in {f"{entry.name}-{kind}" for kind in KINDS}
    return ours and (rest[0] == str(entry.version) or not rest[0].isdecimal())


def check_repository(repository: Path, rendered: Mapping[str, str] | None = None) -> None:
    """Parses every config of a repository and checks how its ensembles are wired.

    Args:
        repository: its folder.
        rendered: texts of configs by model, which count instead of those that are there.

    Raises:
        RepositoryError: a config is no `ModelConfig`, has another model's name, or an ensemble does not fit together.
    """
    texts: dict[Path, str | bytes] = {path: path.read_bytes() for path in repository.glob(f"*/{CONFIG_NAME}")}
    texts |= {repository / name / CONFIG_NAME: text for name, text in (rendered or {}).items()}
    configs: dict[str, Any] = {}
    for path, text in sorted(texts.items()):
        config = parse_config(text, str(path))
        if config.name != path.parent.name:
            raise RepositoryError(f"{path} names its model {config.name!r}, but its folder is {path.parent.name!r}")
        configs[config.name] = config
    if not configs:
        raise RepositoryError(f"{repository} holds no models: build it with cnclip-build")
    check_wiring(configs)


def _plans_record(entry: RepositoryEntry) -> dict[str, list[dict[str, Any]]]:
    return {
        tower: [
            {
                "file": plan_filename(plan.record),
                "gpu": asdict(plan.record.device),
                "tensorrt": plan.record.tensorrt,
                "profiles": list(map(str, plan.record.profiles)),
                "build_seconds": plan.record.build_seconds,
            }
            for plan in plans
        ]
        for tower, plans in entry.plans.items()
    }


def _start_model(repository: Path, entry: RepositoryEntry, kind: str) -> None:
    """Makes the model's folder with an empty version folder, and what its Python code needs in it."""
    model = repository / f"{entry.name}-{kind}"
    version = model / str(entry.version)
    # Files of an older build are links to the published ones: never written to, only replaced.
    shutil.rmtree(model if kind in _ENSEMBLES else version, ignore_errors=True)
    version.mkdir(parents=True)
    templates = templates_folder()
    if kind in _PACKAGES:
        for package in _PACKAGES[kind]:
            shutil.copyfile(str(importlib.import_module(package).__file__), version / f"{package}.py")
        shutil.copyfile(templates / kind / "1" / "model.py", version / "model.py")
        for module in _MODULES[kind]:
            shutil.copyfile(templates / module, version / module)
    if kind == "text-tokenize":
        shutil.copyfile(entry.arch.vocabulary_file, version / "vocab.txt")
    if kind in _ENSEMBLES:
        (version / ".keep").touch()  # git and object stores keep no empty folders, and Triton wants this one
    else:
        _write_warmup(model / "warmup", entry, kind)


def _write_warmup(folder: Path, entry: RepositoryEntry, kind: str) -> None:
    """Writes the input that Triton sends each new instance of a model before it counts as ready."""
    from cnclip_pixels import decode_pixels
    from cnclip_token_ids import TokenIds

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    image = (templates_folder() / "warmup.jpg").read_bytes()
    spec = served_input(entry.arch, TOWER_OF[kind])
    if kind == "image-preprocess":
        (folder / "image").write_bytes(_triton_string(image))
    elif kind == "image-encoder":
        pixels = decode_pixels(image, entry.arch.resolution)
        (folder / warmup_file(spec, pixels.shape)).write_bytes(pixels.tobytes())
    elif kind == "text-tokenize":
        (folder / "text").write_bytes(_triton_string(_WARMUP_TEXT.encode()))
    elif kind == "text-encoder":
        for length in entry.serving.padded_lengths:
            ids = np.zeros(length, dtype=np.int32)
            token_ids = TokenIds(entry.arch.vocabulary_file, length).encode(_WARMUP_TEXT)
            ids[: len(token_ids)] = token_ids
            (folder / warmup_file(spec, ids.shape)).write_bytes(ids.tobytes())


def _triton_string(value: bytes) -> bytes:
    """An element of a BYTES tensor as Triton lays it out: its length in four bytes, then itself."""
    return struct.pack("<I", len(value)) + value


def render_configs(entry: RepositoryEntry, before: Manifest) -> dict[str, str]:
    """Renders the configs of a version's models.

    Args:
        entry: the version.
        before: the manifest of the repository that it goes into.

    Returns:
        The text of `config.pbtxt` by the model's name.

    Raises:
        RepositoryError: a text is no `ModelConfig`.
    """
    versions = sorted({entry.version, *map(int, before.models.get(entry.name, {}))})
    checkpoint = entry.artefacts.checkpoint
    facts = {
        "arch": entry.arch.name,
        "checkpoint_sha256": checkpoint.sha256,
        "logit_scale": repr(checkpoint.logit_scale),
        "embedding_size": entry.arch.embedding_size,
        "context_length": entry.serving.context_length,
    }
    configs = {}
    for kind in kinds_of(entry.serving.encoders_only):
        tower, name = TOWER_OF[kind], f"{entry.name}-{kind}"
        plans = [plan.record for plan in entry.plans.get(tower, ())]
        told = {**facts, "precision": entry.precision_of(tower)}
        values = template_values(kind, name, entry.arch, entry.serving, versions, entry.version, told, plans)
        configs[name], _ = render_config(kind, values)
    return configs


def _manifest_entry(entry: RepositoryEntry, served_parity: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint = entry.artefacts.checkpoint
    return {
        "built": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "arch": entry.arch.name,
        "model_info": dict(entry.arch.model_info),
        "checkpoint": {
            "source": checkpoint.file.source,
            "file": checkpoint.file.path.name,
            "sha256": checkpoint.sha256,
            # Of a folder, what it was read from; of a hub, the commit.
            **({"files": list(checkpoint.files)} if len(checkpoint.files) > 1 else {}),
            **({"revision": checkpoint.file.revision} if checkpoint.file.revision else {}),
            "untrained": checkpoint.file.is_random,
            "logit_scale": checkpoint.logit_scale,
        },
        "vocabulary": {
            "file": entry.arch.vocabulary_file.name,
            "sha256": sha256_of_file(entry.arch.vocabulary_file),
        },
        "platform": entry.serving.platform,
        "serving": entry.serving.as_dict(),
        "versions": library_versions(),
        "served_recipe": SERVED_RECIPE,
        "artefacts": {
            artefact.name: {
                key: value
                for key, value in artefact.record.as_dict().items()
                if key in ("opset", "precision", "parity", "int8", "files")
            }
            for artefact in entry.artefacts.items
        },
        "served_precision": {tower: entry.precision_of(tower) for tower in TOWERS},
        "served_graph": {tower: served_graph(entry.serving, entry.arch, tower) for tower in TOWERS},
        "not_in_int8": dict(entry.artefacts.slower),
        "plans": _plans_record(entry),
        "served_parity": served_parity,
        **({"card_decoding": dict(entry.card)} if entry.card else {}),
    }
