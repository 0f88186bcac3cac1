"""What a live comparison asks of each encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cnclip_builder.checkpoint.sources
import cnclip_builder.prepared
import cnclip_builder.verify
import cnclip_pixels
import numpy as np
import pytest
from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.cli.app import app
from cnclip_builder.errors import BuildError, ParityError, SettingError
from cnclip_builder.parity.distance import TOLERANCES, Parity
from cnclip_builder.prepared import (
    _EDGES,
    Preparation,
    _all_words,
    _first_difference,
    _unpadded,
    compare_preparation,
    tokenize_as_cn_clip,
)
from cnclip_builder.reference import Reference
from cnclip_builder.verify import Verification, _require_same_checkpoint, connected, served_precisions
from cnclip_builder.vocabulary import read_tokens
from cnclip_token_ids import VOCABULARY, TokenIds
from typer.testing import CliRunner

from tests.conftest import DEMO


@pytest.mark.parametrize(
    ("served", "image", "text"),
    [
        ("fp32", "fp32", "fp32"),
        ("fp16", "fp16", "fp16"),
        ("int8", "int8", "int8"),
        ("image fp32, text int8", "fp32", "int8"),
        ("image int8, text fp32", "int8", "fp32"),
    ],
)
def test_what_a_server_says_decides_each_encoders_tolerance(served: str, image: str, text: str) -> None:
    assert served_precisions(served) == {"image": image, "text": text}


@pytest.mark.parametrize("served", ["bf16", "image fp32", "image fp32, text fp4", "text int8, picture int8"])
def test_what_no_builder_said(served: str) -> None:
    with pytest.raises(BuildError, match=r"of its encoders' precision, and this builder knows fp32, fp16, int8"):
        served_precisions(served)


def test_an_fp32_encoder_is_not_let_off_with_its_neighbours_int8() -> None:
    loose = Parity(rows=4, cosine_distance=5e-3, centred_distance=1e-2, absolute_difference=1.0, worst_row=1)
    tolerances = {
        tower: TOLERANCES[precision] for tower, precision in served_precisions("image fp32, text int8").items()
    }
    Verification("mine", tolerances, {"text": loose}).require()
    with pytest.raises(ParityError, match=r"the image features .* \(at most 1e-06 passes\)"):
        Verification("mine", tolerances, {"image": loose, "text": loose}).require()


def test_a_gpus_decoding_has_a_tolerance_of_its_own() -> None:
    near = Parity(rows=4, cosine_distance=1e-4, centred_distance=9e-4, absolute_difference=0.1, worst_row=1)
    far = Parity(rows=4, cosine_distance=1e-4, centred_distance=2e-3, absolute_difference=0.1, worst_row=2)
    Verification("mine", {}, {}, card_decoding=near).require()
    with pytest.raises(
        ParityError, match=r"too far from those of exact pixels: .*2.00e-03 after centring .*--preprocess"
    ):
        Verification("mine", {}, {}, card_decoding=far).require()


def test_what_is_prepared_otherwise_fails_whatever_the_features_say() -> None:
    exact = Parity(rows=4, cosine_distance=0, centred_distance=0, absolute_difference=0, worst_row=0)
    found = Verification("mine", {"text": TOLERANCES["int8"]}, {"text": exact}, preparation=Preparation(15, 360))
    found.require()
    differing = tuple(f"token 2 is 7, not 8 for {text!r}" for text in "abcd")
    with pytest.raises(ParityError, match=r"mine does not .* for 'a'; .* for 'c'; and 1 more: build the repository"):
        replace(found, preparation=Preparation(15, 360, differing)).require()


@pytest.mark.parametrize("context_length", [3, 52, 512])
def test_token_ids_that_are_compared(tiny_vit: Arch, context_length: int) -> None:
    """All that cn_clip can make of a text's words comes up; ours are the same, of what is on either side of each rule."""
    words = list(_all_words(tiny_vit, context_length))
    found = set(tokenize_as_cn_clip(tiny_vit, words, context_length).ravel().tolist())
    tokens = dict(enumerate(read_tokens(VOCABULARY)))
    whole = {row for row, token in tokens.items() if token and token[:2] != "##" and token[0] != "["}
    assert len(found & whole) > len(whole) - 10
    pieces = {row for row, token in tokens.items() if token[:2] == "##" and not "一" <= token[2:3] <= "鿿"}
    # Behind an x some make a longer one with it, or with each other; three tokens have no room for any.
    assert len(found & pieces) > 1600 or context_length == 3
    ours = TokenIds(VOCABULARY, context_length)
    for text, ids in zip(_EDGES, tokenize_as_cn_clip(tiny_vit, _EDGES, context_length), strict=True):
        assert _first_difference(ours.encode(text), _unpadded(ids)) == ""
    assert _first_difference([101, 5, 102], [101, 5]) == "3 is 102, not missing"


def test_half_precision_keeps_the_ranking() -> None:
    """What FP16 was seen to cost official architectures is 2e-4; INT8 may cost 2e-2."""
    assert TOLERANCES["fp32"].centred_distance < TOLERANCES["fp16"].centred_distance == 5e-3
    assert TOLERANCES["fp16"].centred_distance < TOLERANCES["int8"].centred_distance


