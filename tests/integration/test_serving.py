"""The whole way on a real tritonserver: a tiny checkpoint is built, served, verified and asked for features."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.errors import BuildError, ParityError, RepositoryError
from cnclip_builder.parity.distance import Tolerance
from cnclip_builder.parity.samples import sample_images
from cnclip_builder.reference import Reference
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.write import KINDS, check_repository
from cnclip_builder.verify import verify_server
from cnclip_client import BadInput, Client
from cnclip_server import TritonServer
from tritonclient.utils import InferenceServerException

from tests.templates.test_pixels import cn_clip_pixels

pytestmark = pytest.mark.triton

MAX_BATCH_SIZE = 4
CONTEXT_LENGTH = 40


def request(arch: Arch, folder: Path, **changes: Any) -> BuildRequest:
    serving = ServingConfig(
        target="cpu",
        precision=changes.pop("precision", "fp32"),
        context_length=changes.pop("context_length", CONTEXT_LENGTH),
        max_batch_size=MAX_BATCH_SIZE,
        reduced_decoding=changes.pop("reduced_decoding", False),
    )
    return BuildRequest(
        arch=arch,
        checkpoint=changes.pop("checkpoint", "random:0"),
        serving=serving,
        repository=folder / "repository",
        artefacts=folder / "artefacts",
        download_root=folder,
        **changes,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def repository(
    tiny_vit: Arch, tiny_artefacts: Artefacts, tiny_resnet: Arch, resnet_checkpoint: Path, folder: Path
) -> Path:
    """Two archs, a second version of the first, and a checkpoint of it under a name of its own."""
    for name in ("tiny-vit", "fine-tuned"):
        shutil.copytree(tiny_artefacts.items[0].path.parent, folder / "artefacts" / name)
    build_repository(request(tiny_vit, folder))
    build_repository(request(tiny_vit, folder, checkpoint="random:1", version=2))
    build_repository(request(tiny_vit, folder, name="fine-tuned", precision="fp16", reduced_decoding=True, verify=True))
    build_repository(request(tiny_resnet, folder, checkpoint=str(resnet_checkpoint)))
    return folder / "repository"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url, model="tiny-vit") as connected:
        yield connected


def infer(url: str, model: str, tensor: str, rows: list[bytes], version: str = "") -> Any:
    inputs = grpc.InferInput(tensor, [len(rows), 1], "BYTES")
    inputs.set_data_from_numpy(np.array(rows, dtype=np.object_).reshape(-1, 1))
    with grpc.InferenceServerClient(url) as connection:
        return connection.infer(model, [inputs], model_version=version)


def test_what_lies_in_the_repository(repository: Path, server: TritonServer) -> None:
    names = {f"{name}-{kind}" for name in ("tiny-vit", "tiny-rn", "fine-tuned") for kind in KINDS}
    assert {path.name for path in repository.iterdir()} == names | {"manifest.json"}
    check_repository(repository)
    both = {f"tiny-vit-{kind}{version}" for kind in KINDS if kind not in ("image", "text") for version in ("", ":2")}
    one = {f"{name}-{kind}" for name in ("tiny-rn", "fine-tuned") for kind in KINDS}
    assert set(server.models()) == both | one | {"tiny-vit-image:2", "tiny-vit-text:2"}
    models = json.loads((repository / "manifest.json").read_text())["models"]
    assert {name: sorted(versions) for name, versions in models.items()} == {
        "tiny-vit": ["1", "2"],
        "tiny-rn": ["1"],
        "fine-tuned": ["1"],
    }
    entry = models["fine-tuned"]["1"]
    assert entry["checkpoint"]["untrained"] is True
    assert entry["served_parity"]["text-encoder"]["cosine_distance"] < 1e-3
    assert entry["live_parity"]["image"]["rows"] == len(sample_images())
    assert set(entry["artefacts"]) == {f"tiny-vit.{t}.{p}.onnx" for t in ("img", "txt") for p in ("fp32", "fp16")}


@pytest.mark.parametrize(("name", "seed"), [("tiny-vit", 1), ("fine-tuned", 0)])
def test_live_features_are_pytorchs(server: TritonServer, folder: Path, tiny_vit: Arch, name: str, seed: int) -> None:
    checkpoint = folder / f"tiny-vit.random-{seed}.pt"
    verification = verify_server(server.grpc_url, name, Reference(checkpoint, tiny_vit))
    verification.require()
    assert verification.preparation is not None
    assert verification.preparation.images == len(sample_images())
    assert verification.preparation.texts > 300  # the whole vocabulary, 38 words each
    limit = 1e-6 if name == "tiny-vit" else 1e-3
    assert {tower: parity.cosine_distance < limit for tower, parity in verification.parity.items()} == {
        "image": True,
        "text": True,
    }


def test_resnet_features_are_pytorchs(server: TritonServer, tiny_resnet: Arch, resnet_checkpoint: Path) -> None:
    verify_server(server.grpc_url, "tiny-rn", Reference(resnet_checkpoint, tiny_resnet)).require()


def test_reduced_decoding_says_what_it_changes(server: TritonServer, repository: Path) -> None:
    """Served features equal PyTorch's where both decode so; how far that is from exact decoding is told."""
    for name, decoding in (("tiny-vit", "exact"), ("fine-tuned", "reduced")):
        with Client(server.grpc_url, model=name) as client:
            assert client.info.decoding == decoding
    found = json.loads((repository / "manifest.json").read_text())["models"]["fine-tuned"]["1"]["live_parity"]
    assert found["image"]["cosine_distance"] <= 1e-3  # the tolerance of FP16, and not of the other decoding
    assert 0 < found["reduced_decoding"]["cosine_distance"] < 1e-2


