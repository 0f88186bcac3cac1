"""A repository whose images GPUs decode, on a real tritonserver without one.

Its models run on the host, and the card is the kernels' twin with nvImageCodec on the processor; all else is what is served.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_bench.gpu_report.card import tell_of_card
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.cli.app import app
from cnclip_builder.reference import Reference
from cnclip_builder.repository.choosing import choose_settings
from cnclip_builder.repository.manifest import MANIFEST_NAME, load_manifest
from cnclip_builder.verify import verify_server
from cnclip_client import Client
from cnclip_server import ServerError, TritonServer
from typer.testing import CliRunner

from tests.conftest import ROOT
from tests.resize.card_twin import can_compile, compile_twin
from tests.resize.test_card import ALL, JPEG, LIES

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed: the extra [gpu-decode] has it")

pytestmark = [pytest.mark.triton, pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler")]

TWIN = """
import sys
from pathlib import Path

sys.path[:0] = [{root!r}, {root!r} + "/resize"]  # Triton's stub has what is installed, not what is tested
import cnclip_card
from cnclip_card._decoder import NvImageCodec
from tests.resize.card_twin import Twin

def open_card(side, formats, *, number, threads, processes):
    card = Twin(Path({library!r}))
    return cnclip_card.Card(card, NvImageCodec(None, threads), side=side, formats=formats, memory=1 << 30)

cnclip_card.open_card = open_card
"""


def built(arch: Arch, artefacts: Artefacts, folder: Path) -> Path:
    shutil.copytree(artefacts.items[0].path.parent, folder / "artefacts" / "tiny-vit")
    request = BuildRequest(
        arch=arch,
        checkpoint=str(artefacts.checkpoint.file.path),
        serving=choose_settings({"target": "gpu", "preprocess": "gpu"}, {}, 52)[0],
        repository=folder / "repository",
        artefacts=folder / "artefacts",
        download_root=folder,
    )
    build_repository(request)
    return request.repository


@pytest.fixture(scope="module")
def as_built(tiny_vit: Arch, tiny_artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tiny_vit, tiny_artefacts, tmp_path_factory.mktemp("card"))


def on_the_host(repository: Path, target: Path) -> Path:
    shutil.copytree(repository, target)
    for kind in ("image-encoder", "text-encoder", "image-preprocess"):
        config = target / f"tiny-vit-{kind}" / "config.pbtxt"
        text, count = re.subn("KIND_GPU", "KIND_CPU", config.read_text(encoding="utf-8"))
        assert count == 1, kind
        config.write_text(text, encoding="utf-8")
    (target / MANIFEST_NAME).unlink()  # its hashes vouch for the configs as they were
    return target


@pytest.fixture(scope="module")
def server(as_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("served")
    repository = on_the_host(as_built, folder / "repository")
    model = repository / "tiny-vit-image-preprocess" / "1" / "model.py"
    twin = TWIN.format(root=str(ROOT), library=str(compile_twin(folder)))
    model.write_text(twin + model.read_text(encoding="utf-8"), encoding="utf-8")
    log = folder / "log"
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0, log_file=log) as running:
        # What cnclip-serve starts tritonserver with, its Python process has read.
        assert "pixels go on in its memory" in log.read_text(encoding="utf-8")
        yield running


def test_it_is_verified_against_exact_pixels_and_pytorch(
    server: TritonServer, tiny_vit: Arch, tiny_artefacts: Artefacts
) -> None:
    found = verify_server(server.grpc_url, "tiny-vit", Reference(tiny_artefacts.checkpoint.file.path, tiny_vit))
    found.require()
    assert found.card_decoding is not None
    assert found.card_decoding.rows == found.parity["image"].rows
    assert found.card_decoding.cosine_distance < 1e-6


def test_batches_of_all_kinds(server: TritonServer, caplog: pytest.LogCaptureFixture) -> None:
    """Features of what is sent are those of exact pixels; refusals are the exact way's, word for word."""
    images = list({**ALL, **LIES}.values())
    results = []
    for prepare in ("server", "client"):
        with Client(server.grpc_url, model="tiny-vit", prepare=prepare) as client:
            results.append(client.encode_images(images, errors="collect", normalize=False, batch_size=16))
    sent, prepared = results
    assert sent.failures == prepared.failures
    assert len(sent.failures) > 10
    np.testing.assert_array_equal(sent.indices, prepared.indices)
    np.testing.assert_allclose(sent.features, prepared.features, atol=1e-2)
    assert sum("decodes JPEGs on its GPU" in record.getMessage() for record in caplog.records) == 1


