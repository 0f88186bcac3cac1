"""The ONNX artefacts, made from tiny checkpoints: names, tensors, parity, reuse, and what a failure leaves."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cn_clip.clip as clip
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cn_clip.clip.model import CLIP
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.artefacts import maker
from cnclip_builder.artefacts.maker import Artefacts, build_artefacts
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.errors import CheckpointError, MissingRequirementError, ParityError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.served import write_served_encoder
from cnclip_builder.export.stage import finish_artefact
from cnclip_builder.parity.distance import measure_parity
from cnclip_builder.system.isolation import StageProcess
from cnclip_builder.tensors import ALL_PRECISIONS, PRECISIONS, TOWERS, Tower

from tests.conftest import TINY_VIT


def build(arch: Arch, folder: Path, root: Path, **options: Any) -> Artefacts:
    options = {"towers": TOWERS, "precisions": PRECISIONS, **options}
    return build_artefacts(arch, "random:0", folder, download_root=root, **options)


@pytest.fixture(scope="module")
def root(tiny_artefacts: Artefacts) -> Path:
    """Where the checkpoint is."""
    return tiny_artefacts.checkpoint.file.path.parent


@pytest.fixture
def artefacts(tiny_artefacts: Artefacts, tmp_path: Path) -> Path:
    """A copy of the artefacts elsewhere, so that every test also tests that the folder can be moved."""
    folder = tmp_path / "moved"
    folder.mkdir()
    for item in tiny_artefacts.items:  # and not what other tests have made beside them
        for name in (*item.record.files, item.sidecar.name):
            shutil.copy(item.path.with_name(name), folder)
    return folder


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_names_as_cn_clip_gives_them(artefacts: Path) -> None:
    stems = [f"tiny-vit.{tower}.{precision}" for tower in ("img", "txt") for precision in ("fp32", "fp16")]
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".onnx", ".onnx.extra_file", ".json")}
    assert {path.name for path in artefacts.iterdir()} == expected | {
        "tiny-vit.img.reference.npy",
        "tiny-vit.txt.reference.npy",
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_way_chinese_clips_deployment_page_runs_them(
    artefacts: Path, tiny_vit: Arch, root: Path, precision: str
) -> None:
    texts = ["杰尼龟", "妙蛙种子", "小火龙", "皮卡丘"]
    ids = clip.tokenize(texts, context_length=52)
    text_session = session(artefacts / f"tiny-vit.txt.{precision}.onnx")
    one_by_one = [text_session.run(["unnorm_text_features"], {"text": row[None].numpy()})[0] for row in ids]
    together = text_session.run(["unnorm_text_features"], {"text": ids.numpy()})[0]
    short = text_session.run(["unnorm_text_features"], {"text": ids.numpy()[:, :8]})[0]
    checkpoint = load_checkpoint(root / "tiny-vit.random-0.pt", tiny_vit)
    reference = encode(load_tower(checkpoint, "text"), ids.numpy())
    limit = 1e-6 if precision == "fp32" else 1e-3
    for features in (np.concatenate(one_by_one), together, short):
        assert measure_parity(features, reference).cosine_distance <= limit
    image = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    features = session(artefacts / f"tiny-vit.img.{precision}.onnx").run(["unnorm_image_features"], {"image": image})[0]
    assert measure_parity(features, encode(load_tower(checkpoint, "image"), image)).cosine_distance <= limit


def test_no_path_of_the_building_machine(artefacts: Path) -> None:
    for path in artefacts.glob("*.onnx"):
        text = path.read_bytes()
        assert b"site-packages" not in text
        assert b"/cnclip_builder/" not in text
        locations = {
            entry.value
            for tensor in onnx.load(path, load_external_data=False).graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert locations == {path.name + ".extra_file"}


def test_a_second_build_reuses_everything_and_says_so(
    artefacts: Path, tiny_vit: Arch, root: Path, builder_log: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in artefacts.iterdir()}
    again = build(tiny_vit, artefacts, root)
    assert all(item.reused for item in again.items)
    assert builder_log.text.count("Reusing tiny-vit.") == 4
    assert {path: path.stat().st_mtime_ns for path in artefacts.iterdir()} == before


def test_only_what_is_damaged_is_made_again(artefacts: Path, tiny_vit: Arch, root: Path) -> None:
    (artefacts / "tiny-vit.txt.fp16.onnx.extra_file").write_bytes(b"cut short")
    (artefacts / "tiny-vit.img.fp16.json").write_text("[" * 100_000)
    again = build(tiny_vit, artefacts, root)
    assert [item.reused for item in again.items] == [True, False, True, False]


def test_another_checkpoint_is_not_reused(artefacts: Path, tiny_vit: Arch, root: Path) -> None:
    again = build_artefacts(tiny_vit, "random:1", artefacts, towers=["text"], precisions=["fp32"], download_root=root)
    assert [(item.tower, item.precision, item.reused) for item in again.items] == [("text", "fp32", False)]
    record = json.loads((artefacts / "tiny-vit.txt.fp32.json").read_text())
    assert record["fingerprint"]["checkpoint_sha256"] == again.checkpoint.sha256
    assert record["parity"]["cosine_distance"] < 1e-6


def test_a_full_disk_leaves_nothing_half_made(
    artefacts: Path, tiny_vit: Arch, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cnclip_builder.artefacts.maker._make", full)
    before = {path.name: path.read_bytes() for path in artefacts.iterdir()}
    with pytest.raises(MissingRequirementError, match="no space left"):
        build_artefacts(tiny_vit, "random:2", artefacts, towers=TOWERS, precisions=PRECISIONS, download_root=root)
    assert {path.name: path.read_bytes() for path in artefacts.iterdir()} == before


def test_a_disk_known_to_be_too_small(
    tmp_path: Path, tiny_vit: Arch, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(MissingRequirementError, match="of disk for the ONNX files and [0-9,]+ MB are free"):
        build(tiny_vit, tmp_path / "new", root)
    assert not (tmp_path / "new").exists()


def test_a_wrong_artefact_is_refused(artefacts: Path, tiny_vit: Arch, tmp_path: Path) -> None:
    text = Artefact(tiny_vit, "text", "fp32", artefacts)
    np.save(text.reference, np.load(text.reference)[::-1])
    with pytest.raises(ParityError, match=r"tiny-vit\.txt\.fp32\.onnx at batch 8: row"):
        finish_artefact(text, text)
    with pytest.raises(ParityError, match=r"tensors \['text'\] instead of \['image'\]"):
        shutil.copy(text.path, (image := replace(text, tower="image", folder=tmp_path)).path)
        shutil.copy(text.weights, tmp_path)  # under the name that the graph knows
        shutil.copy(text.reference, image.reference)
        finish_artefact(image, image)


def test_served_encoders_scale_normalise_and_widen_inside(artefacts: Path, tiny_vit: Arch, tmp_path: Path) -> None:
    for tower in TOWERS:
        folder = tmp_path / tower
        folder.mkdir()
        served = session(write_served_encoder(Artefact(tiny_vit, tower, "fp32", artefacts), folder))
        plain = session(Artefact(tiny_vit, tower, "fp32", artefacts).path)
        rng = np.random.default_rng(1)
        if tower == "image":
            from cnclip_builder.parity.probes import normalise

            pixels = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
            inputs, original = {"pixels": pixels}, {"image": normalise(pixels)}
        else:
            ids = rng.integers(100, 8000, (3, 20), dtype=np.int32)
            inputs, original = {"text": ids}, {"text": ids.astype(np.int64)}
        raw, unit = served.run([f"unnorm_{tower}_features", f"{tower}_features"], inputs)
        np.testing.assert_allclose(raw, plain.run(None, original)[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_resnet(tiny_resnet: Arch, resnet_checkpoint: Path, tmp_path: Path) -> None:
    artefacts = build_artefacts(
        tiny_resnet,
        str(resnet_checkpoint),
        tmp_path / "rn",
        towers=["image"],
        precisions=PRECISIONS,
        download_root=tmp_path,
    )
    assert [(item.tower, item.precision) for item in artefacts.items] == [("image", "fp32"), ("image", "fp16")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["RN50", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"])
def test_every_official_arch(name: str, tmp_path: Path) -> None:
    artefacts = build(get_arch(name), tmp_path / "artefacts", tmp_path)
    assert len(artefacts.items) == 4


@pytest.mark.parametrize("threads", [0, 1])
def test_artefacts_are_the_same_side_by_side_and_one_after_the_other(
    tiny_vit: Arch, tiny_artefacts: Artefacts, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    asked = []

    def threads_of_each(*encoders: int) -> int:
        asked.append(encoders)
        return threads

    monkeypatch.setattr(maker, "threads_of_each", threads_of_each)
    made = build(tiny_vit, tmp_path, root)
    assert asked == [(2, sum(made.checkpoint.fp32_bytes.values()))]
    assert [(item.tower, item.precision) for item in made.items] == [(t, p) for t in TOWERS for p in PRECISIONS]
    for item in made.items:
        assert item.path.read_bytes() == tiny_artefacts.get(item.tower, item.precision).path.read_bytes()


def test_what_is_missing_alone_is_made(
    tiny_vit: Arch, root: Path, tiny_artefacts: Artefacts, artefacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads_of_each(encoders: int, fp32_bytes: int) -> int:
        assert (encoders, fp32_bytes) == (1, tiny_artefacts.checkpoint.fp32_bytes["text"])
        return 0

    monkeypatch.setattr(maker, "threads_of_each", threads_of_each)
    lost = artefacts / "tiny-vit.txt.fp16.onnx"
    before = lost.read_bytes()
    lost.unlink()
    made = build(tiny_vit, artefacts, root)
    assert [item.reused for item in made.items] == [True, True, True, False]
    assert lost.read_bytes() == before


def loud(arch: Arch, path: Path) -> Path:
    """A checkpoint whose text encoder's inner numbers are beyond FP16's range, and whose features are not."""
    torch.manual_seed(3)
    weights = CLIP(**arch.model_info).state_dict()
    last = "bert.encoder.layer.1.output.dense.weight"
    weights[last] = weights[last].sign() * 3e4
    torch.save({"state_dict": weights}, path)
    return path


def test_fp16_that_does_not_hold_is_left_out_where_nothing_needs_it(
    tiny_vit: Arch, artefacts: Path, tmp_path: Path, builder_log: pytest.LogCaptureFixture
) -> None:
    """That of another checkpoint, which is there, does not stay for it."""
    source = str(loud(tiny_vit, tmp_path / "loud.pt"))
    place = {"towers": TOWERS, "precisions": PRECISIONS, "download_root": tmp_path}
    with pytest.raises(ParityError, match=r"tiny-vit\.txt\.fp16\.onnx at batch 8: row"):
        build_artefacts(tiny_vit, source, artefacts, **place)  # type: ignore[arg-type]
    made = build_artefacts(tiny_vit, source, artefacts, fp16_may_fail=True, **place)  # type: ignore[arg-type]
    kinds = [(item.tower, item.precision) for item in made.items]
    assert kinds == [("image", "fp32"), ("image", "fp16"), ("text", "fp32")]
    assert "Leaving tiny-vit.txt.fp16.onnx out, which nothing here needs: " in builder_log.text
    assert not list(artefacts.glob("tiny-vit.txt.fp16.*"))


def test_a_checkpoint_that_changes_meanwhile_is_not_built_from(
    tiny_vit: Arch, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on writes its next epoch: the text encoder would be of another than the image encoder."""
    source = Path(shutil.copy(root / "tiny-vit.random-0.pt", tmp_path / "epoch_latest.pt"))
    run = StageProcess.run

    def train_on(process: StageProcess, function: Any, *arguments: Any) -> Any:
        result = run(process, function, *arguments)
        if function is maker.export_to_onnx:
            weights = torch.load(source)["state_dict"]
            torch.save({"state_dict": {name: value + 1 for name, value in weights.items()}}, source)
        return result

    monkeypatch.setattr(StageProcess, "run", train_on)
    with pytest.raises(CheckpointError, match=r"epoch_latest\.pt was changed while it was built from: copy it"):
        build_artefacts(
            tiny_vit, str(source), tmp_path / "a", towers=["image"], precisions=["fp32"], download_root=tmp_path
        )
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize(
    ("tower", "name", "number", "complaint"),
    [
        ("text", "text_projection", 0.0, "its text features are zero in PyTorch itself: take"),
        (
            "image",
            "visual.transformer.resblocks.0.mlp.c_fc.weight",
            7e4,
            r"its image features are NaN or infinite in PyTorch itself; cn_clip rounds weights to FP16, and numbers of "
            r"visual\.transformer\.resblocks\.0\.mlp\.c_fc\.weight are beyond it: take",
        ),
    ],
)
def test_a_checkpoint_without_features(
    tiny_vit: Arch, root: Path, tmp_path: Path, tower: Tower, name: str, number: float, complaint: str
) -> None:
    weights = torch.load(root / "tiny-vit.random-0.pt")["state_dict"]
    weights[f"module.{name}"].fill_(number)
    torch.save({"state_dict": weights}, path := tmp_path / "astray.pt")
    with pytest.raises(CheckpointError, match=complaint):
        build_artefacts(
            tiny_vit, str(path), tmp_path / "a", towers=[tower], precisions=["fp32"], download_root=tmp_path
        )


