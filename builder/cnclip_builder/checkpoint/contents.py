"""What the files of a checkpoint hold, put together: tensors under cn_clip's names, whoever wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnclip_builder.checkpoint.adapter import merge_adapter
from cnclip_builder.checkpoint.files import read_checkpoint_file, require_file
from cnclip_builder.checkpoint.hugging_face import is_transformers_model, read_config, recipes
from cnclip_builder.checkpoint.lazy import LazyTensors, shapes_of
from cnclip_builder.checkpoint.names import NamedTensors, find_tensors, in_cn_clips_form, shared_prefix
from cnclip_builder.checkpoint.parts import CheckpointParts, find_parts
from cnclip_builder.checkpoint.soundness import require_floats
from cnclip_builder.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# What a part of a model is, by how its names begin, where the rest of a Chinese-CLIP is not there.
_FAMILIES = (
    ("token_embedding.weight", "an OpenAI CLIP checkpoint (its text encoder is CLIP's own transformer, not BERT)"),
    ("vision_model.head.", "a SigLIP model of Hugging Face transformers"),
    ("logit_bias", "a SigLIP model of Hugging Face transformers"),
    ("text_model.embeddings.token_embedding.", "an OpenAI CLIP model of Hugging Face transformers"),
    ("text_model.roberta.", "an AltCLIP model of Hugging Face transformers"),
    ("base_model.model.", "a LoRA adapter without its base"),
    ("vision_model.", "a Hugging Face transformers checkpoint"),
    ("text_model.", "a Hugging Face transformers checkpoint"),
    ("bert.", "a BERT checkpoint without an image encoder"),
    ("embeddings.word_embeddings.", "a BERT checkpoint without an image encoder"),
)


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint and what is known of them.

    Attributes:
        parts: the files that they come from.
        tensors: under cn_clip's names, if they are of such a model. A LoRA adapter is merged into them.
        told: arguments of `cn_clip.clip.model.CLIP` that a config beside them says; empty without one.
        of_transformers: transformers' model is their reference, which computes with them as they are; cn_clip's rounds
            its matrices to FP16.
        hint: what was taken off their names, or may have to be, for an error.
        note: what a user has to know of them; empty for nothing.
    """

    parts: CheckpointParts
    tensors: Mapping[str, torch.Tensor]
    told: Mapping[str, Any] = field(default_factory=dict)
    of_transformers: bool = False
    hint: str = ""
    note: str = ""


def read_contents(path: Path) -> Contents:
    """Reads a checkpoint that is a file or a folder; see `find_parts`.

    Raises:
        CheckpointError: a part is missing or damaged, holds more than plain data, or is no Chinese-CLIP's.
    """
    if not path.is_dir():
        require_file(path)
    parts = find_parts(path)
    # Before its tensors are read: a folder of another family has some that are found nowhere here.
    told = read_config(parts.config) if parts.config is not None and path.is_dir() else {}
    named = find_tensors(path, _load(parts))
    if parts.adapter is not None:
        tensors: Mapping[str, torch.Tensor] = merge_adapter(path, parts.adapter, named.tensors)
    else:
        tensors = named.tensors
    if not is_transformers_model(tensors):
        _require_family(path, tensors)
        return Contents(parts, in_cn_clips_form(path, tensors), hint=_prefix_hint(named), note=_note(path, named))
    shapes, made = shapes_of(tensors), recipes(path, tensors)
    require_floats(path, {name: named.tensors[name] for recipe in made.values() for name in recipe.sources})
    makers = {name: (recipe.shape(path, shapes), partial(recipe.make, tensors)) for name, recipe in made.items()}
    told = told or (read_config(parts.config) if parts.config is not None else {})
    return Contents(parts, LazyTensors(makers), told, True, _prefix_hint(named), _note(path, named))


def _load(parts: CheckpointParts) -> Any:
    if not parts.shards:
        (weights,) = parts.weights
        return read_checkpoint_file(weights)
    whole: dict[str, Any] = {}
    for shard in parts.weights:
        loaded = read_checkpoint_file(shard)
        names = set(loaded) if isinstance(loaded, Mapping) else set()
        if lacking := sorted(parts.shards[shard] - names):
            raise CheckpointError(
                f"{shard} lacks {len(lacking)} tensors that its index says are in it, such as {lacking[0]}: fetch both "
                "again"
            )
        whole.update({name: loaded[name] for name in parts.shards[shard]})
    return whole


def _require_family(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuses tensors of other models by their families' names.

    Raises:
        CheckpointError: naming the family.
    """
    ours = "text_projection" in tensors and any(name.startswith("bert.") for name in tensors)
    if ours or (any(name.startswith("visual.") for name in tensors) and "token_embedding.weight" not in tensors):
        return
    for start, family in _FAMILIES:
        if any(name.startswith(start) for name in tensors):
            raise CheckpointError(
                f"{path} is {family}, not a Chinese-CLIP checkpoint as cn_clip or transformers' ChineseCLIPModel "
                "writes it: use a clip_cn_*.pt file, a ChineseCLIPModel, or one fine-tuned from them"
            )


def _prefix_hint(found: NamedTensors) -> str:
    if found.prefix:
        return f"; the prefix {found.prefix!r} was taken off its names"
    seen = shared_prefix(list(found.tensors))
    if seen and seen.partition(".")[0] not in ("visual", "bert"):
        return f"; all its names begin with {seen!r}: save it again without that prefix"
    return ""


def _note(path: Path, found: NamedTensors) -> str:
    """Which model of a file is taken: an average of weights gives other features than the weights."""
    if not found.others:
        return f"{path} holds a model only under {found.holder}, which is built" if found.is_under_other_key else ""
    return (
        f"{path} holds {', '.join(found.others)} beside {found.holder or 'the model'}, which is built; to build "
        "another, save it alone: torch.save({'state_dict': ...}, path)"
    )
