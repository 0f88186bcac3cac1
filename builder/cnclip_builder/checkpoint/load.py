"""Reads a Chinese-CLIP checkpoint without running code from it, and knows which architecture it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cnclip_builder.arch import Arch, official_archs
from cnclip_builder.checkpoint.files import read_checkpoint_file
from cnclip_builder.checkpoint.names import NamedTensors, find_tensors, shared_prefix
from cnclip_builder.checkpoint.soundness import read_logit_scale
from cnclip_builder.errors import CheckpointError, UnknownArchError
from cnclip_builder.system.atomic import sha256_of_file

if TYPE_CHECKING:
    import torch

StateDict = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that fits its architecture.

    Attributes:
        path: the file.
        sha256: hex digest of the file.
        arch: the architecture that its tensors have.
        logit_scale: the factor on cosines, already exponentiated (100 for the official checkpoints).
        state_dict: its tensors under the names of `cn_clip.clip.model.CLIP`, mapped from the file where the
            file's format allows it, so that only what is used is read.
    """

    path: Path
    sha256: str
    arch: Arch
    logit_scale: float
    state_dict: StateDict


def load_checkpoint(path: Path, arch: Arch) -> Checkpoint:
    """Loads a pretrained or fine-tuned checkpoint.

    Accepts what cn_clip writes: with or without `module.` prefixes, optimizer state and `bert.pooler` tensors, in
    FP16 or FP32, trained with or without FlashAttention; and the same tensors in the wrappings of other trainers, or
    in a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated, holds more than plain data, or is of another architecture.
    """
    found = find_tensors(path, read_checkpoint_file(path))
    _check_arch(path, found, arch)
    return Checkpoint(
        path=path,
        sha256=sha256_of_file(path),
        arch=arch,
        logit_scale=read_logit_scale(path, found.tensors["logit_scale"]),
        state_dict=found.tensors,
    )


def _check_arch(path: Path, found_tensors: NamedTensors, arch: Arch) -> None:
    state_dict = found_tensors.tensors
    foreign = _foreign_family(state_dict)
    if foreign:
        raise CheckpointError(
            f"{path} is {foreign}, not a Chinese-CLIP checkpoint as cn_clip writes it: use "
            "a clip_cn_*.pt file, or one fine-tuned from it with cn_clip"
        )
    expected = expected_shapes(arch)
    found = {name: tuple(value.shape) for name, value in state_dict.items()}
    if found == expected:
        return
    for other in official_archs():
        if other.slug != arch.slug and found == expected_shapes(other):
            raise CheckpointError(f"{path} is a {other.name} checkpoint, not {arch.name}: use ARCH={other.name}")
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    other_shape = sorted(name for name in set(expected) & set(found) if expected[name] != found[name])
    details = [
        f"{len(names)} tensors {what}, such as {example(names[0])}"
        for what, names, example in (
            ("are missing", missing, str),
            ("are unknown", unknown, str),
            ("have other shapes", other_shape, lambda name: f"{name}: {found[name]}, not {expected[name]}"),
        )
        if names
    ]
    raise CheckpointError(
        f"{path} is no {arch.name} checkpoint, and of no other architecture known here: {'; '.join(details)}"
        f"{_prefix_hint(found_tensors, missing)}; name its ARCH, or describe it in a .json file"
    )


def _prefix_hint(found: NamedTensors, missing: list[str]) -> str:
    """What the names begin with, where that may be why nothing fits."""
    if found.prefix:
        return f"; the prefix {found.prefix!r} was taken off its names"
    roots = {name.partition(".")[0] for name in missing}
    seen = shared_prefix(list(found.tensors))
    if seen and seen.partition(".")[0] not in roots:
        return f"; all its names begin with {seen!r}: save it again without that prefix"
    return ""


def _foreign_family(state_dict: StateDict) -> str | None:
    if "token_embedding.weight" in state_dict and "visual.conv1.weight" in state_dict:
        return "an OpenAI CLIP checkpoint (its text encoder is CLIP's own transformer, not BERT)"
    if any(name.startswith(("vision_model.", "text_model.")) for name in state_dict):
        return "a Hugging Face transformers checkpoint"
    if any(name.startswith("bert.") for name in state_dict) and not any(
        name.startswith("visual.") for name in state_dict
    ):
        return "a BERT checkpoint without an image encoder"
    return None


def expected_shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of an architecture, from cn_clip's own class; takes no memory."""
    return {name: tuple(value.shape) for name, value in make_meta_model(arch).state_dict().items()}


def make_meta_model(arch: Arch) -> torch.nn.Module:
    """Makes cn_clip's model of an architecture without storage for its tensors.

    Raises:
        UnknownArchError: its sizes go together in no model.
    """
    import torch
    from cn_clip.clip.model import CLIP

    try:
        with torch.device("meta"):
            model: torch.nn.Module = CLIP(**arch.model_info)
    # Of whatever layer the sizes do not suit.
    except Exception as error:
        raise UnknownArchError(
            f"{arch.option} describes no model that cn_clip can make ({type(error).__name__}: {error}): mend its sizes"
        ) from error
    return model.eval()