def test_texts_shorter_than_cn_clips(tmp_path: Path) -> None:
    """A model with fewer than 52 position embeddings is proved on texts that it takes, in INT8 too."""
    (tmp_path / "short.json").write_text(json.dumps({**TINY_VIT, "text_max_position_embeddings": 20}))
    arch = get_arch(str(tmp_path / "short.json"))
    assert arch.default_context_length == 20
    made = build_artefacts(
        arch,
        "random:0",
        tmp_path / "a",
        towers=["text"],
        precisions=ALL_PRECISIONS,
        download_root=tmp_path,
        least_int8_speed_up=0,
    )
    assert [item.precision for item in made.items] == list(ALL_PRECISIONS)


def test_a_failed_export_beside_another_is_told(
    tiny_artefacts: Artefacts, tiny_vit: Arch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "threads_of_each", lambda *_: 1)
    facts = tiny_artefacts.checkpoint
    absent = replace(facts, file=replace(facts.file, path=tmp_path / "absent.pt"))
    run = StageProcess.run

    def run_all_but_opening(process: StageProcess, function: Any, *arguments: Any) -> Any:
        return absent if function is maker.open_checkpoint else run(process, function, *arguments)

    monkeypatch.setattr(StageProcess, "run", run_all_but_opening)
    with pytest.raises((CheckpointError, OSError), match=r"absent\.pt"):
        build(tiny_vit, tmp_path / "artefacts", tmp_path)
    assert not list((tmp_path / "artefacts").iterdir())
