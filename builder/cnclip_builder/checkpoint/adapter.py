"""LoRA adapters, as peft saves them, merged into the weights that they were trained on.

What an adapter adds to a weight is `lora_alpha / r` times B x A (Hu et al., 2021; with rank-stabilised LoRA
`lora_alpha / sqrt(r)`), as `merge_and_unload` of peft adds it. peft itself is not needed for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnclip_builder.checkpoint.files import read_checkpoint_file
from cnclip_builder.checkpoint.lazy import LazyTensors, shapes_of
from cnclip_builder.checkpoint.parts import Adapter, read_json
from cnclip_builder.checkpoint.soundness import require_floats
from cnclip_builder.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_ROOT = "base_model.model."
_HALF = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<half>[AB])(\.default)?(\.weight)?")

# Ways to begin a training that leave the base's weights as they are; the others take something off them.
_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")

_MORE_THAN_A_SUM = (
    *("use_dora", "use_qalora", "layer_replication", "arrow_config"),
    *("alora_invocation_tokens", "trainable_token_indices"),
)

_MERGE = "merge it with peft (model.merge_and_unload()), save the model again, and give that"


def merge_adapter(path: Path, adapter: Adapter, tensors: Mapping[str, torch.Tensor]) -> LazyTensors:
    """Merges an adapter into the tensors of its base.

    Args:
        path: the base, named in errors.
        adapter: the adapter's files.
        tensors: the base's, under the names that the adapter's training knew them by.

    Returns:
        The base's tensors, those that it changes made when they are asked for; computed in FP32, of the base's type.

    Raises:
        CheckpointError: it is no LoRA, one that is not only a sum, or of another base.
    """
    config = _read_config(adapter)
    shapes = shapes_of(tensors)
    halves, replaced = _sort(adapter, read_checkpoint_file(adapter.weights))
    makers: dict[str, Any] = {name: (shapes[name], partial(tensors.__getitem__, name)) for name in tensors}
    for module, parts in halves.items():
        name = _target(path, adapter, module, shapes)
        left, right = _matrices(adapter, module, parts)
        product = (left.shape[0], right.shape[1])
        if left.shape[1] != right.shape[0] or product != (shapes[name][0], math.prod(shapes[name][1:])):
            raise _other_base(path, adapter, name, shapes[name], product)
        factor = _factor(adapter, config, module, left.shape[1])
        makers[name] = (shapes[name], partial(_merged, tensors, name, factor, left, right))
    for name, value in replaced.items():
        if name not in shapes or shapes[name] != tuple(value.shape):
            raise _other_base(path, adapter, name, shapes.get(name), tuple(value.shape))
        makers[name] = (shapes[name], partial(_itself, value))
    return LazyTensors(makers)


def _read_config(adapter: Adapter) -> dict[str, Any]:
    config = read_json(adapter.config)
    if (kind := config.get("peft_type")) != "LORA":
        raise CheckpointError(
            f"{adapter.config} is of an adapter of type {kind}, and only LORA is merged here: {_MERGE}"
        )
    odd = [name for name in _MORE_THAN_A_SUM if config.get(name)]
    if (begun := config.get("init_lora_weights", True)) not in _INITIALISATIONS:
        odd.append(f"init_lora_weights {begun!r}")
    if odd:
        raise CheckpointError(f"{adapter.config} has {', '.join(odd)}, which is more than a sum of weights: {_MERGE}")
    return config


def _sort(adapter: Adapter, loaded: Any) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Tells the matrices of each changed module from tensors that take a base's place (biases, `modules_to_save`)."""
    import torch

    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise CheckpointError(f"{adapter.weights} holds no tensors by name: fetch it again")
    require_floats(adapter.weights, loaded)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    replaced: dict[str, torch.Tensor] = {}
    for full_name, value in loaded.items():
        name = str(full_name).removeprefix(_ROOT)
        half = _HALF.fullmatch(name)
        if half:
            halves.setdefault(half["module"], {})[f"{half['kind'] or ''}{half['half']}"] = value.float()
        elif "lora_" in name:
            raise CheckpointError(
                f"{adapter.weights} holds {full_name}, which is more than LoRA's two matrices: {_MERGE}"
            )
        else:
            replaced[name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")] = value
    return halves, replaced


def _target(path: Path, adapter: Adapter, module: str, shapes: Mapping[str, Any]) -> str:
    """The tensor that a module's matrices change."""
    if f"{module}.in_proj_weight" in shapes or ".base_layer." in module:
        # peft 0.21 adds the matrices of its out_proj twice, in training too.
        raise CheckpointError(
            f"{adapter.weights} changes torch's MultiheadAttention, {module}, peft's own way: {_MERGE}"
        )
    if f"{module}.weight" in shapes:
        return f"{module}.weight"
    raise _other_base(path, adapter, f"{module}.weight", None, None)


def _matrices(adapter: Adapter, module: str, parts: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices whose product, of the rank's width, is what is added to the weight."""
    whole = set(parts) in ({"A", "B"}, {"embedding_A", "embedding_B"})
    if not whole or not all(part.dim() > 1 and part.numel() for part in parts.values()):
        raise CheckpointError(f"{adapter.weights} lacks half of the matrices for {module}: save or fetch it again")
    if "embedding_A" in parts:  # it has a column for each token, and the embedding a row
        return parts["embedding_A"].t(), parts["embedding_B"].t()
    return parts["B"].flatten(1), parts["A"].flatten(1)  # of a convolution, with its patches as one axis


def _factor(adapter: Adapter, config: Mapping[str, Any], module: str, rank: int) -> float:
    """What the product is multiplied by."""
    try:
        own = [
            float(alpha)
            for pattern, alpha in (config.get("alpha_pattern") or {}).items()
            if re.fullmatch(rf"(.*\.)?({pattern})", module)
        ]
        alpha = [*own, float(config["lora_alpha"])][0]
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(
            f"{adapter.config} has no numbers as lora_alpha and alpha_pattern ({error!r}): save or fetch it again"
        ) from error
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _other_base(
    path: Path, adapter: Adapter, name: str, has: tuple[int, ...] | None, wanted: tuple[int, ...] | None
) -> CheckpointError:
    trained_on = read_json(adapter.config).get("base_model_name_or_path")
    whose = f"; it was trained on {trained_on}" if trained_on else ""
    what = f"has {list(has)} and not {list(wanted or ())}" if has else "lacks"
    return CheckpointError(
        f"{adapter.weights} is an adapter of another base: it changes {name}, which {path} {what}{whose}: put it "
        "beside the checkpoint that it was trained on, or take it away"
    )


def _merged(
    tensors: Mapping[str, torch.Tensor], name: str, factor: float, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    base = tensors[name]
    return (base.float() + factor * (left @ right).reshape(base.shape)).to(base.dtype)


def _itself(value: torch.Tensor) -> torch.Tensor:
    return value
