"""Which architecture is built: the one that is named, or else the one that the checkpoint is of."""

from __future__ import annotations

from pathlib import Path

from cnclip_builder.arch import DEFAULT_ARCH, Arch, get_arch, lacking_sizes, read_sizes
from cnclip_builder.checkpoint.sources import fetch_own, find_own, is_own
from cnclip_builder.checkpoint.stage import find_arch_of, with_own_vocabulary
from cnclip_builder.errors import CheckpointError
from cnclip_builder.system.isolation import stage_process


def choose_arch(
    arch: str | None,
    source: str | None,
    vocabulary: Path | None = None,
    name: str | None = None,
    *,
    fetch: bool = True,
) -> Arch:
    """Looks an architecture up, or reads it off a checkpoint's tensors.

    Args:
        arch: as `get_arch` takes it; or a JSON file with some of the arguments, the rest being read off; None to read
            all off, or to take ViT-B-16 if the checkpoint is the official one or random weights.
        source: the checkpoint, as `fetch_checkpoint` takes it. One of the hub is fetched.
        vocabulary: the file of its tokens, if it is not the one beside the checkpoint, or else cn_clip's.
        name: what an architecture is named that is no official one and has no JSON file of its own; None for the
            checkpoint's.
        fetch: whether a checkpoint that is not here may be fetched; else its arch has to be named.

    Raises:
        UnknownArchError: there is no architecture of this name, or the file does not describe one.
        CheckpointError: the checkpoint can't be had or read, or does not tell its architecture.
        SettingError: the vocabulary can't be used, or nothing names the architecture.
    """
    if not is_own(source):
        return get_arch(arch or DEFAULT_ARCH, vocabulary)
    said = read_sizes(Path(arch)) if arch is not None and arch.endswith(".json") else {}
    if arch is not None and not (arch.endswith(".json") and lacking_sizes(said)):
        chosen = get_arch(arch, vocabulary)
        file = fetch_own(source) if fetch else find_own(source)
        return chosen if vocabulary or file is None else with_own_vocabulary(chosen, file.path)
    here = None if fetch else find_own(source)
    if here is None and not fetch:
        raise CheckpointError(
            f"{source} is not here to tell its architecture, and a dry run fetches nothing: name its ARCH"
        )
    with stage_process() as process:
        chosen = process.run(find_arch_of, source, said, name, here.path if here else None, vocabulary)
    if vocabulary is not None:
        chosen.require_vocabulary()
    return chosen
