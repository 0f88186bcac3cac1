"""The stages that open a checkpoint, to be run in a process of their own: naming them costs no torch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.files import local_path
from cnclip_builder.checkpoint.parts import ADAPTER_CONFIG, find_parts
from cnclip_builder.checkpoint.processors import other_preparation, own_vocabulary
from cnclip_builder.checkpoint.sources import CheckpointFile, Hub, fetch_checkpoint, fetch_own, find_checkpoint
from cnclip_builder.errors import CheckpointError
from cnclip_builder.tensors import Tower

logger = logging.getLogger(__name__)


_Stamp = tuple[int, int, int]
"""A file's inode, size and time of change in nanoseconds."""


def _stamp(path: Path) -> _Stamp | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


@dataclass(frozen=True)
class CheckpointFacts:
    """What later stages need to know of a checkpoint.

    Attributes:
        file: where it is and where it came from.
        sha256: hex digest of the file; of several see `CheckpointParts.sha256`.
        logit_scale: the factor on cosines, already exponentiated.
        fp32_bytes: size of its weights in FP32, by encoder.
        stamps: of each file that its numbers rest on, a LoRA adapter's among them, what tells that it is still the one
            that was looked at.
    """

    file: CheckpointFile
    sha256: str
    logit_scale: float
    fp32_bytes: dict[Tower, int]
    stamps: Mapping[Path, _Stamp | None] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files that its numbers rest on."""
        return tuple(path.name for path in self.stamps)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Does work that reads the checkpoint again, and then sees that it was the same one.

        A training that goes on writes its next epoch over it: one encoder would be of this one, the other of that.

        Raises:
            CheckpointError: it was changed meanwhile, whatever that made of the work.
        """
        try:
            yield
        except Exception:
            self.require_same()
            raise
        self.require_same()

    def require_same(self) -> None:
        """Sees that the checkpoint is the one that was looked at.

        Raises:
            CheckpointError: it was changed since.
        """
        for path, stamp in self.stamps.items():
            if _stamp(path) != stamp:
                raise CheckpointError(
                    f"{path} was changed while it was built from: copy it to where nothing writes to it, and build "
                    "from the copy"
                )


def open_checkpoint(source: str | None, arch: Arch, download_root: Path, hub: Hub) -> CheckpointFacts:
    """Fetches a checkpoint, loads it, looks at every number in it and sums it up; imports torch.

    See `fetch_checkpoint` and `load_checkpoint`. Whatever loads it later, loads it unlooked at.

    Raises:
        SettingError: the arch's vocabulary is not the model's.
        CheckpointError: as those two; or it is damaged, or holds NaN or infinite numbers.
    """
    arch.require_vocabulary()
    return _look_into(fetch_checkpoint(source, arch, download_root, hub), arch)


def open_checkpoint_here(source: str | None, arch: Arch, download_root: Path) -> CheckpointFacts | None:
    """As `open_checkpoint`, of a checkpoint that is on the disk; None if it is not: fetches and writes nothing."""
    from cnclip_builder.checkpoint.load import make_meta_model

    arch.require_vocabulary()
    file = find_checkpoint(source, arch, download_root)
    if file is None:
        make_meta_model(arch)  # tells sizes that suit no model
        return None
    return _look_into(file, arch)


def _look_into(file: CheckpointFile, arch: Arch) -> CheckpointFacts:
    from cnclip_builder.checkpoint.files import require_intact
    from cnclip_builder.checkpoint.load import load_checkpoint
    from cnclip_builder.checkpoint.soundness import require_finite

    stamps = {path: _stamp(path) for path in find_parts(file.path).files}
    checkpoint = load_checkpoint(file.path, arch)
    for path in stamps:
        require_intact(path)
        if path.name == ADAPTER_CONFIG:
            logger.info("Merging the LoRA adapter of %s", path.parent)
    require_finite(file.path, checkpoint.state_dict)
    config = checkpoint.parts.config
    prepared = other_preparation(config.parent, arch) if checkpoint.of_transformers and config else ""
    for note in filter(None, (checkpoint.note, prepared)):
        logger.warning("%s", note)
    sizes: dict[Tower, int] = {"image": 0, "text": 0}
    for name, value in checkpoint.state_dict.items():
        sizes["image" if name.startswith("visual.") else "text"] += 4 * value.numel()
    facts = CheckpointFacts(file, checkpoint.sha256, checkpoint.logit_scale, sizes, stamps)
    facts.require_same()
    return facts


def find_arch_of(
    source: str,
    insisted: Mapping[str, Any],
    name: str | None,
    path: Path | None = None,
    vocabulary: Path | None = None,
) -> Arch:
    """Fetches a checkpoint and tells its architecture; imports torch.

    Args:
        source: a path or "hf:OWNER/NAME"; see `is_own`.
        insisted: arguments of `cn_clip.clip.model.CLIP` that the user says.
        name: what an architecture of its own is named; None for the name of the file.
        path: where it is, if it is not to be fetched.
        vocabulary: of its tokens, whatever lies beside it.

    Raises:
        CheckpointError: as `fetch_own` and `find_arch`.
        SettingError: it is of an architecture of its own, and nothing names it.
    """
    from cnclip_builder.checkpoint.load import find_arch

    path = path or fetch_own(source).path
    arch = find_arch(path, insisted, [*([name] if name else []), _stem(source)])
    return with_own_vocabulary(arch, path) if vocabulary is None else replace(arch, vocabulary=vocabulary)


def with_own_vocabulary(arch: Arch, path: Path) -> Arch:
    """Gives an architecture the vocabulary that lies beside a transformers' model, if its tokens are not cn_clip's.

    Args:
        arch: the architecture.
        path: the checkpoint, a file or a folder; an adapter's base may be elsewhere.

    Raises:
        SettingError: cn_clip's model and tokeniser can't use it.
    """
    config = find_parts(path).config
    own = own_vocabulary(config.parent) if config is not None else None
    return arch if own is None else replace(arch, vocabulary=own)


def _stem(source: str) -> str:
    """What a checkpoint is called: its file's name without the ending, its folder's, or its name on the hub."""
    if source.startswith("hf:"):
        return source.removeprefix("hf:").partition("@")[0].rpartition("/")[2]
    path = local_path(source).resolve()
    return path.name if path.is_dir() else path.stem
