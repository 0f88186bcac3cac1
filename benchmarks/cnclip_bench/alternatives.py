"""What a user would pick instead, on the same images and texts: features in process, preprocessing included.

Each alternative is a context manager that gives its encoders: functions from a batch of encoded images, or of texts, to
L2-normalised features, float32 `[N, D]`.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cnclip_builder.tensors import Tower

from cnclip_bench.inputs import repeated
from cnclip_bench.requests import encode
from cnclip_bench.stats import timed_in_turns

if TYPE_CHECKING:
    from cnclip_client import Client

    from cnclip_bench.subject import Subject

__all__ = ["compare"]

Features = npt.NDArray[np.float32]
Encoders = dict[str, Callable[[Sequence[Any]], Features]]
Compared = tuple[dict[Tower, dict[str, list[float]]], dict[str, str]]


def compare(
    subject: Subject,
    client: Client,
    items: dict[Tower, int],
    rounds: int,
    batch_size: int,
    clip_as_service: Path | None = None,
) -> Compared:
    """Times every alternative that is installed, and what is served, in turns.

    The alternatives get batches one after another, as their users' loops give them. The client gets all items at once,
    as its users' jobs do.

    Args:
        subject: Its images and texts are encoded, repeated as often as need be.
        client: Of the served model.
        items: How many of each tower make a round.
        rounds: How often.
        batch_size: Items a batch of an alternative.
        clip_as_service: The Python of an environment with clip-as-service's server.

    Returns:
        The seconds of each round by tower and name; and why what was left out was.
    """
    timings: dict[Tower, dict[str, list[float]]] = {}
    left_out: dict[str, str] = {}
    with ExitStack() as opened:
        encoders: dict[str, Encoders] = {}
        for name, alternative in _alternatives(clip_as_service).items():
            try:
                encoders[name] = opened.enter_context(alternative(subject))
            except (ImportError, NotImplementedError) as error:
                left_out[name] = str(error)
        for tower, count in items.items():
            given = repeated(subject.items(tower), count)

            def in_batches(encode: Callable[[Sequence[Any]], Features], given: list[Any] = given) -> None:
                for start in range(0, len(given), batch_size):
                    _check(encode(given[start : start + batch_size]))

            def served(given: list[Any] = given, tower: Tower = tower) -> None:
                _check(encode(client, tower, given))

            jobs: dict[str, Callable[[], None]] = {
                name: lambda encode=towers[tower]: in_batches(encode)  # type: ignore[misc]
                for name, towers in encoders.items()
            }
            timings[tower] = timed_in_turns({**jobs, "served": served}, rounds, time.perf_counter)
    return timings, left_out


@contextmanager
def cn_clip_loop(subject: Subject) -> Iterator[Encoders]:
    """The inner loop of cn_clip's `extract_features.py`: its transform and tokeniser, its model, 52 tokens a text."""
    import torch
    from cn_clip.clip import image_transform, tokenize
    from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH
    from cnclip_builder.checkpoint.load import load_checkpoint
    from cnclip_builder.checkpoint.towers import load_tower
    from PIL import Image

    checkpoint = load_checkpoint(subject.checkpoint, subject.arch)
    image_tower, text_tower = load_tower(checkpoint, "image"), load_tower(checkpoint, "text")
    transform = image_transform(subject.arch.resolution)

    def images(batch: Sequence[bytes]) -> Features:
        pixels = torch.stack([transform(Image.open(io.BytesIO(image))) for image in batch])
        with torch.no_grad():
            return _normalised(image_tower(pixels))

    def texts(batch: Sequence[str]) -> Features:
        with torch.no_grad():
            return _normalised(text_tower(tokenize(list(batch), context_length=DEFAULT_CONTEXT_LENGTH)))

    yield {"image": images, "text": texts}


