"""Finds the tensors in what a trainer saved, and gives them the names that their model has for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnclip_builder.checkpoint.files import Unread
from cnclip_builder.errors import CheckpointError, MissingRequirementError

if TYPE_CHECKING:
    import torch

# Under which trainers keep a model's tensors: cn_clip, Hugging Face and many loops, Lightning, DeepSpeed.
_HOLDERS = ("state_dict", "model_state_dict", "model", "module")
_DEEPEST = 3

_POOLER, _SCALE = "bert.pooler.", "logit_scale"

# Parts that wrappers put into names: DataParallel and DDP, torch.compile, FSDP, activation checkpoints, DeepSpeed.
_WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_ddp_module"}
)

_AVERAGED = "n_averaged"
"""What torch's AveragedModel counts by, beside the averages that it keeps as `module.`"""

_LANDMARKS = re.compile(r"(?P<prefix>(?:.+\.)?)(?:text_projection|text_projection\.weight)")
"""A tensor that every Chinese-CLIP model has, at its root: what stands before it is a prefix. Transformers' name of it
ends in `.weight`."""


@dataclass(frozen=True)
class NamedTensors:
    """A model's tensors.

    Attributes:
        tensors: under the names that its class has for them.
        prefix: what was taken off their names, such as "model."; empty if nothing was.
        holder: the key that they were found under, such as "state_dict"; empty for a bare state dict.
        others: keys of further models in the file, such as averages of its weights.
    """

    tensors: dict[str, torch.Tensor]
    prefix: str = ""
    holder: str = ""
    others: tuple[str, ...] = ()

    @property
    def is_under_other_key(self) -> bool:
        """Whether its key is none under which trainers keep what they trained."""
        return bool(self.holder) and not set(self.holder.split(".")) <= set(_HOLDERS)


def find_tensors(path: Path, loaded: Any) -> NamedTensors:
    """Finds a model's tensors in what its trainer saved.

    Args:
        path: named in errors.
        loaded: what the file holds.

    Raises:
        CheckpointError: it holds no tensors, several models, or the shell that DeepSpeed's ZeRO-3 leaves.
    """
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a checkpoint with a 'state_dict'")
    found = list(_holders(loaded, "", 0))
    models = list(_models(loaded, "", 0))
    # Not where tensors stand under a known key: of half a model and averages of it, no average is wanted unasked.
    if not any(where or _is_model(tensors) for where, tensors in found):
        if len(models) > 1:
            names = ", ".join(where for where, _ in models)
            raise CheckpointError(
                f"{path} holds several models, {names}: save one of them alone: torch.save({{'state_dict': ...}}, path)"
            )
        found = [(where, _tensors_in(model)) for where, model in models] or found
    if not found:
        shown = list(loaded.items())[:5]
        kinds = (f" (a {type(value).__name__})" if isinstance(value, Unread) else "" for _, value in shown)
        keys = ", ".join(f"{key}{kind}" for (key, _), kind in zip(shown, kinds, strict=True)) or "nothing"
        raise CheckpointError(
            f"{path} is not a checkpoint: it has no 'state_dict' with tensors; it holds {keys}. Save it again as "
            "torch.save({'state_dict': model.state_dict()}, path)"
        )
    # An optimizer's tensors have other names; where none has the landmark, the first is shown.
    holder, tensors = next(((holder, tensors) for holder, tensors in found if _is_model(tensors)), found[0])
    if tensors and all(value.numel() == 0 for value in tensors.values()):
        raise CheckpointError(
            f"{path} holds empty tensors, as DeepSpeed's ZeRO-3 leaves them: run the zero_to_fp32.py that lies beside "
            "the checkpoint's folder, and give the file that it writes"
        )
    named, prefix = _without_prefix(path, _without_wrappers(path, tensors))
    if (scale := named.get(_SCALE)) is not None and scale.numel() == 1:
        named[_SCALE] = scale.reshape(())  # FSDP takes no scalars, so that models trained with it have a vector of one
    return NamedTensors(named, prefix, holder, tuple(other for other, _ in models if other != holder))


def shared_prefix(names: list[str]) -> str:
    """The parts that all names begin with, "" for none."""
    prefix = ""
    while names and (first := names[0][len(prefix) :].partition(".")) and first[1]:
        longer = f"{prefix}{first[0]}."
        if not all(name.startswith(longer) for name in names):
            break
        prefix = longer
    return prefix


def _holders(loaded: Mapping[Any, Any], where: str, depth: int) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Every mapping with tensors that is held under a known key, the outermost and best-known key first."""
    for key in _HOLDERS:
        if depth < _DEEPEST and isinstance(inner := loaded.get(key), Mapping):
            yield from _holders(inner, f"{where}.{key}".lstrip("."), depth + 1)
    if tensors := _tensors_in(loaded):
        yield where, tensors


def _tensors_in(loaded: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    import torch

    # Detached: of parameters, as `named_parameters()` gives them, nothing may be written in place.
    return {str(name): value.detach() for name, value in loaded.items() if isinstance(value, torch.Tensor)}


def _is_model(loaded: Mapping[Any, Any]) -> bool:
    return any(_LANDMARKS.fullmatch(name) for name in _tensors_in(loaded))


def _models(loaded: Mapping[Any, Any], where: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every model, under whatever keys, and where it is."""
    if _is_model(loaded):
        yield where, loaded
    if depth < _DEEPEST:
        for key, inner in loaded.items():
            if isinstance(inner, Mapping):
                yield from _models(inner, f"{where}.{key}".lstrip("."), depth + 1)


def _without_wrappers(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    plain: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        if name == _AVERAGED:
            continue
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if short in plain:
            raise CheckpointError(
                f"{path} holds {short} twice, one of them as {name}: save one model's state_dict alone"
            )
        plain[short] = value
    return plain


def _without_prefix(path: Path, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """Takes off what stands before a model's names, where one model is there; tensors without it stay as they are."""
    prefixes = sorted({found["prefix"] for name in tensors if (found := _LANDMARKS.fullmatch(name))})
    if "" in prefixes or not prefixes:
        return tensors, ""
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{path} holds several models, under the prefixes {', '.join(map(repr, prefixes))}: save one of them "
            "alone, without its prefix"
        )
    (prefix,) = prefixes
    return {name.removeprefix(prefix): value for name, value in tensors.items()}, prefix


def in_cn_clips_form(path: Path, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Gives tensors of cn_clip's class the names that they have without FlashAttention, and leaves unused ones out.

    Args:
        path: named in errors.
        tensors: of cn_clip's class.

    Raises:
        CheckpointError: of what FlashAttention names otherwise, a part is missing.
        MissingRequirementError: cn_clip is too old to know those names.
    """
    if any(".Wqkv." in name for name in tensors):
        try:
            from cn_clip.clip.model import convert_state_dict
        except ImportError as error:
            raise MissingRequirementError(
                f"{path} has FlashAttention's names, which this cn_clip does not know: pip install -U 'cn_clip>=1.6'"
            ) from error

        # cn_clip's way back from FlashAttention's names is right only for names that start with "module.".
        try:
            tensors = convert_state_dict({f"module.{name}": value for name, value in tensors.items()})
        except KeyError as error:
            lacking = str(error.args[0]).removeprefix("module.")
            raise CheckpointError(
                f"{path} has FlashAttention's names and lacks {lacking}: save the whole model again, or fetch it again"
            ) from error
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if any(name.startswith(_POOLER) for name in tensors):
        tensors = {name: value for name, value in tensors.items() if not name.startswith(_POOLER)}
    return tensors
