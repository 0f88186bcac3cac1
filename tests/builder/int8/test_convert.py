"""INT8 encoders from a tiny checkpoint: what passes, what is refused and why, what is reused, what is said of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts, build_artefacts
from cnclip_builder.build import BuildRequest, _report_slower, build_repository
from cnclip_builder.errors import ParityError, SettingError, SlowerError
from cnclip_builder.int8.convert import _keep_as_few_as_hold, convert_to_int8
from cnclip_builder.parity.distance import TOLERANCES, Parity, Tolerance
from cnclip_builder.preview import preview_build
from cnclip_builder.repository.entry import RepositoryEntry
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.write import add_version
from cnclip_builder.tensors import TOWERS, Tower

SERVING = ServingConfig(target="cpu", precision="int8", context_length=52, max_batch_size=4)


@pytest.fixture(scope="module")
def root(tiny_artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint, and its FP32 and FP16 artefacts in `artefacts/tiny-vit`."""
    root = tmp_path_factory.mktemp("int8")
    shutil.copytree(tiny_artefacts.items[0].path.parent, root / "artefacts" / "tiny-vit")
    shutil.copy(tiny_artefacts.checkpoint.file.path, root)
    return root


@pytest.fixture(scope="module")
def int8(tiny_vit: Arch, root: Path) -> Artefacts:
    return build(tiny_vit, root)


def build(arch: Arch, root: Path, **options: Any) -> Artefacts:
    options = {"precisions": ["int8"], "least_int8_speed_up": 0, **options}
    return build_artefacts(
        arch, "random:0", root / "artefacts" / "tiny-vit", towers=TOWERS, download_root=root, **options
    )


@pytest.mark.parametrize("tower", TOWERS)
def test_within_the_tolerance(int8: Artefacts, tower: Tower) -> None:
    artefact = int8.get(tower, "int8")
    assert artefact.path.name == f"tiny-vit.{'img' if tower == 'image' else 'txt'}.int8.onnx"
    report = artefact.record.int8
    assert report is not None
    for parity in (artefact.record.parity, report.parity):
        assert 1e-9 < parity.cosine_distance <= TOLERANCES["int8"].cosine_distance
        assert 1e-9 < parity.centred_distance <= TOLERANCES["int8"].centred_distance
    operators = [node.op_type for node in onnx.load(artefact.path, load_external_data=False).graph.node]
    assert operators.count("MatMulIntegerToFloat") == report.products - len(report.kept_in_fp32) > 0


