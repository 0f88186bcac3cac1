"""A repository for a GPU on a real tritonserver without one: all of it is served as it is but for where encoders run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.reference import Reference
from cnclip_builder.repository.choosing import choose_settings
from cnclip_builder.repository.manifest import load_manifest
from cnclip_builder.tensors import TOWERS
from cnclip_builder.verify import verify_server
from cnclip_client import Client
from cnclip_server import TritonServer

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def repository(tiny_vit: Arch, tiny_artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    shutil.copytree(tiny_artefacts.items[0].path.parent, folder / "artefacts" / "tiny-vit")
    build_repository(
        BuildRequest(
            arch=tiny_vit,
            checkpoint=str(tiny_artefacts.checkpoint.file.path),
            serving=choose_settings({"target": "gpu"}, {}, 52)[0],
            repository=folder / "repository",
            artefacts=folder / "artefacts",
            download_root=folder,
        )
    )
    assert load_manifest(folder / "repository").models["tiny-vit"]["1"]["served_graph"] == dict.fromkeys(
        TOWERS, "fused"
    )
    for config in (folder / "repository").glob("*-encoder/config.pbtxt"):
        text, count = re.subn("KIND_GPU", "KIND_CPU", config.read_text(encoding="utf-8"))
        assert count == 1
        config.write_text(text, encoding="utf-8")
    # Its hashes vouch for the configs as they were.
    (folder / "repository" / "manifest.json").unlink()
    return folder / "repository"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running


def test_its_features_are_pytorchs(server: TritonServer, tiny_vit: Arch, tiny_artefacts: Artefacts) -> None:
    verify_server(server.grpc_url, "tiny-vit", Reference(tiny_artefacts.checkpoint.file.path, tiny_vit)).require()


def test_texts_have_two_lengths(server: TritonServer) -> None:
    """All of them are the same texts, however many tokens the longest beside them has."""
    client = grpc.InferenceServerClient(server.grpc_url)

    def tokenised(*texts: str) -> tuple[int, ...]:
        given = grpc.InferInput("TEXT", [len(texts), 1], "BYTES")
        given.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
        result = client.infer("tiny-vit-text-tokenize", [given]).as_numpy("text")
        return tuple(result.shape)

    assert tokenised("杰尼龟") == (1, 40)
    assert tokenised("杰尼龟", "龟" * 39) == (2, 52)
    with Client(server.grpc_url, model="tiny-vit") as served:
        alone, together = served.encode_texts(["杰尼龟"]), served.encode_texts(["杰尼龟", "龟" * 50])
    np.testing.assert_allclose(together[0], alone[0], atol=2e-3)
    assert client.get_model_config("tiny-vit-text", as_json=True)["config"]["max_batch_size"] == 128
