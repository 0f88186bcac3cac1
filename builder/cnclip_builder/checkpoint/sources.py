"""Where a checkpoint comes from: a path, a hub, or random weights."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from cnclip_builder.arch import Arch, HubFile
from cnclip_builder.checkpoint.files import local_path, require_file
from cnclip_builder.checkpoint.hub import Hub, Repository, cached_repository, download_official, fetch_repository
from cnclip_builder.checkpoint.parts import adapter_base, adapter_revision, base_of, find_parts, holds_weights
from cnclip_builder.errors import CheckpointError
from cnclip_builder.system.atomic import replacing_file

__all__ = ["CheckpointFile", "Hub", "fetch_checkpoint", "fetch_own", "find_checkpoint", "find_own", "is_own"]

logger = logging.getLogger(__name__)

_HUB, _RANDOM = "hf:", "random:"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint on disk.

    Attributes:
        path: the file, or the folder of its files.
        source: what the user asked for: a path, "hf:OWNER/NAME", "official" or "random:SEED".
        is_random: its weights were never trained; for load tests only.
        revision: the commit on the hub that it is of; None if that is not known, or it is of no hub.
    """

    path: Path
    source: str
    is_random: bool = False
    revision: str | None = None


def is_own(source: str | None) -> TypeGuard[str]:
    """Whether a checkpoint is one that tells its architecture: neither the official one of one, nor random weights."""
    return source is not None and not source.startswith(_RANDOM)


def fetch_checkpoint(source: str | None, arch: Arch, download_root: Path, hub: Hub) -> CheckpointFile:
    """Gets a checkpoint onto the disk.

    Args:
        source: a path; "hf:OWNER/NAME" with or without "@REVISION"; "random:SEED"; or None for the official checkpoint.
        arch: the architecture it is to be of.
        download_root: folder of official and random checkpoints. An official checkpoint that is already in it is
            used as it is. What "hf:" names goes into Hugging Face's own cache.
        hub: where official checkpoints are fetched from.

    Raises:
        CheckpointError: the path doesn't exist, the seed is no number, or the architecture has no official one.
        HubError: the hub could not be reached, or has no such file.
    """
    if is_own(source):
        return fetch_own(source)
    if (here := find_checkpoint(source, arch, download_root)) is not None:
        return here
    if source is None:
        return _download(arch, download_root, hub)
    seed = _seed(source)
    return CheckpointFile(_make_random(arch, seed, _random_place(arch, seed, download_root)), source, is_random=True)


def find_checkpoint(source: str | None, arch: Arch, download_root: Path) -> CheckpointFile | None:
    """Finds a checkpoint on the disk, without asking a hub or writing anything.

    Returns:
        It; None if `fetch_checkpoint` would have to fetch or make it.

    Raises:
        CheckpointError: as `fetch_checkpoint`.
    """
    if is_own(source):
        return find_own(source)
    if source is None:
        return _official_here(arch, download_root)
    place = _random_place(arch, _seed(source), download_root)
    return CheckpointFile(place, source, is_random=True) if place.is_file() else None


def find_own(source: str) -> CheckpointFile | None:
    """Finds what `fetch_own` would give, as `find_checkpoint` does."""
    if not source.startswith(_HUB):
        path = local_path(source)
        if path.is_dir() and _lacks_base(path):
            return None
        return fetch_own(source)
    folder = cached_repository(Repository.parse(source.removeprefix(_HUB)))
    if folder is None or _lacks_base(folder):
        return None
    try:
        find_parts(folder)
    except CheckpointError:
        return None  # a part of it is not here yet
    return CheckpointFile(folder, source, revision=folder.name)


def fetch_own(source: str) -> CheckpointFile:
    """Gets a checkpoint that tells its architecture itself onto the disk: see `is_own` and `fetch_checkpoint`."""
    if source.startswith(_HUB):
        folder = fetch_repository(Repository.parse(source.removeprefix(_HUB)))
        file = CheckpointFile(folder, source, revision=folder.name)
    else:
        path = local_path(source)
        if not path.is_dir():
            require_file(path)
        file = CheckpointFile(path, source)
    if file.path.is_dir():
        _fetch_base(file.path)
        find_parts(file.path)
    return file


def _fetch_base(folder: Path) -> None:
    """Fetches the model that an adapter in a folder of its own was trained on, unless it is here."""
    base = adapter_base(folder)
    if base is not None and _lacks_base(folder):
        fetch_repository(Repository(base, adapter_revision(folder)))


def _lacks_base(folder: Path) -> bool:
    base = adapter_base(folder)
    return base is not None and Repository.is_name(base) and not holds_weights(folder) and base_of(folder) is None


def _official_place(arch: Arch, download_root: Path) -> tuple[HubFile, Path]:
    if arch.hub is None:
        raise CheckpointError(f"{arch.name} has no official checkpoint: name one, or use random:0")
    return arch.hub, download_root / arch.hub.filename


def _official_here(arch: Arch, download_root: Path) -> CheckpointFile | None:
    _, target = _official_place(arch, download_root)
    if not target.is_file():
        return None
    note = _revision_note(target)
    revision = note.read_text(encoding="utf-8").strip() if note.is_file() else None
    return CheckpointFile(target, "official", revision=revision or None)


def _download(arch: Arch, download_root: Path, hub: Hub) -> CheckpointFile:
    official, target = _official_place(arch, download_root)
    note = _revision_note(target)
    note.unlink(missing_ok=True)
    commit = download_official(official, download_root, hub)
    if commit is not None:
        note.write_text(f"{commit}\n", encoding="utf-8")
    return CheckpointFile(target, "official", revision=commit)


def _revision_note(target: Path) -> Path:
    """Beside an official checkpoint, the commit that it is of; a file that somebody put there himself has none."""
    return target.with_name(target.name + ".revision")


def _seed(source: str) -> int:
    seed = source.removeprefix(_RANDOM)
    if not re.fullmatch(r"\d{1,9}", seed):
        raise CheckpointError(f"{source!r}: after 'random:' comes a seed, a number of up to 9 digits: random:0")
    return int(seed)


def _random_place(arch: Arch, seed: int, folder: Path) -> Path:
    return folder / f"{arch.slug}.random-{seed}.pt"


def _make_random(arch: Arch, seed: int, target: Path) -> Path:
    """Writes a checkpoint of freshly initialised weights, in the form that cn_clip writes."""
    import torch

    from cnclip_builder.checkpoint.load import make_meta_model
    from cnclip_builder.cn_clip import CLIP

    make_meta_model(arch)  # tells sizes that suit no model
    logger.info("Making untrained %s weights with seed %d", arch.name, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIP(**arch.model_info)
    state_dict = {f"module.{name}": value for name, value in model.state_dict().items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(target) as partial:
        try:
            torch.save({"epoch": 0, "name": f"random:{seed}", "state_dict": state_dict}, partial)
        except RuntimeError as error:  # torch's writer keeps to itself what the disk said
            is_full = shutil.disk_usage(partial.parent).free < sum(value.nbytes for value in state_dict.values())
            code = errno.ENOSPC if is_full else errno.EIO
            raise OSError(code, os.strerror(code), str(target)) from error
    return target
