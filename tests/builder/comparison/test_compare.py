"""Two sides of every kind, on real pictures and captions: what is found, left out and refused."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.cli.app import app
from cnclip_builder.comparison import compare, local
from cnclip_builder.comparison.compare import Comparison, compare_features
from cnclip_builder.comparison.inputs import open_inputs
from cnclip_builder.comparison.page import comparison_page
from cnclip_builder.comparison.sides import Named, open_side
from cnclip_builder.errors import BuildError, CheckpointError, RepositoryError, SettingError
from cnclip_server import TritonServer
from typer.testing import CliRunner

from tests.conftest import DEMO, TINY_VIT

DEMO_ARCH = get_arch(str(DEMO / "demo.json"))
PAIRS = DEMO / "captions.tsv"


def named(name: str | Path, arch: Arch | None = None, folder: Path = Path("absent"), **changes: Any) -> Named:
    return Named(str(name), arch and arch.option, changes.pop("context_length", 52), folder, "huggingface", **changes)


def demo() -> Named:
    return named(DEMO / "clip_cn_demo.pt", DEMO_ARCH)


def worst(comparison: Comparison) -> dict[str, float]:
    return {tower: float(found.cosine.max()) for tower, found in comparison.distances.items()}


def test_a_trained_checkpoint_against_an_untrained_one(tmp_path: Path) -> None:
    found = compare_features(demo(), named("random:0", DEMO_ARCH, tmp_path), open_inputs(None, None, PAIRS))
    assert found.rows == {"image": 6, "text": 6}
    assert min(float(one.centred.min()) for one in found.distances.values() if one.centred is not None) > 0.3
    by_demo, by_chance = found.retrieval["text-to-image"].recall_a, found.retrieval["text-to-image"].recall_b
    assert by_demo is not None
    assert by_chance is not None
    assert by_demo.r1 == 1 > by_chance.r1
    assert any("different checkpoints" in str(note) for note in found.notes)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-9), ("fp16", 1e-4)])
def test_a_checkpoint_against_its_onnx_files(demo_artefacts: Path, precision: str, most: float) -> None:
    found = compare_features(demo(), named(f"{demo_artefacts}:{precision}"), open_inputs(None, None, PAIRS))
    assert found.a.checkpoint_sha256 == found.b.checkpoint_sha256
    assert (found.b.kind, found.b.precision, found.b.arch, found.notes) == ("onnx", precision, "demo", [])
    assert 0 < max(worst(found).values()) < most
    assert {direction: one.same_first for direction, one in found.retrieval.items()} == {
        "text-to-image": 1.0,
        "image-to-text": 1.0,
    }


@pytest.mark.triton
def test_a_server_and_its_repository(demo_server: TritonServer, demo_repository: Path) -> None:
    inputs = open_inputs(None, None, PAIRS)
    served = compare_features(demo(), named(demo_server.grpc_url), inputs)
    assert (served.b.kind, served.b.precision, served.b.context_length) == ("server", "fp32", 52)
    assert max(worst(served).values()) < 1e-9
    both = compare_features(named(f"{demo_server.grpc_url}/demo"), named(f"{demo_repository}#demo"), inputs)
    assert both.b.kind == "repository"
    assert max(worst(both).values()) < 1e-9
    with pytest.raises(BuildError, match="other"):
        compare_features(demo(), named(f"{demo_server.grpc_url}/other"), inputs)


def test_what_can_not_be_read_is_named_and_left_out_of_both(demo_artefacts: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(DEMO / "images", tmp_path / "images"))
    (images / "broken.jpg").write_bytes(b"no image")
    (images / "empty.png").write_bytes(b"")
    (images / "gone.png").symlink_to("nowhere.png")
    found = compare_features(demo(), named(f"{demo_artefacts}:fp32"), open_inputs(str(images), None, None))
    assert found.rows == {"image": 6}
    assert list(found.left_out["image"]) == ["broken.jpg", "empty.png", "gone.png"]
    assert "link" in found.left_out["image"]["gone.png"]
    assert max(worst(found).values()) < 1e-9
    assert (found.retrieval, list(found.distances)) == ({}, ["image"])


@pytest.mark.parametrize("value", [np.inf, 0])
def test_what_one_side_alone_can_not_encode(
    demo_artefacts: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """FP16 overflows where FP32 does not; what is zero has no direction to compare."""
    encode = local.OnnxSide.encode

    def overflowing(side: Any, tower: Any, values: Any) -> Any:
        for block in encode(side, tower, values):
            block.features[block.indices == 2] = value
            yield block

    monkeypatch.setattr(local.OnnxSide, "encode", overflowing)
    found = compare_features(demo(), named(f"{demo_artefacts}:fp32"), open_inputs(None, None, PAIRS))
    assert found.rows == {"image": 5, "text": 5}
    assert list(found.left_out["image"].values()) == ["B: its feature is zero, or holds NaN or infinity"]
    assert list(found.left_out["text"]) == [4]
    assert max(worst(found).values()) < 1e-9  # the others are still compared with their own
    recalled = found.retrieval["text-to-image"].recall_a
    assert recalled is not None
    assert (recalled.queries, recalled.missing) == (6, 1)


def test_features_of_other_lengths_are_not_compared_but_what_they_find_is(tmp_path: Path, tiny_vit: Arch) -> None:
    found = compare_features(demo(), named("random:0", tiny_vit, tmp_path), open_inputs(None, None, PAIRS))
    assert found.a.embedding_size != found.b.embedding_size == TINY_VIT["embed_dim"]
    assert found.distances == {}
    assert found.as_dict()["images"]["distances"] is None
    assert found.retrieval["image-to-text"].recall_b is not None
    assert any("can't be compared as vectors" in str(note) for note in found.notes)
    page = comparison_page(found)
    assert "can't be compared as vectors" in page
    assert f"A 的特征是 {found.a.embedding_size} 维，B 的是 {found.b.embedding_size} 维" in page


def test_pairs_whose_images_are_not_there(demo_artefacts: Path, tmp_path: Path) -> None:
    onnx = named(f"{demo_artefacts}:fp32")
    with pytest.raises(
        SettingError, match=r"such as '\S+', and none of them is among the images, whose ids are such as"
    ):
        compare_features(onnx, onnx, open_inputs(str(DEMO / "images" / "*.png"), None, PAIRS))
    images = Path(shutil.copytree(DEMO / "images", tmp_path / "images"))
    (images / "one-yellow-star-middle-on-black.jpg").unlink()
    found = compare_features(onnx, onnx, open_inputs(str(images), None, PAIRS))
    assert list(map(str, found.notes)) == ["1 of the images that pairs name are not among the images: both miss them."]
    recalled = found.retrieval["text-to-image"].recall_a
    assert recalled is not None
    assert recalled.r10 == pytest.approx(5 / 6)
    assert max(worst(found).values()) == 0


def test_nothing_at_all_could_be_encoded(tmp_path: Path, demo_artefacts: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(BuildError, match=r"no image could be encoded by both; of a\.png, A and B: "):
        compare_features(demo(), named(f"{demo_artefacts}:fp32"), open_inputs(str(tmp_path), None, None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match="there are none"):
        compare_features(demo(), demo(), open_inputs(str(tmp_path / "empty"), None, None))


def test_a_misspelt_b_is_told_before_a_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "_encode_all", lambda *_: pytest.fail("A was encoded first"))
    with pytest.raises(CheckpointError, match=r"no checkpoint at absent\.pt"):
        compare_features(demo(), named("absent.pt", DEMO_ARCH), open_inputs(None, None, PAIRS))


def test_a_source_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = Path(shutil.copytree(DEMO / "images", tmp_path / "images"))
    encode_all = compare._encode_all

    def one_less_each_time(*arguments: Any) -> Any:
        encoded = encode_all(*arguments)
        next(iter(sorted(images.iterdir()))).unlink()
        return encoded

    monkeypatch.setattr(compare, "_encode_all", one_less_each_time)
    with pytest.raises(SettingError, match="the images changed while they were read"):
        compare_features(demo(), demo(), open_inputs(str(images), None, None))


@pytest.mark.parametrize(
    ("name", "error", "complaint"),
    [
        ("absent.pt", CheckpointError, r"no checkpoint at absent\.pt"),
        ("nowhere:fp16", SettingError, "nowhere holds no ONNX files in fp16"),
        ("{artefacts}", SettingError, "say which precision, .*:fp16 or :fp32"),
        ("{artefacts}:int8", SettingError, "holds no ONNX files in int8"),
        ("{repository}#other", SettingError, "serves no other: it has demo"),
        ("localhost:1/demo", BuildError, "localhost:1"),
        ("localhost:123456/demo", SettingError, "'localhost:123456': 123456 is not a port"),
        ("somebody@localhost:1", SettingError, "an address has something before the @ of @localhost:1"),
    ],
)
def test_sides_that_are_none(
    demo_artefacts: Path, demo_repository: Path, name: str, error: type[Exception], complaint: str
) -> None:
    name = name.format(artefacts=demo_artefacts, repository=demo_repository)
    with pytest.raises(error, match=complaint), open_side(named(name)) as side:
        list(side.encode("text", ["猫"]))


def test_a_checkpoint_that_is_none_and_a_repository_that_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint at absent\.pt"), open_side(named("absent.pt", DEMO_ARCH)):
        pass
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RepositoryError, match="is damaged"), open_side(named(tmp_path)):
        pass


def test_onnx_files_of_several_models_in_one_folder(tiny_artefacts: Artefacts, tmp_path: Path) -> None:
    item = tiny_artefacts.get("text", "fp32")
    shutil.copy(item.sidecar, tmp_path)
    with (
        open_side(named(f"{tmp_path}:fp32")) as side,
        pytest.raises(SettingError, match="has no image encoder in fp32"),
    ):
        list(side.encode("image", []))
    record = json.loads(item.sidecar.read_text())
    (tmp_path / "a.fp32.json").write_text(
        json.dumps({**record, "tower": "image", "fingerprint": {"arch": {"name": "a"}}})
    )
    with pytest.raises(SettingError, match="files of more models than"), open_side(named(f"{tmp_path}:fp32")):
        pass
    for text in ("[]", "[" * 100_000):
        (tmp_path / "a.fp32.json").write_text(text)
        with pytest.raises(SettingError, match="is damaged"), open_side(named(f"{tmp_path}:fp32")):
            pass


def test_the_page_needs_nothing_from_elsewhere_and_is_safe(demo_artefacts: Path, tmp_path: Path) -> None:
    images = Path(shutil.copytree(DEMO / "images", tmp_path / "images"))
    (images / "<img src=x onerror=alert(1)>.png").write_bytes(b"no image")
    (images / "<b>&.png").write_bytes((DEMO / "images" / "one-yellow-star-middle-on-black.jpg").read_bytes())
    found = compare_features(demo(), named(f"{demo_artefacts}:fp16"), open_inputs(str(images), None, None), worst=50)
    page = comparison_page(found)

    class Tags(HTMLParser):
        seen: ClassVar[list[str]] = []
        text = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.append(tag)
            assert not {"src", "href", "onerror"} & {name for name, _ in attrs}

        def handle_data(self, data: str) -> None:
            self.text += data

    tags = Tags()
    tags.feed(page)
    assert not {"img", "b", "link"} & set(tags.seen)
    assert tags.seen.count("script") == 1
    assert tags.seen.count("polyline") == 2
    assert "<b>&.png" in tags.text
    assert "onerror=alert(1)" in tags.text


@pytest.mark.parametrize("html", ["old.pt", "./new.pt", "texts.txt"])
def test_the_page_takes_the_place_of_nothing_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, html: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old.pt", "new.pt", "texts.txt"):
        Path(name).write_text("kept")
    done = CliRunner().invoke(app, ["compare-features", "old.pt", "new.pt", "--texts", "texts.txt", "--html", html])
    assert isinstance(done.exception, SettingError)
    assert "would take the place of what is read" in str(done.exception)
    assert Path(html).read_text() == "kept"