def test_a_second_build_reuses_it_unless_more_speed_is_asked_for(
    int8: Artefacts, root: Path, tiny_vit: Arch, builder_log: pytest.LogCaptureFixture
) -> None:
    folder = root / "artefacts" / "tiny-vit"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert all(item.reused for item in build(tiny_vit, root).items)
    assert "Reusing tiny-vit.img.int8.onnx" in builder_log.text
    faster = build(tiny_vit, root, least_int8_speed_up=1000)
    assert not faster.items
    assert set(faster.slower) == set(TOWERS)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_same_bytes_every_time(int8: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    artefact = int8.get("text", "int8")
    first, again = artefact.path, tmp_path / artefact.name
    convert_to_int8(replace(artefact, precision="fp32"), again, least_speed_up=0)
    for name in (first.name, first.name + ".extra_file"):
        assert (tmp_path / name).read_bytes() == first.with_name(name).read_bytes()


def test_products_stay_in_fp32_until_the_tolerance_holds(int8: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    fp32 = replace(int8.get("image", "int8"), precision="fp32")

    def convert(tolerance: Tolerance) -> Any:
        return convert_to_int8(fp32, tmp_path / "x.int8.onnx", least_speed_up=0, tolerance=tolerance)

    loose = convert(Tolerance(1, 2))
    strict = convert(Tolerance(1, loose.parity.centred_distance / 2))
    assert not loose.kept_in_fp32
    assert 0 < len(strict.kept_in_fp32) < strict.products
    assert strict.parity.centred_distance <= loose.parity.centred_distance / 2
    with pytest.raises(ParityError) as refusal:
        convert(Tolerance(1, 1e-9))
    assert f"{loose.parity.centred_distance:.2e} after centring (at most 1e-09)" in str(refusal.value)
    assert str(refusal.value).endswith("choose PRECISION=fp32")


@pytest.mark.parametrize("needed", range(10))
def test_no_more_is_kept_than_must_be(needed: int) -> None:
    def parity_with(kept: tuple[str, ...]) -> Parity:
        return Parity(1, 0, 0 if len(kept) >= needed else 1, 0, 0)

    kept, parity = _keep_as_few_as_hold(list("abcdefghij"), parity_with, Tolerance(0.5, 0.5), "x")
    assert "".join(kept) == "abcdefghij"[:needed]
    assert parity.centred_distance == 0


def test_a_slow_encoder_is_refused_with_its_figure(int8: Artefacts, tiny_vit: Arch, tmp_path: Path) -> None:
    fp32 = replace(int8.get("text", "int8"), precision="fp32")
    with pytest.raises(
        SlowerError, match=r"x\.int8\.onnx runs at \d+\.\d\d times FP32's speed on this machine \(at le"
    ):
        convert_to_int8(fp32, tmp_path / "x.int8.onnx", least_speed_up=1000)


def test_one_slow_encoder_is_a_warning_and_two_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    _report_slower({"image": "x.img.int8.onnx runs at 0.9 times"})
    assert caplog.messages == ["The image encoder is served in FP32: x.img.int8.onnx runs at 0.9 times"]
    with pytest.raises(SlowerError, match=r"^img: 0\.9; txt: 1; or choose PRECISION=fp32$"):
        _report_slower({"image": "img: 0.9", "text": "txt: 1"})


def test_one_slow_encoder_is_served_in_fp32_and_the_repository_says_so(
    int8: Artefacts, root: Path, tiny_vit: Arch, tmp_path: Path
) -> None:
    fp32 = build(tiny_vit, root, precisions=["fp32"])
    mixed = Artefacts(int8.checkpoint, (fp32.get("image", "fp32"), int8.get("text", "int8")), {"image": "too slow"})
    entry = RepositoryEntry("tiny", 1, tiny_vit, mixed, SERVING)
    assert entry.precision == "image fp32, text int8"
    add_version(entry, tmp_path / "repository")
    record = json.loads((tmp_path / "repository" / "manifest.json").read_text())["models"]["tiny"]["1"]
    assert record["served_precision"] == {"image": "fp32", "text": "int8"}
    assert record["not_in_int8"] == {"image": "too slow"}
    assert record["artefacts"]["tiny-vit.txt.int8.onnx"]["int8"]["products"] > 0
    for tower, precision, quantised in (("image", "fp32", False), ("text", "int8", True)):
        config = (tmp_path / "repository" / f"tiny-{tower}" / "config.pbtxt").read_text()
        assert f'key: "precision" value {{ string_value: "{precision}" }}' in " ".join(config.split())
        served = onnx.load(
            tmp_path / "repository" / f"tiny-{tower}-encoder" / "1" / "model.onnx", load_external_data=False
        )
        assert any(node.op_type == "MatMulIntegerToFloat" for node in served.graph.node) == quantised


@pytest.mark.triton
def test_served_and_verified(int8: Artefacts, root: Path, tiny_vit: Arch, tmp_path: Path) -> None:
    request = BuildRequest(
        *(tiny_vit, "random:0", SERVING, tmp_path / "repository", root / "artefacts", root),
        verify=True,
        least_int8_speed_up=0,
    )
    assert build_repository(request).precision == "int8"
    from cnclip_client import Client
    from cnclip_server import TritonServer

    with TritonServer(tmp_path / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        with Client(server.grpc_url, model="tiny-vit") as client:
            assert client.info.precision == "int8"
    record = json.loads((tmp_path / "repository" / "manifest.json").read_text())["models"]["tiny-vit"]["1"]
    for parity in record["live_parity"].values():
        assert 1e-9 < parity["centred_distance"] <= TOLERANCES["int8"].centred_distance


def test_not_on_a_gpu() -> None:
    with pytest.raises(SettingError, match="INT8 is for CPUs: choose PRECISION=fp16 on a GPU"):
        ServingConfig(target="gpu", precision="int8", context_length=52, max_batch_size=4)


def test_not_for_texts_that_it_is_not_proved_on(tiny_vit: Arch, tmp_path: Path) -> None:
    """With 512 tokens a text's features were off by 0.2, and no check of a build had a text of more than 52."""
    request = BuildRequest(
        arch=tiny_vit,
        checkpoint="random:0",
        serving=replace(SERVING, context_length=53),
        repository=tmp_path / "repository",
        artefacts=tmp_path / "artefacts",
        download_root=tmp_path,
    )
    for begin in (build_repository, preview_build):
        with pytest.raises(SettingError, match="context_length is 53: INT8 is fitted to texts of 52 tokens at most"):
            begin(request)