def test_its_metrics_tell_which_way_images_took(server: TritonServer) -> None:
    with Client(server.grpc_url, model="tiny-vit") as client:
        assert client.info.decoding == "gpu"
        client.encode_images([JPEG, ALL["PNG"]])
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    assert "`cnclip_card_images`" in page
    assert "`cnclip_card_failures`" in page
    for way in ("card", "exact"):
        line = rf'cnclip_card_images{{[^}}]*model="tiny-vit-image-preprocess"[^}}]*way="{way}"[^}}]*}} (\S+)'
        found = re.search(line, text)
        assert found is not None, way
        assert float(found[1]) >= 1


def test_without_a_card_it_is_one_line_before_the_server_is_ready(as_built: Path, tmp_path: Path) -> None:
    repository = on_the_host(as_built, tmp_path / "repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(ServerError, match=r"images can't be decoded on a GPU here: .*or build the repository with"):
            TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0).start()


def test_a_build_without_a_gpu_says_what_it_does_not_measure(
    tiny_vit: Arch, tiny_artefacts: Artefacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        repository = built(tiny_vit, tiny_artefacts, tmp_path)
    told = [line for line in caplog.messages if line.startswith("How far a GPU's pixels are from exact ones is not")]
    assert len(told) == 1
    assert "card_decoding" not in load_manifest(repository).models["tiny-vit"]["1"]
    shown = CliRunner().invoke(app, ["show", str(repository)]).stdout
    assert "  decodes     JPEGs on the GPU; how far from exactly was not measured where it was built\n" in shown


def test_what_was_measured_is_in_the_manifest_and_shown(
    tiny_vit: Arch, tiny_artefacts: Artefacts, tmp_path: Path
) -> None:
    features = {"cosine_distance": 2e-6, "centred_distance": 3e-5}
    figures = {"mean_pixel_difference": 0.12, "largest_pixel_difference": 7, "features": features}
    found = {"images": 20, "exact_share": 0.25, **figures}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cnclip_builder.build._has_card", lambda: True)
        patch.setattr("cnclip_builder.build._measured_card", lambda request, artefacts: found)
        repository = built(tiny_vit, tiny_artefacts, tmp_path)
    assert load_manifest(repository).models["tiny-vit"]["1"]["card_decoding"] == found
    shown = CliRunner().invoke(app, ["show", str(repository)]).stdout
    assert (
        "  decodes     JPEGs on the GPU; of 20 images 25% exactly, the others' pixels off by 0.12 on average and 7 at most, "
        "1 - cosine <= 2e-06, 3e-05 centred\n"
    ) in shown
    told = CliRunner().invoke(app, ["show", str(repository), "--json"]).stdout
    assert json.loads(told)["models"]["tiny-vit"]["1"]["card_decoding"] == found


def test_a_gpu_report_tells_which_way_pixels_went(server: TritonServer, tiny_vit: Arch) -> None:
    """Rates of pixels that went by way of the host, or of JPEGs that the card gave back, would be told as the card's."""
    with Client(server.grpc_url, model="tiny-vit") as client:
        client.encode_images([JPEG])
    rows: list[Any] = []
    tell_of_card(server, rows.append)
    way, counted = (row.value for row in rows)
    assert way == "pixels go on in its memory"
    assert re.fullmatch("failures failed 0, failures full 0, images card [1-9][0-9]*, images exact [0-9]+", counted)
