"""A repository's encoders: written and proved, both at once where the machine allows it, or taken over as they are."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnclip_builder.export.stage import prove_served, write_fused, write_served
from cnclip_builder.plans.here import Plan
from cnclip_builder.plans.record import sidecar_of
from cnclip_builder.repository.encoder_config import plan_filename
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.graphs import served_graph
from cnclip_builder.repository.manifest import MANIFEST_NAME, Manifest, reading
from cnclip_builder.system.atomic import link_or_copy, sha256_of_file
from cnclip_builder.system.isolation import stage_process
from cnclip_builder.system.side_by_side import run_jobs, threads_of_each
from cnclip_builder.tensors import TOWERS, Tower

logger = logging.getLogger(__name__)

SERVED_RECIPE = 2
"""Raise it when what a served encoder is written as changes: older ones are then written again."""

_LIBRARIES = ("cn-clip-triton", "cn_clip", "torch", "onnx", "onnxruntime", "pillow", "tokenizers")


@dataclass(frozen=True)
class Written:
    """What became of the encoders.

    Attributes:
        parity: by `image-encoder` and `text-encoder`, how far its features are from PyTorch's.
        hashes: the SHA-256 of files that is known without reading them, by their path in the repository.
    """

    parity: Mapping[str, Mapping[str, Any]]
    hashes: Mapping[str, str] = field(default_factory=dict)


def library_versions() -> dict[str, str]:
    """The versions that a build rests on."""
    return {
        "python": sys.version.split()[0],
        **{library: importlib.metadata.version(library) for library in _LIBRARIES},
    }


def write_encoders(new: Path, entry: RepositoryEntry, repository: Path, before: Manifest) -> Written:
    """Puts both encoders into their version folders.

    Args:
        new: the folder of the repository that is being made.
        entry: what is to be served.
        repository: the one that it takes the place of, if there is one.
        before: its manifest.

    Raises:
        ParityError: features differ from PyTorch's beyond the tolerance.
    """
    if entry.serving.platform == "tensorrt":
        return Written(
            {f"{tower}-encoder": _write_plans(_place(new, entry, tower), entry.plans[tower]) for tower in TOWERS}
        )
    parts: dict[Tower, Written] = {}
    for tower in TOWERS:
        if (kept := find_kept(entry, tower, repository, before)) is not None:
            logger.info("Reusing the served %s encoder: nothing it rests on has changed", tower)
            for path in kept.hashes:
                link_or_copy(repository / path, new / path)
            parts[tower] = kept
    towers = [tower for tower in TOWERS if tower not in parts]
    threads = threads_of_each(len(towers), sum(entry.artefacts.checkpoint.fp32_bytes[tower] for tower in towers))
    jobs = [functools.partial(_write_encoder, new, entry, tower, threads) for tower in towers]
    parts |= zip(towers, run_jobs(jobs, side_by_side=threads > 0), strict=True)
    return Written(
        {name: parity for tower in TOWERS for name, parity in parts[tower].parity.items()},
        {path: digest for tower in TOWERS for path, digest in parts[tower].hashes.items()},
    )


def _place(repository: Path, entry: RepositoryEntry, tower: Tower) -> Path:
    return repository / f"{entry.name}-{tower}-encoder" / str(entry.version)


def find_kept(entry: RepositoryEntry, tower: Tower, repository: Path, before: Manifest) -> Written | None:
    """Finds an encoder that was written from the same, and is what was written; None if there is none such.

    Args:
        entry: what is to be served; its artefact of this encoder is there.
        tower: which encoder.
        repository: the folder of the repository as it is.
        before: its manifest.
    """
    record = before.models.get(entry.name, {}).get(str(entry.version))
    if record is None or before.files is None:
        return None
    artefact = entry.artefacts.get(tower, entry.precision_of(tower))
    with reading(repository / MANIFEST_NAME):
        made_of = {
            "arch": entry.arch.name,
            "platform": entry.serving.platform,
            "versions": library_versions(),
            "served_recipe": SERVED_RECIPE,
        }
        same = all(record[key] == value for key, value in made_of.items())
        if not (
            same
            and record["checkpoint"]["sha256"] == entry.artefacts.checkpoint.sha256
            and record["served_graph"][tower] == served_graph(entry.serving, entry.arch, tower)
            and record["served_precision"][tower] == artefact.precision
            and record["artefacts"][artefact.name]["files"] == artefact.record.as_dict()["files"]
        ):
            return None
        parity = dict(record["served_parity"][f"{tower}-encoder"])
    start = f"{_place(Path(), entry, tower).as_posix()}/"
    files = {path: digest for path, digest in before.files.items() if path.startswith(start)}
    if not files or not all(_is(repository / path, digest) for path, digest in files.items()):
        return None
    return Written({f"{tower}-encoder": parity}, files)


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of_file(path) == digest


def _write_encoder(new: Path, entry: RepositoryEntry, tower: Tower, threads: int) -> Written:
    """Writes an ONNX encoder as the graph that suits what runs it, and proves it.

    Args:
        new: the folder of the repository that is being made.
        entry: what is to be served.
        tower: which encoder.
        threads: to compute with; 0 for all cores.

    Raises:
        ParityError: its features differ from PyTorch's beyond the tolerance.
    """
    artefact = entry.artefacts.get(tower, entry.precision_of(tower))
    folder, graph = _place(new, entry, tower), served_graph(entry.serving, entry.arch, tower)
    hashes: dict[str, str] = {}
    if graph == "fused":
        with entry.artefacts.checkpoint.still(), stage_process() as process:
            served = process.run(write_fused, entry.artefacts.checkpoint.file.path, artefact, folder)
    else:
        with stage_process() as process:
            served = process.run(write_served, artefact, folder, without_padding=graph == "unpadded")
        # Weights are copied: they have the hash that the artefact was written with.
        name = artefact.weights.name
        hashes[(folder / name).relative_to(new).as_posix()] = artefact.record.files[name].sha256
    with stage_process() as process:  # what the first one read, torch among it, is gone with it
        parity = process.run(prove_served, served, artefact, threads)
    logger.info("Proved the served %s encoder: 1 - cosine <= %.0e", tower, parity.cosine_distance)
    return Written({f"{tower}-encoder": parity.as_dict()}, hashes)


def _write_plans(folder: Path, plans: Sequence[Plan]) -> dict[str, Any]:
    """Copies plans, which were proved when they were made, with their sidecars."""
    for plan in plans:
        target = folder / plan_filename(plan.record)
        link_or_copy(plan.path, target)
        link_or_copy(sidecar_of(plan.path), sidecar_of(target))
    worst = max((plan.record.parity["pytorch"] for plan in plans), key=lambda parity: parity["cosine_distance"])
    return dict(worst)
