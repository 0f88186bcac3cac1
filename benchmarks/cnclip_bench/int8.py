"""INT8 beside FP32: speed, how far features go, and what that does to retrieval."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from cnclip_builder.parity.distance import centred_distances, cosine_distances

from cnclip_bench.stats import median_ratio, timed_in_turns
from cnclip_bench.subject import FOLDER, onnx_session

if TYPE_CHECKING:
    from cnclip_builder.artefacts.maker import Artefacts
    from cnclip_builder.tensors import Precision, Tower

    from cnclip_bench.subject import Subject

__all__ = ["Compared", "Pair", "compare", "make_artefacts", "read_pairs", "recalls"]

Features = npt.NDArray[np.float32]

_BATCH: dict[str, int] = {"image": 4, "text": 16}


@dataclass(frozen=True)
class Pair:
    """An image and the caption that belongs to it."""

    image: bytes
    caption: str


@dataclass(frozen=True)
class Compared:
    """One encoder in INT8 beside itself in FP32.

    Attributes:
        speed_up: FP32's time over INT8's, the median of rounds in turns, on all cores.
        build_speed_up: The same as the build measured it, on one thread: what it accepts or refuses by.
        kept_in_fp32: How many of its matrix products had to stay in FP32.
        products: Of how many.
        rows: Compared, each once.
        cosine_distance: 1 - cosine of the worst row.
        centred_worst, centred_median: The same after the mean of FP32's features was taken off both.
        megabytes: Of the weights, in FP32 and in INT8.
    """

    speed_up: float
    build_speed_up: float
    kept_in_fp32: int
    products: int
    rows: int
    cosine_distance: float
    centred_worst: float
    centred_median: float
    megabytes: tuple[float, float]


def read_pairs(file: Path) -> list[Pair]:
    """Reads a TSV of image files and captions, with a line of names first, as `examples/demo/captions.tsv`.

    Args:
        file: Images are looked for beside it, and in its folder `images`.

    Raises:
        ValueError: A line is no pair, or its image is nowhere.
    """
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")[1:], start=2):
        name, tab, caption = line.partition("\t")
        found = next((path for path in (file.parent / name, file.parent / "images" / name) if path.is_file()), None)
        if not tab or found is None:
            raise ValueError(
                f"{file}, line {number}: write an image's file, a tab, and its caption; images lie beside it"
            )
        pairs.append(Pair(found.read_bytes(), caption))
    if len(pairs) < 2:
        raise ValueError(f"{file} has {len(pairs)} pairs; retrieval needs two at least")
    return pairs


def make_artefacts(subject: Subject, checkpoint: str) -> Artefacts:
    """Builds both encoders in FP32 and INT8, also where INT8 is slower and would not be served.

    Args:
        subject: Of the architecture.
        checkpoint: random:SEED, or a .pt file.
    """
    from cnclip_builder.artefacts.maker import build_artefacts
    from cnclip_builder.tensors import TOWERS

    return build_artefacts(
        subject.arch,
        checkpoint,
        FOLDER / "artefacts" / subject.name,
        towers=TOWERS,
        precisions=("fp32", "int8"),
        download_root=FOLDER / "checkpoints",
        least_int8_speed_up=0,
    )


def compare(subject: Subject, artefacts: Artefacts, tower: Tower, rounds: int) -> Compared:
    """Compares an encoder's two precisions on the subject's images or texts, each of them once."""
    found = [artefacts.get(tower, precision) for precision in ("fp32", "int8")]
    encoders = [_Encoder(one.path, subject, tower) for one in found]
    items = list(dict.fromkeys(subject.items(tower)))
    reference, features = (encoder.encode(items).astype(np.float64) for encoder in encoders)
    centred = centred_distances(features, reference, reference.mean(axis=0))
    timed = [encoder.inputs(items[: _BATCH[tower]]) for encoder in encoders]
    jobs = {
        name: lambda encoder=encoder, batch=batch: encoder.run(batch)
        for name, encoder, batch in zip(("fp32", "int8"), encoders, timed, strict=True)
    }
    seconds = timed_in_turns(jobs, rounds, time.perf_counter)
    report = found[1].record.int8
    if report is None:
        raise ValueError(f"{found[1].path} is no INT8 encoder")
    sizes = [sum(path.stat().st_size for path in (one.path, one.weights)) / 1e6 for one in found]
    return Compared(
        speed_up=median_ratio(seconds["fp32"], seconds["int8"]),
        build_speed_up=report.speed_up,
        kept_in_fp32=len(report.kept_in_fp32),
        products=report.products,
        rows=len(items),
        cosine_distance=float(cosine_distances(features, reference).max()),
        centred_worst=float(centred.max()),
        centred_median=float(np.median(centred)),
        megabytes=(sizes[0], sizes[1]),
    )


def recalls(subject: Subject, artefacts: Artefacts, pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """Gives the recall of pairs in both precisions, by precision and name, such as "text to image R@1"."""
    found: dict[str, dict[str, float]] = {}
    precisions: tuple[Precision, ...] = ("fp32", "int8")
    for precision in precisions:
        features = (
            _Encoder(artefacts.get("image", precision).path, subject, "image").encode([pair.image for pair in pairs]),
            _Encoder(artefacts.get("text", precision).path, subject, "text").encode([pair.caption for pair in pairs]),
        )
        images, texts = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in features)
        cosines = texts @ images.T
        found[precision] = {
            f"{direction} R@{k}": _recall(matrix, k)
            for direction, matrix in (("text to image", cosines), ("image to text", cosines.T))
            for k in (1, 5)
            if k < len(pairs)
        }
    return found


class _Encoder:
    """An artefact in cn_clip's format, from encoded images or texts to un-normalised features."""

    def __init__(self, path: Path, subject: Subject, tower: Tower) -> None:
        self._session = onnx_session(path)
        self._resolution, self._token_ids, self._tower = subject.arch.resolution, subject.token_ids(), tower

    def inputs(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        from cnclip_builder.parity.probes import normalise
        from cnclip_pixels import decode_pixels

        if self._tower == "image":
            return normalise(np.stack([decode_pixels(image, self._resolution) for image in items]))
        return self._token_ids.pad([self._token_ids.encode(text) for text in items]).astype(np.int64)

    def run(self, inputs: npt.NDArray[Any]) -> Features:
        features: Features = self._session.run(None, {self._session.get_inputs()[0].name: inputs})[0]
        return features

    def encode(self, items: Sequence[Any]) -> Features:
        size = _BATCH[self._tower]
        batches = [self.run(self.inputs(items[first : first + size])) for first in range(0, len(items), size)]
        return np.concatenate(batches)


def _recall(cosines: Features, k: int) -> float:
    """The share of rows whose own column is among their k highest."""
    own = np.diag(cosines)[:, None]
    return float(((cosines > own).sum(axis=1) < k).mean())
