"""Encoders alone on a real tritonserver: built, served, found, and asked for the features that the whole server gives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from cnclip_builder.build import build_repository
from cnclip_builder.repository.manifest import load_manifest
from cnclip_builder.repository.serving import ServingConfig
from cnclip_client import Client, Limits, ModelNotFound, served_models
from cnclip_client._flow.tokenizing import Tokenizing
from cnclip_server import TritonServer
from cnclip_server._watch import children_of

from tests.commands import run_command_text
from tests.conftest import DEMO, demo_request

pytestmark = pytest.mark.triton

LIMITS = Limits(preparers=2)
HOSTILE = [
    "",
    " \t\r\n",
    "\0a\0b\0",
    "a" * 201,
    "我" * 5000,
    "ΌΔΟΣ ΟΔΟΣ. Σ ΑΣ́ İstanbul ǅ ﬁ ẞ",
    "全角：ＡＢＣ　１２３！￥“引号”",
    "🐼👨‍👩‍👧‍👦\u200b\ufeff\u00ad",
    "\ue000\uf8ff\U0002b820\U0002ceb0\ufffd",
    "[CLS] [SEP] [PAD] [MASK] [UNK] ##a",
    "\u2028\u2029\x85\x1c\u3000\u180e",
    "a" + "\u0301\u0316" * 600 + "b",
    "é\u302e\u0316\u0900\U0001d165\u0301ﬁΣ" * 300,
]


@pytest.fixture(scope="module")
def repository(demo_artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built, and served and compared with PyTorch as it is built."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(demo_artefacts, folder / "artefacts" / "demo")
    serving = ServingConfig(
        target="cpu", precision="fp32", context_length=52, max_batch_size=16, text_lengths=(24,), encoders_only=True
    )
    request = demo_request(folder, serving=serving, verify=True)
    build_repository(request)
    return request.repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running


def test_it_was_compared_with_pytorch_as_it_was_built(repository: Path) -> None:
    live = load_manifest(repository).models["demo"]["1"]["live_parity"]
    assert all(live[tower]["cosine_distance"] < 1e-6 and live[tower]["rows"] > 10 for tower in ("image", "text"))


def test_nothing_of_it_runs_python_models_pillow_or_a_tokeniser(server: TritonServer) -> None:
    """The stand-in backend is Python by itself; with Triton's own one nothing here would be."""
    assert server.models() == ["demo-image-encoder", "demo-text-encoder"]
    processes = below(server.pid)
    stubs = [process for process in processes if b"triton_python_backend_stub" in command(process)]
    assert all(b"-encoder/1/" in command(process) for process in stubs)
    assert len(stubs) == 2
    with Client(server.grpc_url, model="demo", limits=LIMITS, prepare="client") as client:
        client.similarity([next((DEMO / "images").glob("*.jpg"))], ["圆形"])
        mapped = [Path(f"/proc/{process}/maps").read_text() for process in processes]
    assert any("onnxruntime" in maps for maps in mapped)
    assert not any("/PIL/" in maps or "/tokenizers/" in maps or "pillow.libs" in maps for maps in mapped)


def below(pid: int) -> list[int]:
    """A process, and all that it and those below it have started."""
    return [pid, *(one for child in children_of(pid) for one in below(child))]


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("prepare", ["client", "auto"])
def test_images_are_as_those_of_the_whole_server(
    server: TritonServer, demo_server: TritonServer, shared_images: list[Path], prepare: str
) -> None:
    with (
        Client(demo_server.grpc_url, model="demo") as whole,
        Client(server.grpc_url, model="demo", limits=LIMITS, prepare=prepare) as alone,  # type: ignore[arg-type]
    ):
        there, here = (one.encode_images(shared_images, errors="collect") for one in (whole, alone))
    assert here.failures == there.failures
    assert len(there.failures) > 5
    np.testing.assert_allclose(here.features, there.features, atol=1e-6)


def test_texts_are_as_those_of_the_whole_server(
    server: TritonServer, demo_server: TritonServer, shared_captions: list[str]
) -> None:
    texts = [*HOSTILE, *shared_captions[:500], "\ud800"]
    with (
        Client(demo_server.grpc_url, model="demo") as whole,
        Client(server.grpc_url, model="demo", prepare="client") as alone,
    ):
        there, here = (one.encode_texts(texts, errors="collect") for one in (whole, alone))
        assert alone.info.text_lengths == (24, 52)
    assert here.failures == there.failures
    assert len(there.failures) == 1
    np.testing.assert_allclose(here.features, there.features, atol=1e-6)


def test_ids_are_those_of_the_server_to_the_byte(demo_server: TritonServer, shared_captions: list[str]) -> None:
    """Of the whole server's tokenising, text by text and together."""
    with Client(demo_server.grpc_url, model="demo") as client:
        tokenizing = Tokenizing("demo-text-encoder", client.info_of("text"))
    asked = grpc.InferenceServerClient(demo_server.grpc_url)

    def of_server(texts: list[str]) -> bytes:
        given = grpc.InferInput("TEXT", [len(texts), 1], "BYTES")
        given.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
        ids = asked.infer("demo-text-tokenize", [given]).as_numpy("text")
        assert ids.dtype == np.int32
        return bytes(ids.tobytes())

    def here(texts: list[str]) -> bytes:
        return tokenizing.padded([tokenizing.ids(text, 1 << 20)[0] for text in texts]).tobytes()

    texts = [*HOSTILE, *shared_captions]
    for start in range(0, len(texts), 16):
        assert here(texts[start : start + 16]) == of_server(texts[start : start + 16])
    for text in HOSTILE:
        assert here([text]) == of_server([text])
    asked.close()


def cnclip(server: TritonServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, which is told of the server and of nothing else."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("CNCLIP_")}
    return run_command_text("cnclip", *arguments, env={**given, "CNCLIP_URL": server.grpc_url, "NO_COLOR": "1"})


def test_commands_find_it_and_say_who_has_to_prepare(server: TritonServer, tmp_path: Path) -> None:
    assert served_models(server.grpc_url) == ("demo",)
    told = cnclip(server, "info", "--json")
    assert json.loads(told.stdout)["text_lengths"] == [24, 52]
    output = tmp_path / "images.jsonl"
    refused = cnclip(server, "extract", "images", DEMO / "images", "-o", output)
    assert refused.returncode == 3
    assert refused.stderr.count("\n") == 1
    assert "has its encoder alone, which takes pixels: have this machine prepare them" in refused.stderr
    done = cnclip(server, "extract", "images", DEMO / "images", "-o", output, "--prepare", "client")
    assert done.returncode == 0, done.stderr
    assert len(output.read_text().splitlines()) == 6
    texts = tmp_path / "texts.jsonl"
    done = cnclip(server, "extract", "texts", DEMO / "captions.tsv", "--format", "lines", "-o", texts, "--prepare=auto")
    assert done.returncode == 0, done.stderr
    assert len(texts.read_text().splitlines()) == len((DEMO / "captions.tsv").read_text().splitlines())


def test_a_client_that_is_to_leave_it_to_the_server_is_told_at_once(server: TritonServer) -> None:
    with Client(server.grpc_url, model="demo") as client, pytest.raises(ModelNotFound, match='prepare="client"'):
        client.encode_texts(["圆形"])
