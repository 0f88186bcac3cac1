"""A fine-tune of transformers with a LoRA adapter beside it, from folder to client: served features are transformers' own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cn_clip.clip import image_transform
from cnclip_builder.arch import cn_clip_vocabulary
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.checkpoint.choose import choose_arch
from cnclip_builder.parity.distance import TOLERANCES, measure_parity
from cnclip_builder.parity.samples import sample_images, sample_texts
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.tensors import TOWERS
from cnclip_client import Client
from cnclip_server import TritonServer
from PIL import Image

from tests.builder.checkpoint.chinese_clip import changed, features, make_model
from tests.builder.checkpoint.test_adapter import QKV, QUERY, add_by_hand, low_rank, write_adapter

pytestmark = pytest.mark.triton


def test_served_features_are_transformers_own(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    # 20 heads of the text's, a grid of 3 patches, 64 tokens: sizes of no model that is published.
    config = changed({"hidden_size": 60, "num_attention_heads": 20, "max_position_embeddings": 64}, {"image_size": 24})
    model = make_model(config)
    folder = tmp_path / "fine-tune"
    model.save_pretrained(folder, max_shard_size="1MB")
    adapter = low_rank(model, [QUERY, *QKV])
    write_adapter(folder, adapter)
    arch = choose_arch(None, str(folder))
    request = BuildRequest(
        arch=arch,
        checkpoint=str(folder),
        serving=ServingConfig(target="cpu", precision="fp32", context_length=40, max_batch_size=8),
        repository=tmp_path / "repository",
        artefacts=tmp_path / "artefacts",
        download_root=tmp_path,
    )
    entry = build_repository(request)
    record = json.loads((tmp_path / "repository" / "manifest.json").read_text())["models"]["fine-tune"]["1"]
    assert record["arch"] == entry.name == "fine-tune"
    assert {"adapter_config.json", "adapter_model.safetensors"} < set(record["checkpoint"]["files"])

    add_by_hand(model, adapter, dict.fromkeys([QUERY, *QKV], 2.0))
    # Without the Greek that cn_clip's tokeniser takes apart otherwise than transformers': a final sigma.
    encoded, texts = list(sample_images().values()), [text for text in sample_texts() if "Σ" not in text][:20]
    transform = image_transform(24)
    pixels = torch.stack([transform(Image.open(io.BytesIO(image))) for image in encoded])
    tokenizer = BertTokenizer(str(cn_clip_vocabulary()))
    ids = tokenizer(texts, padding=True, truncation=True, max_length=40, return_tensors="pt")["input_ids"]
    theirs = features(model, pixels, ids)
    with (
        TritonServer(tmp_path / "repository", grpc_port=0, http_port=0, metrics_port=0) as server,
        Client(server.grpc_url, model="fine-tune") as client,
    ):
        ours = {"image": client.encode_images(encoded), "text": client.encode_texts(texts)}
    for tower in TOWERS:
        reference = theirs[tower] / np.linalg.norm(theirs[tower], axis=1, keepdims=True)
        parity = measure_parity(ours[tower], reference)
        assert parity.cosine_distance < TOLERANCES["fp32"].cosine_distance
        assert parity.centred_distance < TOLERANCES["fp32"].centred_distance