def test_verification_fails_where_it_should(server: TritonServer, folder: Path, tiny_vit: Arch) -> None:
    with pytest.raises(BuildError, match="served from a checkpoint with sha256"):
        verify_server(server.grpc_url, "tiny-vit", Reference(folder / "tiny-vit.random-0.pt", tiny_vit))
    verification = verify_server(
        server.grpc_url, "tiny-vit", Reference(folder / "tiny-vit.random-1.pt", tiny_vit, texts=["一", "二"])
    )
    impossible = Tolerance(cosine_distance=-1, centred_distance=-1)
    wrong = replace(verification, tolerances=dict.fromkeys(verification.tolerances, impossible))
    with pytest.raises(ParityError, match="features that tiny-vit serves are not PyTorch's"):
        wrong.require()


def test_what_features_hide_is_seen_in_what_they_are_made_of(
    repository: Path, folder: Path, tiny_vit: Arch, tmp_path: Path
) -> None:
    """Pixels off by one, two of the vocabulary's lines swapped: the features of an FP16 encoder pass with each."""
    mutated = tmp_path / "repository"
    for model in repository.glob("fine-tuned-*"):
        shutil.copytree(model, mutated / model.name)
    for name, changes in (
        ("image-preprocess/1/cnclip_pixels.py", [("        return np.asarray(", "        return 1 ^ np.asarray(")]),
        ("text-tokenize/1/vocab.txt", [("\n猫\n", "\n(dog)\n"), ("\n狗\n", "\n猫\n"), ("\n(dog)\n", "\n狗\n")]),
    ):
        path = mutated / f"fine-tuned-{name}"
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    with TritonServer(mutated, grpc_port=0, http_port=0, metrics_port=0) as server:
        found = verify_server(server.grpc_url, "fine-tuned", Reference(folder / "tiny-vit.random-0.pt", tiny_vit))
    replace(found, preparation=None).require()
    with pytest.raises(ParityError, match=r"fine-tuned does not prepare its inputs as cn_clip does: .* by up to 1; "):
        found.require()
    assert found.preparation is not None
    assert any("is 4344, not 4318 for" in told for told in found.preparation.differing)


def test_real_images_good_and_hostile(client: Client, folder: Path, tiny_vit: Arch, shared_images: list[Path]) -> None:
    """Every image that cn_clip accepts has PyTorch's feature, every other a reason; none costs its neighbours."""
    tower = load_tower(load_checkpoint(folder / "tiny-vit.random-1.pt", tiny_vit), "image")
    expected = {
        index: pixels
        for index, path in enumerate(shared_images)
        if (pixels := cn_clip_pixels(path.read_bytes(), tiny_vit.resolution)) is not None
    }
    block = client.encode_images(shared_images, errors="collect", normalize=False)
    assert set(block.failures) == set(range(len(shared_images))) - set(expected)
    assert all(block.failures.values())
    reference = encode(tower, np.stack(list(expected.values())))
    served = block.features
    np.testing.assert_allclose(served, reference, rtol=1e-3, atol=2e-5)
    with pytest.raises(BadInput) as caught:
        client.encode_images(shared_images)
    assert caught.value.rows.keys() == block.failures.keys()


def test_bad_rows_are_named_and_refuse_their_request_alone(server: TritonServer) -> None:
    photo = sample_images()["photo.jpg"]
    with pytest.raises(InferenceServerException) as caught:
        infer(server.grpc_url, "tiny-vit-image", "IMAGE", [photo, b"no image", photo, b""])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    rows = json.loads(caught.value.message().partition("bad rows: ")[2])
    assert rows == {"1": "UnidentifiedImageError: cannot identify image file", "3": "0 bytes"}
    with pytest.raises(InferenceServerException, match=r'bad rows: \{"1": "not UTF-8: invalid start byte at byte 0"\}'):
        infer(server.grpc_url, "tiny-vit-text", "TEXT", ["好".encode(), b"\xff"])


