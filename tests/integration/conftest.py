"""The demo model, built and served once for all tests here that need a trained one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cnclip_builder.arch import get_arch
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.repository.serving import ServingConfig
from cnclip_server import TritonServer

from tests.conftest import ROOT

DEMO = ROOT / "examples/demo"


@pytest.fixture(scope="session")
def demo_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of the bundled checkpoint, model `demo`, FP32."""
    folder = tmp_path_factory.mktemp("demo")
    build_repository(
        BuildRequest(
            arch=get_arch(str(DEMO / "demo.json")),
            checkpoint=str(DEMO / "clip_cn_demo.pt"),
            serving=ServingConfig(target="cpu", precision="fp32", context_length=52, max_batch_size=16),
            repository=folder / "repository",
            artefacts=folder / "artefacts",
            download_root=folder,
        )
    )
    return folder / "repository"


@pytest.fixture(scope="session")
def demo_server(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """It, served. Tests that stop or harm a server start one of their own."""
    log = tmp_path_factory.mktemp("log") / "tritonserver.log"
    with TritonServer(demo_repository, grpc_port=0, http_port=0, metrics_port=0, log_file=log) as server:
        yield server
