"""What INT8 is calibrated on: real pictures and texts, and what they put into an encoder's matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cnclip_builder.arch import Arch
from cnclip_builder.export.check import open_session
from cnclip_builder.parity.probes import normalise
from cnclip_builder.parity.samples import sample_images, sample_texts
from cnclip_builder.tensors import Tower

_MOST_ROWS = 1024
"""Token vectors kept of each product, spread evenly over the inputs; ViT-H's image encoder has 128 products."""


def calibration_inputs(arch: Arch, tower: Tower) -> list[npt.NDArray[Any]]:
    """Gives the package's sample pictures or texts as an encoder takes them.

    Returns:
        `image` float32 `[1, 3, R, R]` each, or `text` int64 `[1, L]`, each of its own length: padding is no text.
    """
    if tower == "image":
        from cnclip_pixels import decode_pixels

        return [normalise(decode_pixels(image, arch.resolution)[None]) for image in sample_images().values()]
    from cnclip_token_ids import TokenIds

    tokenizer = TokenIds(arch.vocabulary_file, arch.default_context_length)
    return [np.array([tokenizer.encode(text)], dtype=np.int64) for text in sample_texts()]


def run_each(path: Path, inputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Runs an encoder on inputs of one row each.

    Returns:
        Its features, `[len(inputs), D]`.
    """
    session = open_session(path)
    name = session.get_inputs()[0].name
    features: npt.NDArray[np.float32] = np.concatenate([session.run(None, {name: item})[0] for item in inputs])
    return features


def collect_activations(
    path: Path, names: Sequence[str], inputs: Sequence[npt.NDArray[Any]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Runs an encoder in FP32 and keeps inner values of it.

    Args:
        path: the .onnx file.
        names: of the tensors to keep, `[..., K]`.
        inputs: from `calibration_inputs`.

    Returns:
        By name `[rows, K]`: at most about a thousand rows, and at least one of every input.
    """
    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(model.SerializeToString(), weights=path.parent)
    feed = session.get_inputs()[0].name
    most = max(1, _MOST_ROWS // len(inputs))
    kept: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in names}
    for item in inputs:
        for name, value in zip(names, session.run(list(names), {feed: item}), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            kept[name].append(rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)])
    return {name: np.concatenate(rows) for name, rows in kept.items()}