@contextmanager
def transformers_model(subject: Subject) -> Iterator[Encoders]:
    """Hugging Face's ChineseCLIP of the same sizes, with random weights, and its processors."""
    import torch
    from PIL import Image

    model, tokenizer, processor = _hugging_face(subject)

    def images(batch: Sequence[bytes]) -> Features:
        opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in batch]
        with torch.inference_mode():
            return _normalised(model.get_image_features(**processor(images=opened, return_tensors="pt")))

    def texts(batch: Sequence[str]) -> Features:
        ids = tokenizer(list(batch), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            return _normalised(model.get_text_features(**ids))

    yield {"image": images, "text": texts}


@contextmanager
def infinity_engine(subject: Subject) -> Iterator[Encoders]:
    """Infinity's torch engine in this process, on the same Hugging Face model."""
    from PIL import Image

    infinity: Any = import_module("infinity_emb")
    transformers: Any = import_module("transformers")
    model, tokenizer, processor = _hugging_face(subject)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        transformers.ChineseCLIPProcessor(processor, tokenizer).save_pretrained(folder)
        engine = infinity.EngineArgs(
            model_name_or_path=folder, engine="torch", device="cpu", bettertransformer=False, model_warmup=False
        )
        array = infinity.SyncEngineArray.from_args([engine])
        try:

            def images(batch: Sequence[bytes]) -> Features:
                opened = [Image.open(io.BytesIO(image)).convert("RGB") for image in batch]
                return np.stack(array.image_embed(model=folder, images=opened).result()[0])

            def texts(batch: Sequence[str]) -> Features:
                return np.stack(array.embed(model=folder, sentences=list(batch)).result()[0])

            yield {"image": images, "text": texts}
        finally:
            array.stop()


@contextmanager
def clip_as_service_executor(subject: Subject, python: Path | None) -> Iterator[Encoders]:
    """clip-as-service's torch executor, in a process of its environment, on the same checkpoint.

    Raises:
        NotImplementedError: There is no such environment, or it has no such model.
    """
    if python is None:
        raise NotImplementedError("it needs an environment of its own: name its Python with --clip-as-service")
    if subject.arch.hub is None:
        raise NotImplementedError(f"it has the official architectures alone, and {subject.arch.name} is none")
    worker = Path(__file__).with_name("clip_as_service_worker.py")
    with TemporaryDirectory() as home:
        # Where its cn_clip looks for what it has downloaded.
        cache = Path(home, ".cache", "clip")
        cache.mkdir(parents=True)
        (cache / subject.arch.hub.filename).symlink_to(subject.checkpoint.resolve())
        with subprocess.Popen(
            [python, worker, f"CN-CLIP/{subject.arch.name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": home},
        ) as process:

            def encode(tower: str, items: list[bytes]) -> Features:
                if process.stdin is None or process.stdout is None:
                    raise AssertionError("a process without the pipes that it was given")
                asked = json.dumps({"tower": tower, "sizes": [len(item) for item in items]})
                try:
                    process.stdin.write(b"\n".join([asked.encode(), b"".join(items)]))
                    process.stdin.flush()
                    rows, columns = json.loads(process.stdout.readline())
                except (BrokenPipeError, ValueError) as error:
                    raise NotImplementedError(f"its executor ended: {python} {worker} shows why") from error
                features = process.stdout.read(4 * rows * columns)
                return _unit(np.frombuffer(features, dtype=np.float32).reshape(rows, columns))

            try:
                encode("text", [b"a"])  # it is there, or is left out
                yield {
                    "image": lambda batch: encode("image", list(batch)),
                    "text": lambda batch: encode("text", [text.encode() for text in batch]),
                }
            finally:
                process.kill()


def _alternatives(clip_as_service: Path | None) -> dict[str, Callable[[Subject], AbstractContextManager[Encoders]]]:
    return {
        "cn_clip (PyTorch)": cn_clip_loop,
        "transformers (PyTorch)": transformers_model,
        "infinity (PyTorch)": infinity_engine,
        "clip-as-service (PyTorch)": partial(clip_as_service_executor, python=clip_as_service),
    }


def _hugging_face(subject: Subject) -> tuple[Any, Any, Any]:
    """A model of the subject's sizes, a tokeniser of cn_clip's vocabulary, and an image processor."""
    from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH, cn_clip_vocabulary

    # As Any: their types differ from version to version.
    transformers: Any = import_module("transformers")

    sizes = subject.arch.model_info
    if not isinstance(sizes["vision_layers"], int):
        raise NotImplementedError(f"transformers has no ChineseCLIP with a ResNet, which {subject.arch.name} is")
    width = sizes["vision_width"]
    config = transformers.ChineseCLIPConfig(
        text_config={
            "vocab_size": sizes["vocab_size"],
            "hidden_size": sizes["text_hidden_size"],
            "intermediate_size": sizes["text_intermediate_size"],
            "num_attention_heads": sizes["text_num_attention_heads"],
            "num_hidden_layers": sizes["text_num_hidden_layers"],
            "max_position_embeddings": sizes["text_max_position_embeddings"],
            "type_vocab_size": sizes["text_type_vocab_size"],
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_attention_heads": width // sizes.get("vision_head_width", 64),
            "num_hidden_layers": sizes["vision_layers"],
            "image_size": sizes["image_resolution"],
            "patch_size": sizes["vision_patch_size"],
        },
        projection_dim=sizes["embed_dim"],
    )
    side = {"height": subject.arch.resolution, "width": subject.arch.resolution}
    processor = transformers.ChineseCLIPImageProcessor(size=side, do_center_crop=False)
    tokenizer = transformers.BertTokenizerFast(
        vocab_file=str(cn_clip_vocabulary()), model_max_length=DEFAULT_CONTEXT_LENGTH
    )
    return transformers.ChineseCLIPModel(config).eval(), tokenizer, processor


def _normalised(features: Any) -> Features:
    # transformers 5 wraps what 4 gives bare.
    tensor = getattr(features, "pooler_output", features)
    return _unit(tensor.numpy())


def _unit(features: Features) -> Features:
    rows: Features = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return rows


def _check(features: Features) -> None:
    """What is timed has to have been computed: an alternative that gives no features is no faster for it."""
    if features.ndim != 2 or not np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-3):
        raise ValueError(f"features of shape {features.shape} are not normalised rows; is a version unsupported?")
