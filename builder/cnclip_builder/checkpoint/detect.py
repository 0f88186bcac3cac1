"""Which architecture a checkpoint is of, from the shapes of its tensors."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnclip_builder.arch import DEFAULT_ARCH, Arch, can_name_arch, get_arch, official_archs
from cnclip_builder.errors import CheckpointError, SettingError

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]

_STAGES = 4


def detect_arch(
    path: Path, shapes: Shapes, told: Mapping[str, Any], insisted: Mapping[str, Any], names: Sequence[str]
) -> Arch:
    """Tells the architecture of a checkpoint: an official one, or one of its own sizes.

    Args:
        path: named in errors.
        shapes: of its tensors, by cn_clip's names.
        told: arguments of `cn_clip.clip.model.CLIP` that the checkpoint's config says.
        insisted: likewise, what the user says.
        names: what one of its own sizes is named, the first of them that can be.

    Raises:
        CheckpointError: it is no Chinese-CLIP, its sizes contradict what is said of them, or its heads are not known.
        SettingError: no name can be its name.
    """
    sizes = read_sizes(path, shapes)
    require_agreement(path, sizes, told, "its config.json")
    require_agreement(path, sizes, insisted, "the file of ARCH")
    known = {**_known_heads(sizes), **told, **insisted}
    # What no shape tells and no feature comes from, and the activation that all of cn_clip's text models have.
    rest = {key: value for key, value in get_arch(DEFAULT_ARCH).model_info.items() if key not in sizes}
    rest.pop("text_num_attention_heads")
    info = {**rest, **sizes, **known}
    _require_heads(path, info)
    for official in official_archs():
        if official.computes_as(info):
            logger.info("%s is of %s", path, official.name)
            return official
    name = next(filter(can_name_arch, names), None)
    if name is None:
        raise SettingError(
            f"{path} is of an architecture of its own, and {' and '.join(map(repr, names))} can't name it: choose a "
            "NAME (--name) of letters, digits, '.', '_' and '-' that is no official architecture's"
        )
    arch = Arch(name, info, of_checkpoint=True)
    heads_are_said = {"text_num_attention_heads", "vision_head_width"} <= {*told, *insisted}
    heads = "" if heads_are_said else "; heads as in cn_clip's models of these widths, since tensors don't tell them"
    logger.info("%s is of an architecture of its own, named %s: %s%s", path, name, _described(arch), heads)
    return arch


def read_sizes(path: Path, shapes: Shapes) -> dict[str, Any]:
    """Reads what shapes tell of the arguments of `cn_clip.clip.model.CLIP`.

    Raises:
        CheckpointError: tensors are missing, or have shapes that no model's have.
    """
    for half, start in (("an image", "visual."), ("a text", "bert.")):
        if not any(name.startswith(start) for name in shapes):
            raise CheckpointError(
                f"{path} is no whole Chinese-CLIP: it has no tensors of {half} encoder ({start}*); use a clip_cn_*.pt "
                "file, a ChineseCLIPModel of transformers, or one fine-tuned from them"
            )
    try:
        vision = _vit(shapes) if "visual.class_embedding" in shapes else _resnet(shapes)
        vocabulary, hidden = shapes["bert.embeddings.word_embeddings.weight"]
        return {
            **vision,
            "vocab_size": vocabulary,
            "text_hidden_size": hidden,
            "text_intermediate_size": shapes["bert.encoder.layer.0.intermediate.dense.weight"][0],
            "text_max_position_embeddings": shapes["bert.embeddings.position_embeddings.weight"][0],
            "text_num_hidden_layers": _count(shapes, r"bert\.encoder\.layer"),
            "text_type_vocab_size": shapes["bert.embeddings.token_type_embeddings.weight"][0],
        }
    except KeyError as error:
        raise CheckpointError(
            f"{path} is no Chinese-CLIP checkpoint: {error.args[0]} is missing; use a clip_cn_*.pt file, a "
            "ChineseCLIPModel of transformers, or one fine-tuned from them"
        ) from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path} is no Chinese-CLIP checkpoint: its tensors have shapes of another number of axes than a model's "
            f"({error}); fetch it again"
        ) from error


def require_agreement(path: Path, sizes: Mapping[str, Any], said: Mapping[str, Any], who: str) -> None:
    """Compares what tensors tell with what is said of them.

    Raises:
        CheckpointError: naming the first size that differs.
    """
    for key, value in said.items():
        if key in sizes and sizes[key] != value:
            # A picture's rest beyond whole patches is not seen, so several resolutions have the same tensors.
            patch = sizes.get("vision_patch_size")
            if key == "image_resolution" and patch and value // patch == sizes[key] // patch:
                continue
            raise CheckpointError(
                f"{path} has {key} {sizes[key]} by its tensors, and {who} says {value}: one of them is of another "
                "model; fetch both again, or mend what is said"
            )


def _vit(shapes: Shapes) -> dict[str, Any]:
    width, _, patch, _ = shapes["visual.conv1.weight"]
    return {
        "embed_dim": shapes["visual.proj"][1],
        "image_resolution": _grid(shapes, "visual.positional_embedding") * patch,
        "vision_layers": _count(shapes, r"visual\.transformer\.resblocks"),
        "vision_width": width,
        "vision_patch_size": patch,
    }


def _resnet(shapes: Shapes) -> dict[str, Any]:
    stages = range(1, _STAGES + 1)
    return {
        "embed_dim": shapes["visual.attnpool.c_proj.weight"][0],
        "image_resolution": _grid(shapes, "visual.attnpool.positional_embedding") * 2 ** (_STAGES + 1),
        "vision_layers": [_count(shapes, rf"visual\.layer{stage}") for stage in stages],
        "vision_width": shapes["visual.layer1.0.conv1.weight"][0],
        "vision_patch_size": None,
    }


def _grid(shapes: Shapes, name: str) -> int:
    """Patches along a side: there is a position for each patch of the square, and one for the whole."""
    positions = shapes[name][0]
    side = math.isqrt(positions - 1) if positions > 1 else 0
    if side * side != positions - 1 or not side:
        raise ValueError(f"{name} has {positions} positions, not those of a square and one more")
    return side


def _count(shapes: Shapes, pattern: str) -> int:
    numbers = {int(found[1]) for name in shapes if (found := re.match(rf"{pattern}\.(\d+)\.", name))}
    # One after the other from 0, so that a damaged name makes no model of a million layers.
    missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
    if missing < max(numbers, default=0) or not numbers:
        raise KeyError(f"{pattern}.{missing}".replace("\\", ""))
    return missing


def _known_heads(sizes: Mapping[str, Any]) -> dict[str, int]:
    """The heads of cn_clip's own models of these widths."""
    known: dict[str, int] = {}
    for arch in official_archs():
        info = arch.model_info
        if info["text_hidden_size"] == sizes["text_hidden_size"]:
            known["text_num_attention_heads"] = info["text_num_attention_heads"]
        same_kind = isinstance(info["vision_layers"], list) == isinstance(sizes["vision_layers"], list)
        if same_kind and info["vision_width"] == sizes["vision_width"]:
            known["vision_head_width"] = arch.vision_head_width
    return known


