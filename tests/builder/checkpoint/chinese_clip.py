"""Models of Hugging Face's transformers with random weights, saved in every form that people have them in.

Who makes one imports transformers, and that torch's compiler: three seconds that each process would spend which collects the tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from cnclip_builder.arch import Arch

if TYPE_CHECKING:
    from transformers import ChineseCLIPModel

StateDict = dict[str, torch.Tensor]
Features = npt.NDArray[np.float32]

TINY: dict[str, Any] = {
    "projection_dim": 48,
    "text_config": {
        "vocab_size": 21128,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 80,
    },
    "vision_config": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    },
}


def changed(text: Mapping[str, Any] | None = None, vision: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tiny config with other settings in its halves."""
    return {
        **TINY,
        "text_config": {**TINY["text_config"], **(text or {})},
        "vision_config": {**TINY["vision_config"], **(vision or {})},
    }


def config_of(arch: Arch) -> dict[str, Any]:
    """The config that transformers' model of a ViT architecture has."""
    info = arch.model_info
    return {
        "projection_dim": info["embed_dim"],
        "text_config": {
            "vocab_size": info["vocab_size"],
            **{
                key: info[f"text_{key}"]
                for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
            },
            "max_position_embeddings": info["text_max_position_embeddings"],
        },
        "vision_config": {
            "hidden_size": info["vision_width"],
            "intermediate_size": 4 * info["vision_width"],
            "num_hidden_layers": info["vision_layers"],
            "num_attention_heads": info["vision_width"] // arch.vision_head_width,
            "image_size": info["image_resolution"],
            "patch_size": info["vision_patch_size"],
        },
    }


def make_model(config: Mapping[str, Any], seed: int = 7) -> ChineseCLIPModel:
    """A model in which every tensor counts: fresh ones have biases of 0 and LayerNorms that change nothing."""
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    torch.manual_seed(seed)
    model = ChineseCLIPModel(ChineseCLIPConfig(**config)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name == "logit_scale":
                value.fill_(math.log(30))
            elif name.endswith("bias"):
                value.normal_(std=0.1)
            elif value.dim() == 1:
                value.uniform_(0.8, 1.2)
            elif "embedding" not in name:
                # As strong in a narrow model as in a wide one, so that rows differ by more than rounding.
                value.normal_(std=value[0].numel() ** -0.5)
    return model


def inputs(model: ChineseCLIPModel, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N, 3, R, R] and token ids int64 [N, 12] of several lengths."""
    generator = torch.Generator().manual_seed(3)
    side = model.config.vision_config.image_size
    images = torch.randn(rows, 3, side, side, generator=generator)
    texts = torch.randint(670, 8000, (rows, 12), generator=generator)
    texts[:, 0] = 101
    for row in range(rows):
        texts[row, 4 + 2 * row :] = 0
        texts[row, 3 + 2 * row] = 102
    return images, texts


def features(model: ChineseCLIPModel, images: torch.Tensor, texts: torch.Tensor) -> dict[str, Features]:
    """What transformers itself makes of them, by encoder."""
    with torch.inference_mode():
        found = {
            "image": model.get_image_features(pixel_values=images),
            "text": model.get_text_features(input_ids=texts, attention_mask=texts.ne(0).long()),
        }
    # A tensor before transformers 5, an object since.
    return {tower: getattr(made, "pooler_output", made).float().numpy() for tower, made in found.items()}


def save_bin(model: ChineseCLIPModel, folder: Path, shards: int = 1) -> Path:
    """As transformers 4 saved models for torch.load, which 5 can't any more: pytorch_model.bin or its shards."""
    import json

    folder.mkdir()
    model.config.save_pretrained(folder)
    state_dict = model.state_dict()
    # Buffers that it saved too.
    state_dict["text_model.embeddings.position_ids"] = torch.arange(80)[None]
    state_dict["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    if shards == 1:
        torch.save(state_dict, folder / "pytorch_model.bin")
        return folder
    names = list(state_dict)
    places = {name: f"pytorch_model-{1 + number % shards:05}-of-{shards:05}.bin" for number, name in enumerate(names)}
    for place in set(places.values()):
        torch.save({name: state_dict[name] for name in names if places[name] == place}, folder / place)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
