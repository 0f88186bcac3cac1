"""Reads a Chinese-CLIP checkpoint without running code from it, and knows which architecture it is of."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnclip_builder.arch import Arch, get_arch, official_archs
from cnclip_builder.checkpoint.contents import Contents, read_contents
from cnclip_builder.checkpoint.detect import detect_arch, require_agreement
from cnclip_builder.checkpoint.lazy import shapes_of
from cnclip_builder.checkpoint.parts import CheckpointParts
from cnclip_builder.checkpoint.soundness import COUNTER, read_logit_scale
from cnclip_builder.errors import CheckpointError, UnknownArchError

if TYPE_CHECKING:
    import torch

StateDict = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that fits its architecture.

    Attributes:
        path: the file, or the folder.
        parts: all files that its numbers rest on.
        arch: the architecture that its tensors have.
        logit_scale: the factor on cosines, already exponentiated (100 for the official checkpoints).
        state_dict: its tensors under the names of `cn_clip.clip.model.CLIP`, mapped from the file where the
            file's format allows it, so that only what is used is read.
        of_transformers: its reference is transformers' model, which does not round its weights as cn_clip's does.
        note: what a user has to know of what was taken; empty for nothing.
    """

    path: Path
    parts: CheckpointParts
    arch: Arch
    logit_scale: float
    state_dict: StateDict
    of_transformers: bool = False
    note: str = ""

    @functools.cached_property
    def sha256(self) -> str:
        """Hex digest of the file; of several see `CheckpointParts.sha256`. Reads all of them, once it is asked for."""
        return self.parts.sha256()


def load_checkpoint(path: Path, arch: Arch) -> Checkpoint:
    """Loads a pretrained or fine-tuned checkpoint.

    Accepts what cn_clip writes: with or without `module.` prefixes, optimizer state and `bert.pooler` tensors, in
    FP16 or FP32, trained with or without FlashAttention; and the same tensors in the wrappings of other trainers, or
    in a safetensors file. Of transformers' `ChineseCLIPModel`, a file or a folder, in shards or whole. A LoRA adapter
    beside either is merged.

    Raises:
        CheckpointError: a file is missing, truncated, holds more than plain data, or is of another architecture.
    """
    contents = read_contents(path)
    _check_arch(path, contents, arch)
    return Checkpoint(
        path=path,
        parts=contents.parts,
        arch=arch,
        logit_scale=read_logit_scale(path, contents.tensors["logit_scale"]),
        state_dict=contents.tensors,
        of_transformers=contents.of_transformers,
        note=contents.note,
    )


def find_arch(path: Path, insisted: Mapping[str, Any], names: Sequence[str]) -> Arch:
    """Tells the architecture of a checkpoint from its tensors; see `detect_arch`.

    Raises:
        CheckpointError: as `load_checkpoint`; or what tensors don't tell has to be said.
        SettingError: it is of an architecture of its own, and nothing names it.
    """
    contents = read_contents(path)
    arch = detect_arch(path, shapes_of(contents.tensors), contents.told, insisted, names)
    _check_arch(path, contents, arch, is_detected=True)
    return arch


def _check_arch(path: Path, contents: Contents, arch: Arch, *, is_detected: bool = False) -> None:
    expected = expected_shapes(arch)
    shapes = shapes_of(contents.tensors)
    found = {name: shape for name, shape in shapes.items() if not name.endswith(COUNTER)}
    if found == expected:
        model_info = {**arch.model_info, "vision_head_width": arch.vision_head_width}
        require_agreement(path, model_info, contents.told, f"its config.json (ARCH is {arch.name})")
        return
    for other in official_archs():
        if other.slug != arch.slug and found == _official_shapes(other.name):
            raise CheckpointError(f"{path} is a {other.name} checkpoint, not {arch.name}: use ARCH={other.name}")
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    other_shape = sorted(name for name in set(expected) & set(found) if expected[name] != found[name])
    details = [
        f"{len(names)} tensor{'s' * (len(names) != 1)} {what}, such as {example(names[0])}"
        for what, names, example in (
            ("missing", missing, str),
            ("unknown", unknown, str),
            ("of other shapes", other_shape, lambda name: f"{name}: {found[name]}, not {expected[name]}"),
        )
        if names
    ]
    told = "; ".join(details) + contents.hint
    if any("lora_" in name for name in unknown):  # left out, they would take the fine-tuning with them
        raise CheckpointError(
            f"{path} holds LoRA's tensors beside the weights: {told}; merge them into the weights before it is saved "
            "(peft: model.merge_and_unload())"
        )
    if not is_detected:
        raise CheckpointError(
            f"{path} is no {arch.name} checkpoint, and of no other architecture known here: {told}; leave ARCH out to "
            "have it read off the tensors, or describe it in a .json file"
        )
    mend = "save the whole model again, or fetch it again"
    if not missing and not other_shape:
        mend = "if features don't pass through them, leave them out: torch.save({'state_dict': ...}, path)"
    raise CheckpointError(f"{path} holds other tensors than a Chinese-CLIP of its sizes: {told}; {mend}")


def expected_shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that features come from, from cn_clip's own class; takes no memory."""
    tensors = make_meta_model(arch).state_dict()
    return {name: tuple(value.shape) for name, value in tensors.items() if not name.endswith(COUNTER)}


@functools.cache
def _official_shapes(name: str) -> dict[str, tuple[int, ...]]:
    return expected_shapes(get_arch(name))


def make_meta_model(arch: Arch) -> torch.nn.Module:
    """Makes cn_clip's model of an architecture without storage for its tensors.

    Raises:
        UnknownArchError: its sizes go together in no model.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    from cnclip_builder.cn_clip import CLIP

    class Unfilled(TorchFunctionMode):
        """What fills tensors at random takes most of the time, and there is nothing to fill.

        To make random ones, and to scale those, torch would import its compiler.
        """

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function.__name__ in ("kaiming_uniform_", "normal_", "uniform_", "mul", "div"):
                return args[0] if args else kwargs["tensor"]
            if function.__name__ == "randn":
                function = torch.empty
            return function(*args, **(kwargs or {}))

    try:
        with torch.device("meta"), Unfilled():
            model: torch.nn.Module = CLIP(**arch.model_info)
    # Of whatever layer the sizes do not suit.
    except Exception as error:
        raise UnknownArchError(
            f"{arch.option} describes no model that cn_clip can make ({type(error).__name__}: {error}): mend its sizes"
        ) from error
    return model.eval()
