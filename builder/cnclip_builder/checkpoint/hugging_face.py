"""Models that Hugging Face's transformers wrote: their names in cn_clip's, and what their config says of them.

transformers itself is not needed for it. The models are its `ChineseCLIPModel`; whatever else lies in a folder is told
by its family's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnclip_builder.checkpoint.parts import read_json
from cnclip_builder.errors import CheckpointError

if TYPE_CHECKING:
    import torch

MODEL_TYPE = "chinese_clip"
LANDMARK = "text_projection.weight"
"""A tensor that such a model has at its root, and cn_clip's has not."""

_FAMILIES = {
    "clip": "an OpenAI CLIP model",
    "clip_text_model": "the text half of an OpenAI CLIP model",
    "clip_vision_model": "the image half of an OpenAI CLIP model",
    "siglip": "a SigLIP model",
    "siglip2": "a SigLIP 2 model",
    "altclip": "an AltCLIP model",
    "bert": "a BERT model without an image encoder",
    "roberta": "a RoBERTa model without an image encoder",
    "vit": "a ViT without a text encoder",
    "chinese_clip_text_model": "the text half of a Chinese-CLIP model",
    "chinese_clip_vision_model": "the image half of a Chinese-CLIP model",
}

# cn_clip's name of what is one tensor in both, by transformers' name.
_ROOT = {
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# Buffers that older transformers saved, and the pooler that no feature comes from.
_UNUSED = re.compile(r"(text|vision)_model\.embeddings\.(position|token_type)_ids|text_model\.pooler\..+")


@dataclass(frozen=True)
class Recipe:
    """How one of cn_clip's tensors is made.

    Attributes:
        sources: transformers' tensors that follow one another in it.
        transposed: whether it is the transpose.
    """

    sources: tuple[str, ...]
    transposed: bool = False

    def shape(self, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Its shape, from those of the sources.

        Raises:
            CheckpointError: query, key and value have not the same.
        """
        found = [shapes[name] for name in self.sources]
        if len(set(found)) > 1:
            told = ", ".join(f"{name} {list(shape)}" for name, shape in zip(self.sources, found, strict=True))
            raise CheckpointError(f"{path}: {told} are of several shapes, so the file is damaged: fetch it again")
        if len(found) > 1:
            return (sum(shape[0] for shape in found), *found[0][1:])
        return found[0][::-1] if self.transposed else found[0]

    def make(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Makes it; one that is there as it is, is not copied."""
        import torch

        made = [tensors[name] for name in self.sources]
        whole = made[0] if len(made) == 1 else torch.cat(made)
        return whole.t().contiguous() if self.transposed else whole


def is_transformers_model(names: Iterable[str]) -> bool:
    """Whether tensors have the names of a `ChineseCLIPModel`."""
    return {LANDMARK, "vision_model.pre_layrnorm.weight", "text_model.embeddings.LayerNorm.weight"} <= set(names)


def recipes(path: Path, names: Iterable[str]) -> dict[str, Recipe]:
    """Says how cn_clip's tensors are made of transformers'.

    Args:
        path: named in errors.
        names: of transformers' tensors. What no model of cn_clip has keeps its name.

    Raises:
        CheckpointError: of query, key and value one is missing.
    """
    there = set(names)
    made: dict[str, Recipe] = {}
    for name in there:
        block = _BLOCK.fullmatch(name)
        if _UNUSED.fullmatch(name):
            continue
        if name in _TRANSPOSED:
            made[_TRANSPOSED[name]] = Recipe((name,), transposed=True)
        elif name in _ROOT:
            made[_ROOT[name]] = Recipe((name,))
        elif name.startswith("text_model."):
            made[name.replace("text_model.", "bert.", 1)] = Recipe((name,))
        elif block and block[2] in _ATTENTION:
            sources = tuple(f"vision_model.encoder.layers.{block[1]}.{part}.{block[3]}" for part in _ATTENTION)
            if lacking := [source for source in sources if source not in there]:
                raise CheckpointError(
                    f"{path} lacks {', '.join(lacking)}: save the whole model again, or fetch it again"
                )
            made[f"visual.transformer.resblocks.{block[1]}.attn.in_proj_{block[3]}"] = Recipe(sources)
        elif block and block[2] in _IN_BLOCK:
            place = f"visual.transformer.resblocks.{block[1]}.{_IN_BLOCK[block[2]]}.{block[3]}"
            made[place] = Recipe((name,))
        else:
            made[name] = Recipe((name,))
    return made


def family_of(config: Mapping[str, Any]) -> str | None:
    """Names the family of a folder whose config.json this is; None for a Chinese-CLIP."""
    model_type = config.get("model_type")
    if model_type == MODEL_TYPE:
        return None
    return _FAMILIES.get(str(model_type), f"a model of type {model_type!r}")


def read_config(path: Path) -> dict[str, Any]:
    """Reads the arguments of `cn_clip.clip.model.CLIP` from a config.json; what it leaves out is transformers' default.

    Raises:
        CheckpointError: it is no Chinese-CLIP's, or of a model that cn_clip's class can't be.
    """
    config = read_json(path)
    if family := family_of(config):
        raise CheckpointError(f"{path.parent} is {family}, not a Chinese-CLIP: use a ChineseCLIPModel of transformers")
    settings = _settings(path, config)
    for key, needed in _FIXED.items():
        if settings[key] != needed:
            raise CheckpointError(
                f"{path}: {key} is {settings[key]!r}, and cn_clip's model has {needed!r}: it can't be built; "
                "train with that, or mend the config if it is wrong"
            )
    activation = _ACTIVATIONS.get(str(settings["text_config.hidden_act"]))
    if activation is None:
        raise CheckpointError(
            f"{path}: text_config.hidden_act is {settings['text_config.hidden_act']!r}, and cn_clip's model has "
            f"{', '.join(_ACTIVATIONS)}: train with one of them, or mend the config if it is wrong"
        )

    def size(key: str) -> int:
        value = settings[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{path}: {key} is {value!r} and no size: mend it, or fetch it again")
        return value

    info = {name: size(key) for key, name in _SIZES.items()}
    width, heads, inner = info["vision_width"], size("vision_config.num_attention_heads"), size(_INNER)
    if width % heads or info["text_hidden_size"] % info["text_num_attention_heads"]:
        raise CheckpointError(
            f"{path}: widths {width} and {info['text_hidden_size']} can't be divided among {heads} and "
            f"{info['text_num_attention_heads']} heads: mend num_attention_heads, or fetch it again"
        )
    if inner != 4 * width:
        raise CheckpointError(
            f"{path}: {_INNER} is {inner}, and in cn_clip's model it is 4 times hidden_size, {4 * width}: it can't be "
            "built; mend the config if it is wrong"
        )
    return {**info, "vision_head_width": width // heads, "text_hidden_act": activation}


def _settings(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both halves by names such as `text_config.hidden_size`.

    In old configs a `..._config_dict` counts more than `..._config`.
    """
    settings = {**_DEFAULTS, "projection_dim": config.get("projection_dim", 512)}
    for half in ("text_config", "vision_config"):
        for key in (half, f"{half}_dict"):
            section = config.get(key)
            if not isinstance(section, dict | None):
                raise CheckpointError(f"{path}: {key} is no JSON object: fetch it again")
            settings.update({f"{half}.{name}": value for name, value in (section or {}).items()})
    for key in ("vision_config.image_size", "vision_config.patch_size"):
        settings[key] = _side(settings[key])
    return settings


def _side(size: Any) -> Any:
    """A square's side, from its side or from both."""
    return size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size


# What a config leaves out (transformers, ChineseCLIPTextConfig and ChineseCLIPVisionConfig).
_DEFAULTS: dict[str, Any] = {
    "text_config.vocab_size": 30522,
    "text_config.hidden_size": 768,
    "text_config.intermediate_size": 3072,
    "text_config.num_hidden_layers": 12,
    "text_config.num_attention_heads": 12,
    "text_config.max_position_embeddings": 512,
    "text_config.hidden_act": "gelu",
    "text_config.layer_norm_eps": 1e-12,
    "text_config.type_vocab_size": 2,
    "text_config.position_embedding_type": "absolute",
    "vision_config.hidden_size": 768,
    "vision_config.intermediate_size": 3072,
    "vision_config.num_hidden_layers": 12,
    "vision_config.num_attention_heads": 12,
    "vision_config.num_channels": 3,
    "vision_config.image_size": 224,
    "vision_config.patch_size": 32,
    "vision_config.hidden_act": "quick_gelu",
    "vision_config.layer_norm_eps": 1e-5,
}

# What cn_clip's model has in any case.
_FIXED: dict[str, Any] = {
    "vision_config.hidden_act": "quick_gelu",
    "vision_config.layer_norm_eps": 1e-5,
    "vision_config.num_channels": 3,
    "text_config.layer_norm_eps": 1e-12,
    "text_config.position_embedding_type": "absolute",
}
_INNER = "vision_config.intermediate_size"

# cn_clip's name of each size that it takes, by transformers'.
_SIZES = {
    "projection_dim": "embed_dim",
    "vision_config.image_size": "image_resolution",
    "vision_config.num_hidden_layers": "vision_layers",
    "vision_config.hidden_size": "vision_width",
    "vision_config.patch_size": "vision_patch_size",
    "text_config.vocab_size": "vocab_size",
    "text_config.hidden_size": "text_hidden_size",
    "text_config.intermediate_size": "text_intermediate_size",
    "text_config.max_position_embeddings": "text_max_position_embeddings",
    "text_config.num_attention_heads": "text_num_attention_heads",
    "text_config.num_hidden_layers": "text_num_hidden_layers",
    "text_config.type_vocab_size": "text_type_vocab_size",
}

# cn_clip's name of each activation that it has, by transformers'.
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "gelu_new": "gelu_new", "silu": "swish", "swish": "swish"}
