"""Zero-shot classification: which of some labels fits an image, told by a served model that never learned them.

    from cnclip_client import Client
    from cnclip_client.classification import Classifier

    with Client("localhost:8001", model="vit-b-16") as client:
        classifier = Classifier.of(client, ["猫", "狗", "马"], templates=["一张{}的照片", "{}的特写照片"])
        for found in classifier.classify(client, ["a.jpg", "b.jpg"], k=1):
            print(found.index, found.labels, found.probabilities)

In the steps of cn_clip's `eval/zeroshot_evaluation.py`: a label's feature is the mean of the normalised features of its
prompts, normalised anew; an image's probabilities are the softmax of logit_scale times the cosines. There logit_scale
is always 100; here it is the checkpoint's own, which in all of Chinese-CLIP's is 100.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnclip_client._client import Client
from cnclip_client._exceptions import CheckpointMismatch
from cnclip_client._flow.items import ImageItem
from cnclip_client._similarity import logits_per_image, softmax

__all__ = ["TEMPLATES", "Classification", "Classifier"]

TEMPLATES = ("一张{}的照片",)
"""The prompts where none are given: one of the general ones in cn_clip's `eval/cvinw_zeroshot_templates.py`."""


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """What an image shows.

    Attributes:
        index: Its index in the caller's sequence.
        labels: The k likeliest labels, the likeliest first; of equals the earlier. Empty if it could not be encoded.
        probabilities: float32 [k], among all labels, not among these k.
        failure: Why it could not be encoded; empty if it was.
    """

    index: int
    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    failure: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """Labels with their features.

    Attributes:
        labels: n of them.
        features: float32 [n, D], L2-normalised.
        logit_scale: The checkpoint's, exponentiated.
        checkpoint_sha256: What the features are of.
    """

    labels: tuple[str, ...]
    features: NDArray[np.float32]
    logit_scale: float
    checkpoint_sha256: str

    @classmethod
    def of(
        cls,
        client: Client,
        labels: Iterable[str],
        *,
        templates: Iterable[str] = TEMPLATES,
        preprocess: bool = True,
    ) -> Classifier:
        """Encodes labels; each is put in place of `{}` in every template.

        Args:
            client: Of a model with both towers.
            labels: Texts, one at least; they may be many.
            templates: Texts with `{}`.
            preprocess: Whether prompts are prepared with `preprocess_text`, as cn_clip's `zeroshot_evaluation.py` does.

        Raises:
            ValueError: There is no label or no template, a template lacks `{}`, or a prompt cannot be encoded.
            CnclipError: The server could not be had.
        """
        labels, templates = tuple(labels), tuple(templates)
        if not labels or not templates:
            raise ValueError(f"got {len(labels)} labels and {len(templates)} templates; give at least one of each")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"the template {template!r} has no {{}} where the label goes; put one in")
        info = client.info
        sums = np.zeros((len(labels), info.embedding_size), dtype=np.float64)
        for block in client.iter_texts(_prompts(labels, templates), preprocess=preprocess):
            for row, reason in block.failures.items():
                raise ValueError(f"the label {labels[row // len(templates)]!r} cannot be encoded: {reason}")
            np.add.at(sums, block.indices // len(templates), block.features)
        features = (sums / np.linalg.norm(sums, axis=1, keepdims=True)).astype(np.float32)
        return cls(labels, features, info.logit_scale, info.checkpoint_sha256)

    def classify(self, client: Client, images: Iterable[ImageItem], *, k: int = 5) -> Iterator[Classification]:
        """Yields what each image shows, in their order; memory stays bounded for any number of them.

        Args:
            client: Of the same checkpoint as the labels' features.
            images: Paths, encoded files' bytes or PIL images.
            k: How many labels to name; fewer if there are no more.

        Raises:
            ValueError: k is less than 1.
            CheckpointMismatch: The client serves another checkpoint.
            CnclipError: The server could not be had.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        info = client.info
        if info.checkpoint_sha256 != self.checkpoint_sha256:
            raise CheckpointMismatch(
                model=info.model, image_sha256=info.checkpoint_sha256, text_sha256=self.checkpoint_sha256
            )
        return self._classify(client, images, k)

    def _classify(self, client: Client, images: Iterable[ImageItem], k: int) -> Iterator[Classification]:
        none = np.empty(0, dtype=np.float32)
        for block in client.iter_images(images):
            chances = softmax(logits_per_image(block.features, self.features, self.logit_scale))
            best = np.argsort(-chances, axis=1, kind="stable")[:, :k]
            encoded = dict(zip(block.indices.tolist(), range(len(best)), strict=True))
            for index in range(block.start, block.stop):
                row = encoded.get(index)
                if row is None:
                    yield Classification(index, (), none, block.failures[index])
                else:
                    labels = tuple(self.labels[label] for label in best[row].tolist())
                    yield Classification(index, labels, chances[row, best[row]])


def _prompts(labels: Sequence[str], templates: Sequence[str]) -> Iterator[str]:
    for label in labels:
        for template in templates:
            # Not str.format: a label or a template may hold braces of its own.
            yield template.replace("{}", label)
