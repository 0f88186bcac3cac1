"""Trains the demo checkpoint, a very small Chinese-CLIP, on the synthetic pictures of pictures.py.

    python examples/demo/train.py

writes clip_cn_demo.pt in cn_clip's format, loads it back as cn_clip does and prints retrieval on held-out pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from cn_clip.clip import image_transform, tokenize
from cn_clip.clip.model import CLIP
from evaluate import ARCHITECTURE, CHECKPOINT, load_model, report
from pictures import Scene, draw, training_scenes
from torch.nn import functional
from torchvision.transforms import Normalize, PILToTensor, Resize
from tqdm import tqdm

_GROUP = 8
"""Scenes of a batch that agree on everything but shape and count: these two are learned late, and a batch
of unrelated scenes can nearly always be told apart by colour and place alone."""

_UNRELATED = 0.25
"""The share of the steps, from the first on, whose batches are drawn without such groups, to learn the rest first."""

_MAX_LOG_SCALE = math.log(100)
"""CLIP's bound on logit_scale (Radford et al. 2021, section 2.5)."""


@dataclass(frozen=True)
class Data:
    """Everything that training sees.

    Attributes:
        scenes: The scenes, in the order of the first axis of the tensors.
        pixels: uint8 [scenes, pictures, 3, R, R], resized as cn_clip does.
        tokens: int64 [scenes, captions, L], L being the longest caption's length.
        normalize: What cn_clip does to pixels scaled to 0..1.
    """

    scenes: list[Scene]
    pixels: torch.Tensor
    tokens: torch.Tensor
    normalize: Normalize


def make_data(resolution: int, pictures: int, captions: int, seed: int) -> Data:
    """Draws `pictures` pictures of every training scene and writes `captions` captions of each."""
    resize, _, _, normalize = image_transform(resolution).transforms
    if not (isinstance(resize, Resize) and isinstance(normalize, Normalize)):
        raise TypeError("cn_clip's image_transform changed its steps: make make_data follow them")
    rng = random.Random(f"train {seed}")
    to_tensor = PILToTensor()
    scenes = training_scenes()
    pixels = torch.empty(len(scenes), pictures, 3, resolution, resolution, dtype=torch.uint8)
    texts = []
    for i, scene in enumerate(tqdm(scenes, desc="drawing", unit="scene", file=sys.stderr, disable=None)):
        for j in range(pictures):
            pixels[i, j] = to_tensor(resize(draw(scene, rng)))
        texts += [scene.paraphrase(rng) for _ in range(captions)]
    tokens = tokenize(texts)
    # 0 is [PAD]: what every caption leaves empty costs time and teaches nothing.
    tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]
    return Data(scenes, pixels, tokens.reshape(len(scenes), captions, -1), normalize)