def _require_heads(path: Path, info: Mapping[str, Any]) -> None:
    asked = {
        key: hint
        for key, hint in (
            ("text_num_attention_heads", f"the text model's width of {info['text_hidden_size']} divided by a head's"),
            ("vision_head_width", "64 unless the model was trained with another"),
        )
        if key not in info
    }
    if asked:
        form = ", ".join(f'"{key}": ...' for key in asked)
        hints = "; ".join(f"{key}: {hint}" for key, hint in asked.items())
        raise CheckpointError(
            f"{path} does not tell its {' and '.join(asked)}, since tensors have the same shapes with any, and cn_clip "
            f"has no model of this width to look it up in: write a file heads.json with {{{form}}} ({hints}) and give "
            "it as ARCH=heads.json (--arch); the rest is read off the tensors"
        )


def _described(arch: Arch) -> str:
    info = arch.model_info
    blocks = info["vision_layers"]
    image = f"ViT of {blocks} blocks, patches of {info['vision_patch_size']}"
    if isinstance(blocks, list):
        image = f"ResNet {blocks}"
    return (
        f"{image}, width {info['vision_width']} in heads of {arch.vision_head_width}, {arch.resolution} pixels; text "
        f"of {info['text_num_hidden_layers']} layers, width {info['text_hidden_size']} in "
        f"{info['text_num_attention_heads']} heads, up to {arch.max_context_length} tokens; features of "
        f"{arch.embedding_size}"
    )
