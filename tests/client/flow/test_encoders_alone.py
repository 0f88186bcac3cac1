"""A server of encoders alone: what the client does for it, and what it says where it cannot."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cnclip_client import (
    BadFile,
    Client,
    CnclipError,
    Limits,
    MissingExtra,
    ModelChanged,
    ModelNotFound,
    ModelNotReady,
    served_models,
)
from cnclip_pixels import decode_pixels
from cnclip_token_ids import VOCABULARY, TokenIds
from PIL import Image

SIDE = 32
TOKEN_IDS = TokenIds(VOCABULARY, 52, (40, 52))
LONG = "我" * 45
TEXTS = ["", "皮卡丘 pikachu", "“引号”ＡＢＣ", "a" * 300, "é\u0301가\u302e ẞ", LONG, "我" * 100, "[SEP] [PAD] ##a"]


def picture(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((50, 40)).point(lambda grey: (grey + colour) % 256).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def alone(serve: Callable[..., Any], fake: Any) -> Any:
    """A server of both encoders of `vit-b-16`, and nothing else."""
    return serve(fake.image_encoder("vit-b-16", SIDE), fake.text_encoder("vit-b-16"))


def connect(triton: Any, **options: Any) -> Client:
    return Client(triton.url, model="vit-b-16", limits=Limits(preparers=1), **options)


def ids_of(texts: list[str], token_ids: TokenIds = TOKEN_IDS) -> list[bytes]:
    """What an encoder gets of texts that travel together."""
    padded = token_ids.pad([token_ids.encode(text) for text in texts])
    assert padded.dtype == np.int32
    return [row.tobytes() for row in padded]


@pytest.mark.parametrize("prepare", ["client", "auto"])
def test_images_and_texts_are_prepared_here(alone: Any, fake: Any, prepare: str) -> None:
    images = [picture(number) for number in range(5)]
    with connect(alone, prepare=prepare) as client:
        assert client.prepares_itself is None
        found = client.encode_images(images, normalize=False)
        assert client.prepares_itself is (True if prepare == "auto" else None)
        texts = client.encode_texts(["我", "皮卡丘"], normalize=False)
        assert client.similarity(images[:1], ["我"]).shape == (1, 1)
        client.require_unchanged()
        assert (client.info.resolution, client.info.text_lengths) == (SIDE, (40, 52))
        assert client.info_of("text").vocabulary_sha256
    expected = [fake.features_of(decode_pixels(image, SIDE).tobytes()) for image in images]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(texts, [fake.features_of(row) for row in ids_of(["我", "皮卡丘"])])


def test_the_server_is_not_waited_for_to_prepare(alone: Any) -> None:
    with connect(alone) as client:
        with pytest.raises(ModelNotFound, match="has its encoder alone, which takes pixels: .*--prepare client.$"):
            client.encode_images([picture(1)])
        with pytest.raises(ModelNotFound, match="has its encoder alone, which takes token ids: .*--prepare client.$"):
            client.encode_texts(["a"])
        with pytest.raises(ModelNotFound, match='prepare="client"'):
            _ = client.info


def test_ids_are_the_servers_and_so_are_the_words_about_bad_texts(alone: Any, fake: Any) -> None:
    texts: list[Any] = [*TEXTS, "\ud800", 7, b"bytes", "x" * 2000]
    with Client(alone.url, model="vit-b-16", prepare="client", limits=Limits(item_bytes=1000)) as client:
        (block,) = client.iter_texts(iter(texts), normalize=False)
    assert block.failures == {
        8: "is not Unicode text: a lone surrogate at position 0",
        9: "expected a str, got int",
        10: "expected a str, got bytes",
        11: "is larger than 1,000 bytes; raise Limits.item_bytes (--item-bytes) to send it",
    }
    assert alone.requests == [ids_of(TEXTS)]
    np.testing.assert_array_equal(block.features, [fake.features_of(row) for row in ids_of(TEXTS)])


def test_cut_texts_are_told_of_once(alone: Any, caplog: pytest.LogCaptureFixture) -> None:
    with connect(alone, prepare="client") as client, caplog.at_level("INFO", "cnclip_client"):
        client.encode_texts(["我" * 50, "我" * 51, "a " * 400], batch_size=1)
        client.encode_texts(["我" * 50])
    told = [record.getMessage() for record in caplog.records if "cut off" in record.getMessage()]
    assert told == ["2 texts have more than 52 tokens, of which the rest was cut off"]


def test_texts_that_travel_together_are_padded_to_what_the_encoder_likes(alone: Any) -> None:
    with connect(alone, prepare="client") as client:
        client.encode_texts([LONG, "我", "你"], batch_size=2)  # those of like length together
    assert sorted([len(row) // 4 for row in rows] for rows in alone.requests) == [[40, 40], [52]]


def test_real_captions(alone: Any, shared_captions: list[str]) -> None:
    """As one, by cn_clip's own words for it: `tokenize` of each."""
    from cn_clip.clip import tokenize

    with connect(alone, prepare="client") as client:
        list(client.iter_texts(shared_captions))
    expected = tokenize(shared_captions, context_length=52).numpy().astype(np.int32)
    # But for [PAD], which is 0: with how many, the test above says.
    sent = {row.rstrip(b"\0") for rows in alone.requests for row in rows}
    assert sent == {row.tobytes().rstrip(b"\0") for row in expected}


def test_lengths_that_a_config_does_not_tell(serve: Callable[..., Any], fake: Any) -> None:
    triton = serve(fake.text_encoder("vit-b-16", parameters={"text_lengths": "30", "context_length": "30"}))
    with connect(triton, prepare="client") as client:
        client.encode_texts(["我" * 10, "我" * 100])
        assert client.info.context_length == 30
    assert triton.requests == [ids_of(["我" * 10, "我" * 100], TokenIds(VOCABULARY, 30))]


