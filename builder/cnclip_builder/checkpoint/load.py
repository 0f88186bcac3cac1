"""Reads a Chinese-CLIP checkpoint without running code from it, and knows which architecture it is of."""

from __future__ import annotations

import logging
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnclip_builder.arch import Arch, official_archs
from cnclip_builder.errors import CheckpointError
from cnclip_builder.system.atomic import sha256_of_file

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

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
    FP16 or FP32, trained with or without FlashAttention.

    Raises:
        CheckpointError: the file is missing, truncated, holds more than plain data, or is of another architecture.
    """
    state_dict = _plain_names(_find_state_dict(path, _read_tensors(path)))
    _check_arch(path, state_dict, arch)
    return Checkpoint(
        path=path,
        sha256=sha256_of_file(path),
        arch=arch,
        logit_scale=math.exp(float(state_dict["logit_scale"])),
        state_dict=state_dict,
    )


def _read_tensors(path: Path) -> Any:
    import torch

    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: give the path of a .pt file that exists")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the path of the .pt file in it")
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of TorchScript archives, which get an error of ours
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6
    except pickle.UnpicklingError as error:
        raise CheckpointError(_explain_unpickling(path, error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        if "TorchScript" in str(error):
            raise CheckpointError(_torchscript_message(path)) from error
        raise CheckpointError(
            f"{path} can't be read as a PyTorch checkpoint; it may be truncated or only partly downloaded "
            f"({path.stat().st_size} bytes): fetch it again ({_first_line(error)})"
        ) from error


def _explain_unpickling(path: Path, error: pickle.UnpicklingError) -> str:
    if "TorchScript" in str(error):
        return _torchscript_message(path)
    unsafe = re.search(r"(?:GLOBAL|function|class) ([\w.]+\.[\w.]+)", str(error))
    if unsafe:
        return (
            f"{path} refers to {unsafe.group(1)}, which loading it would have to run or import; nothing of it was "
            "run. Save it again as plain tensors: torch.save({'state_dict': model.state_dict()}, path)"
        )
    return f"{path} is no PyTorch checkpoint, or a damaged one: fetch it again ({_first_line(error)})"


def _torchscript_message(path: Path) -> str:
    return (
        f"{path} is a TorchScript archive, as OpenAI publishes its CLIP models, and no Chinese-CLIP checkpoint: "
        "use a clip_cn_*.pt file, or one fine-tuned from it with cn_clip"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _find_state_dict(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    import torch

    candidate = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(candidate, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a checkpoint with a 'state_dict'")
    tensors = {str(name): value for name, value in candidate.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(candidate)[:5])) or "nothing"
        raise CheckpointError(f"{path} has no 'state_dict' with tensors; it holds {keys}")
    return tensors


def _plain_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if any(".Wqkv." in name for name in tensors):
        from cn_clip.clip.model import convert_state_dict

        # cn_clip's way back from FlashAttention's names is right only for names that start with "module.".
        prefixed = {name if name.startswith("module.") else f"module.{name}": value for name, value in tensors.items()}
        tensors = convert_state_dict(prefixed)
    plain = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: value for name, value in plain.items() if not name.startswith("bert.pooler.")}


def _check_arch(path: Path, state_dict: StateDict, arch: Arch) -> None:
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
    )


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
    """Makes cn_clip's model of an architecture without storage for its tensors."""
    import torch
    from cn_clip.clip.model import CLIP

    with torch.device("meta"):
        model: torch.nn.Module = CLIP(**arch.model_info)
    return model.eval()
