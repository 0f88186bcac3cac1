"""How far a card's pixels are from exact ones: measured with nvImageCodec on the processor, and with one that is off."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.card import stage
from cnclip_builder.card.distance import measure_card
from cnclip_builder.checkpoint.load import load_checkpoint
from cnclip_builder.checkpoint.towers import encode, load_tower
from cnclip_builder.errors import SettingError
from cnclip_builder.parity.samples import sample_images
from cnclip_card import Card
from cnclip_card._decoder import NvImageCodec
from cnclip_pixels import image_formats

from tests.resize.card_twin import Twin, can_compile, compile_twin

pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed: the extra [gpu-decode] has it")

pytestmark = pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_twin(tmp_path_factory.mktemp("twin"))


class Off:
    """A decoder whose red is a grey level more than it should be, where there is one more."""

    about = "a decoder that is off"

    def decode(self, jpegs: Sequence[bytes], sizes: Sequence[tuple[int, int]]) -> list[Any]:
        pictures = NvImageCodec(None, 1).decode(jpegs, sizes)
        for picture in pictures:
            if picture is not None:
                pixels: Any = np.asarray(picture.owner)
                pixels[..., 0] = np.minimum(pixels[..., 0], 254) + 1
        return pictures


@pytest.mark.parametrize("decoder", [NvImageCodec(None, 1), Off()], ids=["equal", "off"])
def test_what_is_measured(library: Path, tiny_vit: Arch, tiny_artefacts: Artefacts, decoder: Any) -> None:
    side = tiny_vit.resolution
    card = Card(Twin(library), decoder, side=side, formats=image_formats(), memory=1 << 30)
    tower = load_tower(load_checkpoint(tiny_artefacts.checkpoint.file.path, tiny_vit), "image")
    images = {**sample_images(), "no image": b"?"}
    found = measure_card(card, images, side, lambda image: encode(tower, image))
    assert found.images == len(images) - 1
    assert found.exact_share == pytest.approx(1 - 4 / found.images), "four of them are JPEGs in RGB or grey"
    assert found.decoded_by == card.about
    features = found.features
    if decoder.about.startswith("nvImageCodec"):
        assert (found.largest_pixel_difference, found.mean_pixel_difference) == (0, 0)
        assert features.cosine_distance == features.centred_distance == features.absolute_difference == 0
        return
    assert 1 <= found.largest_pixel_difference <= 2
    assert 0.3 < found.mean_pixel_difference < 0.4
    assert 1e-9 < features.cosine_distance < 1e-3
    assert features.cosine_distance < features.centred_distance < 0.1
    assert found.as_dict()["features"]["rows"] == found.images


def test_nothing_to_measure(library: Path) -> None:
    card = Card(Twin(library), NvImageCodec(None, 1), side=32, formats=image_formats(), memory=1 << 30)
    with pytest.raises(SettingError, match="none of the images to compare can be decoded: name a folder of pictures"):
        measure_card(card, {"no image": b"?"}, 32, lambda image: image)


def test_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    for folder in (empty, tmp_path / "deep"):
        folder.mkdir()
    for name in ("b.jpg", "a.jpg", "deep/c.jpg"):
        (tmp_path / name).write_text(name)
    assert stage.images_in(tmp_path) == [tmp_path / name for name in ("a.jpg", "b.jpg", "deep/c.jpg")]
    monkeypatch.setattr(stage, "MOST_IMAGES", 2)
    assert stage.images_in(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    with pytest.raises(SettingError, match="holds no files: name a folder of images"):
        stage.images_in(empty)


def test_no_card_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    why = stage.why_no_card()
    assert why.startswith("images can't be decoded on a GPU here: cuda-core is not installed")
    assert why.endswith("or build the repository with --preprocess exact")
    assert "\n" not in why