def test_batches_at_and_beyond_the_limit(server: TritonServer) -> None:
    result = infer(server.grpc_url, "tiny-vit-text", "TEXT", [b"a"] * MAX_BATCH_SIZE)
    assert result.as_numpy("text_features").shape == (MAX_BATCH_SIZE, 48)
    with pytest.raises(InferenceServerException, match=f"batch-size must be <= {MAX_BATCH_SIZE}"):
        infer(server.grpc_url, "tiny-vit-text", "TEXT", [b"a"] * (MAX_BATCH_SIZE + 1))
    with pytest.raises(InferenceServerException):
        infer(server.grpc_url, "tiny-vit-text", "TEXT", [])


def test_odd_texts_have_defined_results(client: Client) -> None:
    features = client.encode_texts(["a\0b", "ab", "我" * 10_000, "我" * CONTEXT_LENGTH, ""])
    np.testing.assert_allclose(features[0], features[1], atol=1e-6)  # NUL is dropped, as cn_clip does
    np.testing.assert_allclose(features[2], features[3], atol=1e-6)  # what is too long is cut
    assert np.isfinite(features).all()
    with pytest.raises(BadInput) as caught:
        client.encode_texts(["fine", "\ud800"])
    assert list(caught.value.rows) == [1]


def test_more_rows_than_a_batch_in_order(client: Client, folder: Path, tiny_vit: Arch) -> None:
    from cn_clip.clip import tokenize

    texts = [f"第{number}张图片" + "很长" * (number % 25) for number in range(150)]
    tower = load_tower(load_checkpoint(folder / "tiny-vit.random-1.pt", tiny_vit), "text")
    reference = encode(tower, tokenize(texts, context_length=CONTEXT_LENGTH).numpy())
    np.testing.assert_allclose(client.encode_texts(texts, normalize=False), reference, rtol=1e-3, atol=2e-5)


def test_similarity_is_cn_clips(client: Client, folder: Path, tiny_vit: Arch) -> None:
    from PIL import Image

    checkpoint = load_checkpoint(folder / "tiny-vit.random-1.pt", tiny_vit)
    photo = sample_images()["photo.jpg"]
    with Image.open(io.BytesIO(photo)) as image:
        probabilities = client.similarity([photo, image], ["鸟", "一只游隼", "汽车"])
    image_features = encode(load_tower(checkpoint, "image"), cn_clip_pixels(photo, 32)[None])
    from cn_clip.clip import tokenize

    text_features = encode(load_tower(checkpoint, "text"), tokenize(["鸟", "一只游隼", "汽车"]).numpy())
    image_features /= np.linalg.norm(image_features, axis=1, keepdims=True)
    text_features /= np.linalg.norm(text_features, axis=1, keepdims=True)
    logits = checkpoint.logit_scale * image_features @ text_features.T
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(probabilities, np.concatenate([expected, expected]), atol=1e-5)
    assert client.info.logit_scale == pytest.approx(checkpoint.logit_scale)
    assert (client.info.context_length, client.info.precision) == (CONTEXT_LENGTH, "fp32")


def test_both_versions_of_an_encoder_answer(server: TritonServer) -> None:
    ids = grpc.InferInput("text", [1, 3], "INT32")
    ids.set_data_from_numpy(np.array([[101, 2769, 102]], dtype=np.int32))
    with grpc.InferenceServerClient(server.grpc_url) as connection:
        one, two = (
            connection.infer("tiny-vit-text-encoder", [ids], model_version=version).as_numpy("text_features")
            for version in ("1", "2")
        )
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([one, two]), axis=1), 1, atol=1e-5)


def test_versions_that_cannot_share_a_config(repository: Path, folder: Path, tiny_vit: Arch) -> None:
    before = (repository / "manifest.json").read_bytes()
    with pytest.raises(RepositoryError, match="version 1 has context length 40.*under another name"):
        build_repository(request(tiny_vit, folder, version=3, context_length=52))
    assert (repository / "manifest.json").read_bytes() == before


def test_a_folder_that_is_not_ours(tiny_vit: Arch, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    changed = request(tiny_vit, folder)
    with pytest.raises(RepositoryError, match="did not make it"):
        build_repository(type(changed)(**{**vars(changed), "repository": tmp_path}))
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_failed_verification_leaves_the_old_repository(
    repository: Path, folder: Path, tiny_vit: Arch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ParityError("not PyTorch's")

    monkeypatch.setattr("cnclip_builder.build._serve_and_verify", refuse)
    before = {path: path.stat().st_ino for path in repository.rglob("*")}
    with pytest.raises(ParityError):
        build_repository(request(tiny_vit, folder, checkpoint="random:1", version=2, verify=True))
    assert {path: path.stat().st_ino for path in repository.rglob("*")} == before
    assert not list(repository.parent.glob(".*.partial"))
