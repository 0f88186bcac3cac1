"""Which files a checkpoint consists of: one, or the shards, config and adapter of a folder."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnclip_builder.checkpoint.files import local_path
from cnclip_builder.errors import CheckpointError
from cnclip_builder.system.atomic import sha256_of_file

CONFIG = "config.json"
VOCABULARY = "vocab.txt"
ADAPTER_CONFIG = "adapter_config.json"

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""What transformers calls the weights, the ones that it prefers first; each may be an index of shards instead."""

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
INDEX = ".index.json"

_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.\w+")
_MANY = 5


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, as peft writes it.

    Attributes:
        config: its adapter_config.json.
        weights: the file of its tensors.
    """

    config: Path
    weights: Path


@dataclass(frozen=True)
class CheckpointParts:
    """The files of a checkpoint.

    Attributes:
        path: what was named, a file or a folder; errors name it.
        weights: the files that hold its tensors.
        shards: by file, the tensors that an index says are in it; empty without an index.
        config: the config.json beside them, if there is one. It counts for transformers' models alone.
        adapter: what is merged into them.
    """

    path: Path
    weights: tuple[Path, ...]
    shards: Mapping[Path, frozenset[str]] = field(default_factory=dict)
    config: Path | None = None
    adapter: Adapter | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that its numbers rest on."""
        return (*self.weights, *((self.adapter.config, self.adapter.weights) if self.adapter else ()))

    def sha256(self) -> str:
        """Of the one file; of several, of their hex digests, a line each, in the order of the files' names."""
        digests = [sha256_of_file(file) for file in sorted(self.files, key=lambda file: file.name)]
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def find_parts(path: Path) -> CheckpointParts:
    """Finds the files of a checkpoint that is a file or a folder.

    Raises:
        CheckpointError: nothing is there that a checkpoint can be, or a part of it is missing.
    """
    if not path.is_dir():
        if _SHARD.fullmatch(path.name):
            raise CheckpointError(f"{path} is one of several shards: name their folder, {path.parent}")
        weights = [path]
        folder = path.parent
    else:
        folder = path
        weights = _weights_in(folder)
    if not weights:
        folder = base_of(path) or folder
        weights = _weights_in(folder)
    if not weights:
        raise _nothing_in(path)
    shards: dict[Path, frozenset[str]] = {}
    if weights[0].name.endswith(INDEX):
        shards = read_index(weights[0])
        weights = sorted(shards)
    config = folder / CONFIG
    return CheckpointParts(path, tuple(weights), shards, config if config.is_file() else None, _adapter_beside(path))


def base_of(folder: Path) -> Path | None:
    """Finds the model that an adapter in a folder of its own was trained on; None if it is not here.

    It is a path on this disk, or what Hugging Face's cache has of that name.
    """
    named = adapter_base(folder)
    if named is None:
        return None
    for place in (local_path(named), folder / named):
        if place.is_dir() and place.resolve() != folder.resolve():
            return place
    from cnclip_builder.checkpoint.hub import Repository, cached_repository

    return cached_repository(Repository(named, adapter_revision(folder))) if Repository.is_name(named) else None


def adapter_revision(folder: Path) -> str:
    """Which revision of its base an adapter was trained on."""
    revision = read_json(folder / ADAPTER_CONFIG).get("revision")
    return revision if isinstance(revision, str) and revision else "main"


def adapter_base(folder: Path) -> str | None:
    """What an adapter says it was trained on; None without an adapter, or if it says nothing."""
    config = folder / ADAPTER_CONFIG
    base = read_json(config).get("base_model_name_or_path") if config.is_file() else None
    return base if isinstance(base, str) and base else None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object: fetch it again")
    return content


