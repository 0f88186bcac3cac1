"""Measures the demo checkpoint as cn_clip would use it: retrieval on held-out pictures, and the bundled samples.

python examples/demo/evaluate.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from cn_clip.clip import image_transform, tokenize
from cn_clip.clip.model import CLIP, convert_weights
from pictures import HELD_OUT_SCENES, held_out
from PIL import Image

HERE = Path(__file__).parent
ARCHITECTURE = HERE / "demo.json"
CHECKPOINT = HERE / "clip_cn_demo.pt"


def load_model(checkpoint: Path = CHECKPOINT, architecture: Path = ARCHITECTURE) -> CLIP:
    """Loads a checkpoint in the steps of `cn_clip.clip.utils.create_model`, which itself takes only its own names.

    Args:
        checkpoint: A file in cn_clip's format.
        architecture: The keyword arguments of `cn_clip.clip.model.CLIP`, as JSON.

    Returns:
        The model on the CPU, in float32 and in eval mode.
    """
    model = CLIP(**json.loads(architecture.read_text(encoding="utf-8")))
    convert_weights(model)
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    return model.float().eval()


@torch.no_grad()
def encode(model: CLIP, images: Sequence[Image.Image], captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """L2-normalised features, float32 of shape [len(images), D] and [len(captions), D].

    Pictures pass through cn_clip's own transform, captions through its tokeniser at the usual length of 52.
    """
    transform = image_transform(model.visual.input_resolution)
    image_features = model.encode_image(torch.stack([transform(image) for image in images]))
    text_features = model.encode_text(tokenize(captions, context_length=52))
    return (
        torch.nn.functional.normalize(image_features, dim=-1),
        torch.nn.functional.normalize(text_features, dim=-1),
    )


def recall(similarity: torch.Tensor, k: int) -> float:
    """The share of rows whose own column (row i's is i) is among their k most similar ones.

    Args:
        similarity: Float tensor of shape [N, N], queries in rows.
        k: How many columns each row may name.
    """
    best = similarity.topk(k, dim=1).indices
    own = torch.arange(len(similarity)).unsqueeze(1)
    return (best == own).any(dim=1).double().mean().item()


def retrieval(model: CLIP, n: int = 100, seed: int = 0) -> dict[str, float]:
    """Retrieval among `n` pictures of scenes that training never saw, and their `n` distinct captions.

    Returns:
        Recall (0 to 1) by a readable name, such as "text->image R@1".
    """
    _, images, captions = zip(*held_out(n, seed), strict=True)
    image_features, text_features = encode(model, images, captions)
    similarity = text_features @ image_features.T
    return {
        f"{direction} R@{k}": recall(matrix, k)
        for direction, matrix in (("text->image", similarity), ("image->text", similarity.T))
        for k in (1, 5)
        if k <= n
    }


def samples() -> list[tuple[Path, str]]:
    """The bundled pictures with their right captions, as `captions.tsv` lists them."""
    lines = (HERE / "captions.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return [(HERE / "images" / name, caption) for name, caption in (line.split("\t") for line in lines)]


def sample_probabilities(model: CLIP) -> torch.Tensor:
    """How the model shares each sample picture (row) out among all sample captions (column): rows sum to 1."""
    paths, captions = zip(*samples(), strict=True)
    images = []
    for path in paths:
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    image_features, text_features = encode(model, images, captions)
    probabilities: torch.Tensor = (model.logit_scale.exp() * image_features @ text_features.T).softmax(dim=1)
    return probabilities.detach()


def report(model: CLIP, n: int = 100, seeds: Sequence[int] = (0,)) -> None:
    """Prints retrieval on held-out pictures, and the bundled samples' probability of the right caption."""
    for seed in seeds:
        figures = ", ".join(f"{name} {value:.1%}" for name, value in retrieval(model, n, seed).items())
        print(f"{n} held-out pictures, seed {seed}: {figures}")
    probabilities = sample_probabilities(model)
    for (path, caption), row, right in zip(samples(), probabilities, probabilities.diag(), strict=True):
        verdict = "first" if right == row.max() else "NOT FIRST"
        print(f"{right:.4f} {verdict}  {path.name}  {caption}")
    print(f"logit_scale (exponentiated): {model.logit_scale.exp().item():.2f}")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="a checkpoint of demo.json's architecture")
    parser.add_argument("-n", type=int, default=100, help=f"held-out pictures, at most {HELD_OUT_SCENES}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one set of pictures for each")
    arguments = parser.parse_args()
    report(load_model(arguments.checkpoint), arguments.n, arguments.seeds)


if __name__ == "__main__":
    main()