def test_an_address_that_is_none_is_told_as_an_option() -> None:
    with pytest.raises(SettingError, match="'localhost' has no port; write host:8001"), connected("localhost", "demo"):
        pass


def test_of_encoders_alone_what_a_client_prepares_is_compared(tiny_vit: Arch, monkeypatch: pytest.MonkeyPatch) -> None:
    info = SimpleNamespace(
        model="tiny",
        version="1",
        decoding="exact",
        resolution=tiny_vit.resolution,
        image_formats="",
        context_length=12,
        text_lengths=(8, 12),
        max_batch_size=64,
    )
    client: Any = SimpleNamespace(info=info, info_of=lambda tower: info)
    monkeypatch.setattr(cnclip_builder.prepared, "_first_step", lambda *_: None)
    picture = next((DEMO / "images").glob("*.jpg")).read_bytes()

    def compared() -> Preparation:
        return compare_preparation("localhost:1", client, tiny_vit, {"a.jpg": picture}, ["杰尼龟"])

    found = compared()
    assert (found.images, found.differing, found.by_client) == (1, (), True)
    assert found.texts > 1000  # all words, in texts of 12 tokens
    decode = cnclip_pixels.decode_pixels
    monkeypatch.setattr(cnclip_pixels, "decode_pixels", lambda *a, **k: decode(*a, **k) ^ np.uint8(1))
    monkeypatch.setattr(TokenIds, "encode", lambda self, text, encode=TokenIds.encode: encode(self, text)[::-1])
    wrong = compared()
    assert len(wrong.differing) == wrong.images + wrong.texts == 1 + found.texts
    with pytest.raises(
        ParityError, match=r"this machine's client .* pixel values of a.jpg differ, by up to 1; token 1"
    ):
        wrong.require("tiny")


def test_another_checkpoint_and_another_logit_scale_are_told() -> None:
    checkpoint: Any = SimpleNamespace(sha256="a" * 64, logit_scale=14.2857, path="mine.pt")
    info = SimpleNamespace(checkpoint_sha256="a" * 64, logit_scale=float(np.float32(14.2857)))
    _require_same_checkpoint("tiny", info, checkpoint)
    info.logit_scale *= 1 + 5e-6
    with pytest.raises(ParityError, match="tiny serves logit_scale 14.2857.*, the checkpoint has 14.2857"):
        _require_same_checkpoint("tiny", info, checkpoint)
    info.checkpoint_sha256 = "b" * 64
    with pytest.raises(BuildError, match=r"served from a checkpoint with sha256 b{12}…, but mine.pt has a{12}…"):
        _require_same_checkpoint("tiny", info, checkpoint)


def test_pytorchs_features_are_computed_once(tiny_artefacts: Artefacts, tiny_vit: Arch) -> None:
    reference = Reference(tiny_artefacts.checkpoint.file.path, tiny_vit, texts=["一", "二"])
    found = reference.text_features(52)
    assert found.shape == (2, 48)
    assert reference.text_features(52) is found
    assert reference.text_features(24) is not found
    assert reference.image_features() is reference.image_features()
    assert len(Reference(Path("unread.pt"), tiny_vit).texts(77)[-1]) == 77
    assert reference.image_features(reduced=True) is not reference.image_features()


def test_of_several_servers_each_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is away, and one that is wrong, keep no other from being looked at."""
    exact = Parity(rows=4, cosine_distance=0, centred_distance=0, absolute_difference=0, worst_row=0)
    asked: list[str] = []
    references: list[Reference] = []

    def require_served(url: str, *_: Any) -> None:
        if url == "away:1":
            raise BuildError("no Triton server answers")

    def verify_server(url: str, model: str, reference: Reference) -> Verification:
        asked.append(url)
        references.append(reference)
        parity = replace(exact, cosine_distance=0.5) if url == "wrong:1" else exact
        return Verification("demo", {"text": TOLERANCES["fp32"]}, {"text": parity})

    monkeypatch.setattr(cnclip_builder.verify, "require_served", require_served)
    monkeypatch.setattr(cnclip_builder.verify, "verify_server", verify_server)
    monkeypatch.setattr(
        cnclip_builder.checkpoint.sources, "fetch_checkpoint", lambda *_: SimpleNamespace(path=tmp_path)
    )

    def verify(url: str) -> Any:
        return CliRunner().invoke(app, ["verify", "--arch", "RN50", "--url", url])

    done = verify("away:1, wrong:1,right:1,right:1")
    assert asked == ["wrong:1", "right:1"]
    assert references[0] is references[1]
    assert [line for line in done.stdout.splitlines() if line.endswith(":")] == ["wrong:1:", "right:1:"]
    assert isinstance(done.exception, BuildError)
    told = str(done.exception)
    assert told.startswith("2 of 3 servers can't be trusted: away:1: no Triton server answers; wrong:1: the text feat")
    assert verify("right:1,right:2").exit_code == 0
    alone = verify("wrong:1")
    assert isinstance(alone.exception, ParityError)
    assert str(alone.exception).startswith("the text features")
    for refused in (verify("right:1,right"), verify(",")):
        assert isinstance(refused.exception, SettingError)
