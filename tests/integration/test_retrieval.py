"""The demo's retrieval, served by a real tritonserver and counted by us, is PyTorch's, counted by cn_clip's scripts."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from cnclip_client import Client
from cnclip_client.classification import Classifier
from cnclip_server import TritonServer

from tests.client.test_evaluation import cn_clip, cnclip, write
from tests.conftest import DEMO

pytestmark = pytest.mark.triton

PICTURES = 100


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    """The demo's own measuring script, which encodes with PyTorch and cn_clip alone."""
    sys.path.insert(0, str(DEMO))
    yield importlib.import_module("evaluate")
    sys.path.remove(str(DEMO))


@pytest.fixture(scope="module")
def client(demo_server: TritonServer) -> Iterator[Client]:
    with Client(demo_server.grpc_url, model="demo") as connected:
        yield connected


def write_features(folder: Path, images: Any, texts: Any) -> tuple[object, ...]:
    """Writes features as cn_clip's extract_features.py does; returns the options that name them."""
    folder.mkdir()
    rows = [{"image_id": row, "feature": one} for row, one in enumerate(images.tolist())]
    lines = [{"text_id": 1000 + row, "feature": one} for row, one in enumerate(texts.tolist())]
    return (
        *("--image-feats", write(folder / "imgs.img_feat.jsonl", rows)),
        *("--text-feats", write(folder / "texts.txt_feat.jsonl", lines)),
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_recall_is_pytorchs(tmp_path: Path, client: Client, demo: ModuleType, seed: int) -> None:
    _, images, captions = zip(*demo.held_out(PICTURES, seed), strict=True)
    theirs = write_features(tmp_path / "pytorch", *demo.encode(demo.load_model(), images, captions))
    ours = write_features(tmp_path / "served", client.encode_images(images), client.encode_texts(captions))
    annotations = write(
        tmp_path / "texts.jsonl",
        [{"text_id": 1000 + row, "text": one, "image_ids": [row]} for row, one in enumerate(captions)],
    )
    truths = {"": annotations, "_tr": annotations.with_suffix(".tr.jsonl")}
    commands: list[tuple[object, ...]] = [("transform_ir_annotation_to_tr", "--input", annotations)]
    for ending, truth in truths.items():
        predictions = tmp_path / f"predictions{ending}.jsonl"
        commands.append((f"make_topk_predictions{ending}", *theirs, "--output", predictions))
        commands.append((f"evaluation{ending}", truth, predictions, tmp_path / f"score{ending}.json"))
    cn_clip(*commands)
    found = json.loads(cnclip("evaluate", "--annotations", annotations, *ours, "--json").stdout)
    for ending, direction in [("", "text_to_image"), ("_tr", "image_to_text")]:
        expected = json.loads((tmp_path / f"score{ending}.json").read_text())["scoreJson"]
        names = ("r1", "r5", "r10", "mean_recall")
        assert {name: found[direction][name] for name in names} == {name: expected[name] for name in names}
        assert expected["r1"] > 80  # what the demo's checkpoint is worth; chance is 1


def test_classification_is_pytorchs(client: Client, demo: ModuleType) -> None:
    import torch
    from cn_clip.clip import tokenize
    from cn_clip.eval.data import _preprocess_text

    scenes, images, _ = zip(*demo.held_out(40, 3), strict=True)
    colours = {"red": "红", "orange": "橙", "yellow": "黄", "green": "绿", "blue": "蓝", "purple": "紫"}
    labels = list(colours.values())
    shapes = ("圆形", "五角星")
    templates = [
        f"{ground}色背景的中间有{count}个{{}}色的{shape}" for ground in "白灰黑" for count in "一两" for shape in shapes
    ]
    model = demo.load_model()
    with torch.no_grad():
        weights = []
        for label in labels:
            prompts = [_preprocess_text(template.replace("{}", label)) for template in templates]
            features = torch.nn.functional.normalize(model.encode_text(tokenize(prompts)), dim=-1)
            weights.append(torch.nn.functional.normalize(features.mean(dim=0), dim=-1))
        pictures, _ = demo.encode(model, images, labels)
        expected = (model.logit_scale.exp() * pictures @ torch.stack(weights).T).softmax(dim=-1).numpy()
    classifier = Classifier.of(client, labels, templates=templates)
    found = list(classifier.classify(client, images, k=6))
    chances = np.array([[dict(zip(f.labels, f.probabilities, strict=True))[label] for label in labels] for f in found])
    np.testing.assert_allclose(chances, expected, atol=1e-4)
    right = sum(one.labels[0] == colours[scene.colour] for one, scene in zip(found, scenes, strict=True))
    assert right > 28  # of 40; chance is 7