def test_texts_are_left_to_the_ensemble_by_auto(serve: Callable[..., Any], fake: Any) -> None:
    triton = serve(*fake.both("vit-b-16"), fake.text_encoder("vit-b-16"))
    with connect(triton, prepare="auto") as client:
        client.encode_texts(["我"])
    with connect(triton, prepare="client") as client:
        client.encode_texts(["我"])
    assert triton.requests == [["我".encode()], ids_of(["我"])]


# --- The vocabulary.


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "我", "你"]), encoding="utf-8")
    return path


def of_other(fake: Any, path: Path) -> Any:
    import hashlib

    told = {"vocabulary_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return fake.text_encoder("vit-b-16", parameters=told)


def test_a_vocabulary_of_ones_own(serve: Callable[..., Any], fake: Any, other: Path) -> None:
    triton = serve(of_other(fake, other))
    with connect(triton, prepare="client", vocabulary=other) as client:
        client.encode_texts(["我他"])
    ((sent,),) = triton.requests
    assert np.frombuffer(sent, np.int32)[:6].tolist() == [2, 4, 1, 3, 0, 0]


def test_ids_of_the_wrong_vocabulary_are_never_made(
    serve: Callable[..., Any], fake: Any, other: Path, tmp_path: Path
) -> None:
    triton = serve(of_other(fake, other))
    with connect(triton, prepare="client") as client:
        said = r"was built with another vocabulary than cn_clip's: name its file, .* \(vocabulary=, --vocabulary\)"
        with pytest.raises(CnclipError, match=said):
            client.encode_texts(["我"])
    with connect(triton, prepare="client", vocabulary=VOCABULARY) as client:
        with pytest.raises(BadFile, match="is not the vocabulary that vit-b-16-text-encoder was built with"):
            client.encode_texts(["我"])
    with connect(triton, prepare="client", vocabulary=tmp_path / "none.txt") as client:
        with pytest.raises(BadFile, match="none.txt.*cannot be read"):
            client.encode_texts(["我"])
    assert triton.requests == []


def test_without_the_library_it_is_named(alone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == "tokenizers":
            raise ModuleNotFoundError("No module named 'tokenizers'", name=name)
        return find(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with connect(alone, prepare="client") as client, pytest.raises(MissingExtra, match=r"cn-clip-triton\[prepare\]"):
        client.encode_texts(["我"])


# --- What is there.


def test_models_are_found_by_their_encoders(serve: Callable[..., Any], fake: Any, alone: Any) -> None:
    assert served_models(alone.url) == ("vit-b-16",)
    more = serve(
        fake.image_encoder("rn50", SIDE), *fake.both("vit-b-16"), fake.text_encoder("vit-l-14", state="UNAVAILABLE")
    )
    assert served_models(more.url) == ("rn50", "vit-b-16")


@pytest.mark.parametrize("prepare", ["client", "auto"])
def test_a_server_that_does_not_list_its_models(alone: Any, prepare: str) -> None:
    alone.index_enabled = False
    with connect(alone, prepare=prepare) as client:
        assert client.encode_texts(["我"]).shape == (1, 16)
        assert client.encode_images([picture(1)]).shape == (1, 16)


def test_one_with_all_models_shares_the_work(serve: Callable[..., Any], fake: Any, alone: Any) -> None:
    whole = serve(*fake.both("vit-b-16"), fake.image_encoder("vit-b-16", SIDE), fake.text_encoder("vit-b-16"))
    texts = [f"第{number}张" for number in range(100)]
    with Client([alone.url, whole.url], model="vit-b-16", prepare="client") as client:
        found = client.encode_texts(texts, normalize=False, batch_size=5)
    np.testing.assert_array_equal(found, [fake.features_of(ids_of([text])[0]) for text in texts])
    assert alone.requests
    assert whole.requests
    assert {len(row) for rows in whole.requests for row in rows} == {160}  # ids, no texts


@pytest.mark.parametrize("prepare", ["client", "auto"])
def test_one_that_loads_yet_is_told_from_one_that_is_not_there(
    serve: Callable[..., Any], fake: Any, prepare: str
) -> None:
    triton = serve(fake.text_encoder("vit-b-16", state="LOADING"))
    with connect(triton, prepare=prepare) as client:
        with pytest.raises(ModelNotReady, match="vit-b-16-text-encoder is in .* not served"):
            client.encode_texts(["我"])
        with pytest.raises(ModelNotFound, match="vit-b-16-image"):
            client.encode_images([picture(1)])


def test_of_several_versions_the_one_that_the_config_tells_of_is_asked(serve: Callable[..., Any], fake: Any) -> None:
    """The one that was published last; it need not be the highest."""
    triton = serve(fake.text_encoder("vit-b-16", version="3", older=("1", "2"), parameters={"version": "2"}))
    with connect(triton, prepare="client") as client:
        client.encode_texts(["我"])
        assert client.info.version == "2"
        assert triton.versions == ["2"]
        # Another one is published, and the old ones stay: a run that goes on would not know what they are of.
        triton.models["vit-b-16-text-encoder"].parameters |= {"version": "3", "checkpoint_sha256": "b" * 64}
        with pytest.raises(ModelChanged):
            client.require_unchanged()
    with connect(triton, prepare="client", version=1) as client:
        with pytest.raises(CnclipError, match="tells of version 3, not of 1: ask for version 3, or build version 1"):
            client.encode_texts(["我"])
