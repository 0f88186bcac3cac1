"""The stage that opens a checkpoint, to be run in a process of its own: naming it costs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.sources import CheckpointFile, Hub
from cnclip_builder.tensors import Tower


@dataclass(frozen=True)
class CheckpointFacts:
    """What later stages need to know of a checkpoint.

    Attributes:
        file: where it is and where it came from.
        sha256: hex digest of the file.
        logit_scale: the factor on cosines, already exponentiated.
        fp32_bytes: size of its weights in FP32, by encoder.
    """

    file: CheckpointFile
    sha256: str
    logit_scale: float
    fp32_bytes: dict[Tower, int]


def open_checkpoint(source: str | None, arch: Arch, download_root: Path, hub: Hub) -> CheckpointFacts:
    """Fetches a checkpoint, loads it, looks at every number in it and sums it up; imports torch.

    See `fetch_checkpoint` and `load_checkpoint`. Whatever loads it later, loads it unlooked at.

    Raises:
        SettingError: the arch's vocabulary is not the model's.
        CheckpointError: as those two; or it is damaged, or holds NaN or infinite numbers.
    """
    from cnclip_builder.checkpoint.files import require_intact
    from cnclip_builder.checkpoint.load import load_checkpoint
    from cnclip_builder.checkpoint.soundness import require_finite
    from cnclip_builder.checkpoint.sources import fetch_checkpoint

    arch.require_vocabulary()
    file = fetch_checkpoint(source, arch, download_root, hub)
    checkpoint = load_checkpoint(file.path, arch)
    require_intact(file.path)
    require_finite(file.path, checkpoint.state_dict)
    sizes: dict[Tower, int] = {"image": 0, "text": 0}
    for name, value in checkpoint.state_dict.items():
        sizes["image" if name.startswith("visual.") else "text"] += 4 * value.numel()
    return CheckpointFacts(file, checkpoint.sha256, checkpoint.logit_scale, sizes)