class Batches:
    """Draws batches of distinct scenes, unrelated ones or in groups of `_GROUP` that differ only in shape and count."""

    def __init__(self, data: Data, batch_size: int, seed: int) -> None:
        self._data = data
        self._batch_size = batch_size
        self._rng = random.Random(f"batches {seed}")
        groups: dict[tuple[str, str, str], list[int]] = {}
        for i, scene in enumerate(data.scenes):
            groups.setdefault((scene.colour, scene.place, scene.background), []).append(i)
        self._groups = [group for group in groups.values() if len(group) >= _GROUP]

    def draw(self, grouped: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised pixels, float32 [B, 3, R, R], and the token ids of their captions, int64 [B, L]."""
        data, rng = self._data, self._rng
        if grouped:
            groups = rng.sample(self._groups, self._batch_size // _GROUP)
            chosen = [scene for group in groups for scene in rng.sample(group, _GROUP)]
        else:
            chosen = rng.sample(range(len(data.scenes)), self._batch_size)
        picture = [rng.randrange(data.pixels.shape[1]) for _ in chosen]
        caption = [rng.randrange(data.tokens.shape[1]) for _ in chosen]
        return data.normalize(data.pixels[chosen, picture].float() / 255), data.tokens[chosen, caption]


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """CLIP's symmetric loss: row i of `image` belongs to row i of `text`, both [B, D] and L2-normalised."""
    logits = scale * image @ text.T
    own = torch.arange(len(logits))
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


@torch.no_grad()
def ease_start(model: CLIP) -> None:
    """Changes the fresh image tower so that it sees past the background.

    Most patches are plain background, and with PyTorch's own first weights their brightness drowns what little of the
    picture differs: the model then knew the background after 50 steps and nothing else after 400. So the patch
    filters lose most of their mean, and gain in strength, as do the positions.
    """
    filters = model.visual.conv1.weight
    filters.sub_(0.9 * filters.mean(dim=(2, 3), keepdim=True)).mul_(3)
    model.visual.positional_embedding.mul_(4)
    model.visual.class_embedding.mul_(4)


def make_optimizer(model: CLIP, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only: biases, LayerNorms and logit_scale keep their size, as in CLIP."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def train(model: CLIP, data: Data, arguments: argparse.Namespace) -> None:
    """Trains in place, with a linear warm-up and a cosine schedule down to zero."""
    batches = Batches(data, arguments.batch_size, arguments.seed)
    optimizer = make_optimizer(model, arguments.learning_rate, arguments.weight_decay)
    warmup = max(1, min(50, arguments.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, (1 + math.cos(math.pi * step / arguments.steps)) / 2),
    )
    model.train()
    progress = tqdm(range(arguments.steps), desc="training", unit="step", file=sys.stderr, disable=None)
    for step in progress:
        loss = contrastive_loss(*model(*batches.draw(grouped=step >= _UNRELATED * arguments.steps)))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _MAX_LOG_SCALE)
        if step % 10 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp().item():.1f}")
        if arguments.log_every and (step + 1) % arguments.log_every == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}", file=sys.stderr)


def save(model: CLIP, path: Path, epochs: int) -> None:
    """Writes a checkpoint in cn_clip's format, with float weights in FP16, whole or not at all."""
    state = {
        f"module.{name}": value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    partial = path.with_suffix(".partial")
    torch.save({"epoch": epochs, "name": "cn-clip-triton demo", "state_dict": state}, partial)
    partial.replace(path)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--architecture", type=Path, default=ARCHITECTURE, help="keyword arguments of cn_clip's CLIP")
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="where the checkpoint goes")
    parser.add_argument("--steps", type=int, default=2400, help="batches to train on")
    parser.add_argument("--batch-size", type=int, default=64, help=f"pictures a batch, a multiple of {_GROUP}")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at its highest")
    parser.add_argument("--weight-decay", type=float, default=0.05, help="of matrices only")
    parser.add_argument("--pictures", type=int, default=8, help="pictures of every training scene")
    parser.add_argument("--captions", type=int, default=12, help="captions of every training scene")
    parser.add_argument("--seed", type=int, default=0, help="decides everything that is random")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; another number rounds differently")
    parser.add_argument("--log-every", type=int, default=0, help="steps between plain log lines; 0 for none")
    arguments = parser.parse_args()
    if arguments.batch_size % _GROUP or arguments.batch_size <= 0:
        parser.error(f"--batch-size is {arguments.batch_size}: give a positive multiple of {_GROUP}")

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    start = time.monotonic()
    architecture = json.loads(arguments.architecture.read_text(encoding="utf-8"))
    data = make_data(architecture["image_resolution"], arguments.pictures, arguments.captions, arguments.seed)
    model = CLIP(**architecture)
    ease_start(model)
    train(model, data, arguments)
    seen = arguments.steps * arguments.batch_size
    save(model, arguments.output, epochs=math.ceil(seen / data.pixels[:, :, 0, 0, 0].numel()))
    print(f"{arguments.output.name}: {seen} pictures seen in {time.monotonic() - start:.0f} s", file=sys.stderr)
    report(load_model(arguments.output, arguments.architecture))


if __name__ == "__main__":
    main()