def read_index(path: Path, *, missing_ok: bool = False) -> dict[Path, frozenset[str]]:
    """Reads which tensors are in which shard.

    Args:
        path: the index.
        missing_ok: whether shards may not be there yet.

    Raises:
        CheckpointError: the index is damaged, or a shard is missing.
    """
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{path} tells of no shards (it has no weight_map): fetch it again")
    outside = sorted({name for name in places.values() if Path(name).name != name})
    if outside:
        raise CheckpointError(f"{path} names a shard outside its folder, {outside[0]!r}: fetch it again")
    shards: dict[str, set[str]] = {}
    for tensor, name in places.items():
        shards.setdefault(name, set()).add(tensor)
    missing = sorted(name for name in shards if not (path.parent / name).is_file())
    if missing and not missing_ok:
        raise CheckpointError(
            f"{path.parent} lacks {len(missing)} of {len(shards)} shards, {_some(missing)}: fetch them too"
        )
    return {path.parent / name: frozenset(tensors) for name, tensors in shards.items()}


def choose_weights(names: Sequence[str]) -> list[str]:
    """What of a folder's files a checkpoint is read from: transformers' weights or their index, else any other.

    Args:
        names: of the files.

    Returns:
        One name; or several, of which none can be preferred; or none.
    """
    for whole in WHOLE:
        for name in (whole, whole + INDEX):
            if name in names:
                return [name]
    return sorted(
        name
        for name in names
        if name.endswith((".pt", ".pth", ".safetensors", ".bin"))
        and name not in ADAPTER_WEIGHTS
        # What transformers' Trainer leaves beside a model.
        and not re.fullmatch(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.\w+", name)
        # DeepSpeed's, beside the model_states.
        and not name.endswith("_optim_states.pt")
    )


def holds_weights(folder: Path) -> bool:
    """Whether a folder has anything that a checkpoint can be read from."""
    return bool(choose_weights([entry.name for entry in folder.iterdir()]))


def _weights_in(folder: Path) -> list[Path]:
    chosen = choose_weights([entry.name for entry in folder.iterdir() if entry.is_file()])
    if chosen and all(_SHARD.fullmatch(name) for name in chosen):
        raise CheckpointError(
            f"{folder} holds shards, such as {chosen[0]}, and no index that tells what is in them: fetch "
            f"{WHOLE[0]}{INDEX} too"
        )
    if len(chosen) > 1:
        raise CheckpointError(f"{folder} holds several checkpoints, {_some(chosen)}: name one of them")
    return [folder / name for name in chosen]


def _nothing_in(folder: Path) -> CheckpointError:
    if (folder / ADAPTER_CONFIG).is_file():
        base = adapter_base(folder)
        whose = f", {base}, which is not here" if base else ""
        return CheckpointError(
            f"{folder} is an adapter without its base{whose}: copy the base's {CONFIG} and weights into the folder"
        )
    if (folder / "zero_to_fp32.py").is_file():
        return CheckpointError(
            f"{folder} is a checkpoint of DeepSpeed: run `python {folder / 'zero_to_fp32.py'} {folder} OUT`, and give "
            "what it writes"
        )
    if any(folder.glob("*.distcp")):
        return CheckpointError(
            f"{folder} is a distributed checkpoint, in pieces: run `python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUT.pt`, and give OUT.pt"
        )
    return CheckpointError(
        f"{folder} is a folder: give the path of the .pt or .safetensors file in it; of folders, one with {CONFIG} and "
        f"{WHOLE[0]} is taken, as save_pretrained() writes it"
    )


def _adapter_beside(path: Path) -> Adapter | None:
    folder = path if path.is_dir() else path.parent
    config = folder / ADAPTER_CONFIG
    # An adapter that is itself named is no base, and is told from one by its tensors.
    if not config.is_file() or path.name in ADAPTER_WEIGHTS:
        return None
    for name in ADAPTER_WEIGHTS:
        if (weights := folder / name).is_file():
            return Adapter(config, weights)
    raise CheckpointError(
        f"{folder} has {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS[0]}: fetch that too, or take both out"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more
