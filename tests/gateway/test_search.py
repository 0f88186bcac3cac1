"""The page's search: by a sentence and by a picture, exactly and in an index; pictures of what is searched and no others."""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from cnclip_client import BadFile, Client, StoreError
from cnclip_client.extraction import ExtractOptions, extract
from cnclip_client.report import Pictures, _pictures
from cnclip_client.sources import image_source
from PIL import Image

from tests.client.conftest import FakeTriton, both
from tests.gateway.conftest import Running, require_schema

pytest.importorskip("faiss", reason="the extra search is not installed")

from cnclip_gateway._search import open_searched

COUNT = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each; what is beside them is nobody's business."""
    folder = tmp_path_factory.mktemp("site") / "photos"
    (folder / "deep").mkdir(parents=True)
    for number in range(COUNT):
        image = Image.new("RGB", (300, 20), (number * 6, 0, 0))
        image.save(folder / ("deep" if number % 2 else "") / f"{number}.png")
    (folder.parent / "secret.png").write_bytes((folder / "0.png").read_bytes())
    return folder


@pytest.fixture
def features(photos: Path, triton: FakeTriton, tmp_path: Path) -> Path:
    with Client(triton.url, model="vit-b-16") as client:
        extract(client, image_source(photos), tmp_path / "photos.jsonl", ExtractOptions())
    triton.forget()
    return tmp_path / "photos.jsonl"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def searching(
    run: Callable[..., Running], triton: FakeTriton, features: Path, photos: Path, stack: ExitStack
) -> Running:
    return run(triton.url, searched=open_searched(features, stack), pictures=Pictures(image_source(photos)))


def test_a_picture_finds_itself_and_what_is_near(searching: Running, triton: FakeTriton, photos: Path) -> None:
    answer = searching.ask("POST", "/search?k=5", (photos / "deep/7.png").read_bytes())
    assert answer.status == 200
    require_schema("Found", answer.json)
    hits = answer.json["hits"]
    assert hits[0]["id"] == "deep/7.png"
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    with Client(triton.url, model="vit-b-16") as client:
        names = [item.id for item in image_source(photos).items()]
        rows = client.encode_images(photos / str(name) for name in names)
    scores = rows @ rows[names.index("deep/7.png")]
    assert [hit["id"] for hit in hits] == [names[row] for row in np.argsort(-scores)[:5]]
    np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(scores)[::-1][:5], atol=1e-5)


def test_a_sentence_is_prepared_as_extracted_ones(searching: Running, triton: FakeTriton) -> None:
    answer = searching.ask("GET", "/search?q=%E2%80%9CHello%E2%80%9D%20%E6%B8%B8%E9%9A%BC%20")
    assert len(answer.json["hits"]) == 24
    assert triton.requests[-1] == ['"hello" 游隼'.encode()]
    assert searching.ask("GET", "/search?q=x&k=200").json["hits"].__len__() == COUNT
    assert searching.ask("GET", "/search?q=%EF%BF%bd%20x").status == 200  # a character like any other


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_an_index_finds_the_same(
    run: Callable[..., Running],
    triton: FakeTriton,
    features: Path,
    photos: Path,
    tmp_path: Path,
    stack: ExitStack,
    kind: Any,
) -> None:
    from cnclip_client.index import IndexOptions, build_index

    build_index(
        features, tmp_path / "photos.index", "image", IndexOptions(factory={"flat": "Flat", "hnsw": "HNSW16"}[kind])
    )
    exact = run(triton.url, searched=open_searched(features, stack))
    near = run(
        triton.url, searched=open_searched(tmp_path / "photos.index", stack), pictures=Pictures(image_source(photos))
    )
    for path in ("/search?q=x&k=5", "/search?q=y&k=5"):
        expected, found = (one.ask("GET", path).json["hits"] for one in (exact, near))
        assert [one["id"] for one in found] == [one["id"] for one in expected]
        np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=2e-3)
        assert {one["thumbnail"] for one in expected} == {None}
        shown = near.ask("GET", found[0]["thumbnail"])
        assert shown.headers["Content-Type"] == "image/jpeg"


def test_thumbnails_are_of_what_is_searched_and_of_nothing_else(searching: Running, photos: Path) -> None:
    hits = searching.ask("GET", "/search?q=x&k=200").json["hits"]
    for hit in hits[:5]:
        answer = searching.ask("GET", hit["thumbnail"])
        assert answer.headers["Content-Type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.body)) as small:
            assert small.size == (256, 17)
            red = small.convert("RGB").getpixel((128, 8))[0]  # type: ignore[index]
        assert red == pytest.approx(int(Path(hit["id"]).stem) * 6, abs=8)
    assert sorted(int(hit["thumbnail"].rpartition("/")[2].partition("?")[0]) for hit in hits) == list(range(COUNT))
    for row in (
        COUNT,
        10**30,
        "9" * 5000,
        "-1",
        "x",
        "..%2fsecret.png",
        "../secret.png",
        "0.png",
        "deep/7.png",
        "0/../1",
        "",
        "%00",
    ):
        answer = searching.ask("GET", f"/thumbnails/{row}")
        assert (answer.status, answer.error["code"]) == (404, "not_found"), row


def test_a_picture_that_is_gone_is_not_made_up(searching: Running, photos: Path) -> None:
    (hit,) = searching.ask("POST", "/search?k=1", (photos / "2.png").read_bytes()).json["hits"]
    kept = (photos / "2.png").read_bytes()
    try:
        (photos / "2.png").unlink()
        assert searching.ask("GET", hit["thumbnail"]).status == 404
    finally:
        (photos / "2.png").write_bytes(kept)


def test_a_picture_whose_name_is_no_utf8(
    run: Callable[..., Running], triton: FakeTriton, photos: Path, tmp_path: Path, stack: ExitStack
) -> None:
    named = tmp_path / "photos" / os.fsdecode("照片".encode("gb18030"))
    named.mkdir(parents=True)
    (named / "2.png").write_bytes((photos / "2.png").read_bytes())
    with Client(triton.url, model="vit-b-16") as client:
        extract(client, image_source(tmp_path / "photos"), tmp_path / "made.jsonl", ExtractOptions())
    found = open_searched(tmp_path / "made.jsonl", stack)
    searching = run(triton.url, searched=found, pictures=Pictures(image_source(named.parent)))
    answer = searching.ask("GET", "/search?q=x")
    assert [hit["id"] for hit in answer.json["hits"]] == [f"{named.name}/2.png"]
    assert searching.ask("GET", answer.json["hits"][0]["thumbnail"]).status == 200


def test_a_picture_that_could_not_be_had_is_asked_for_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away for a moment costs no picture for longer than that."""
    pictures = Pictures(image_source(photos))
    with monkeypatch.context() as away:
        away.setattr(_pictures, "image_bytes", Mock(side_effect=StoreError("is away", path="s3://photos/2.png")))
        assert pictures.thumbnail("2.png") is None
    shown = pictures.thumbnail("2.png")
    assert shown is not None
    assert pictures.thumbnail("2.png") is shown  # and that is kept


def test_a_row_of_another_index_is_not_shown_for_this_one(
    run: Callable[..., Running], triton: FakeTriton, features: Path, photos: Path, tmp_path: Path, stack: ExitStack
) -> None:
    """Browsers keep thumbnails for an hour, and while an index is rolled out a pod finds what another is asked for."""
    (tmp_path / "others.jsonl").write_text("".join(reversed(features.read_text().splitlines(keepends=True))))
    pictures = Pictures(image_source(photos))
    old, new = (
        run(triton.url, searched=open_searched(one, stack), pictures=pictures)
        for one in (features, tmp_path / "others.jsonl")
    )
    first, second = (
        {hit["id"]: hit["thumbnail"] for hit in one.ask("GET", "/search?q=x&k=200").json["hits"]} for one in (old, new)
    )
    assert not set(first.values()) & set(second.values())
    assert old.ask("GET", first["2.png"]).status == 200
    assert new.ask("GET", first["2.png"]).status == 404
    assert new.ask("GET", second["2.png"]).body == old.ask("GET", first["2.png"]).body


def sources(photos: Path, folder: Path) -> dict[str, Path]:
    """The same pictures, otherwise packed."""
    files = {path.relative_to(photos).as_posix(): path.read_bytes() for path in sorted(photos.rglob("*.png"))}
    (folder / "photos.tsv").write_text(
        "".join(f"{name}\t{base64.urlsafe_b64encode(data).decode()}\n" for name, data in files.items())
    )
    (folder / "photos.list").write_text("".join(f"{photos / name}\n" for name in files))
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return {one: folder / f"photos.{one}" for one in ("tsv", "list", "tar")}


@pytest.mark.parametrize("packed", ["tsv", "list", "tar"])
def test_pictures_of_every_source(photos: Path, tmp_path: Path, packed: str) -> None:
    source = image_source(sources(photos, tmp_path)[packed])
    pictures = Pictures(source)
    ids = [item.id for item in source.items()]
    assert len(ids) == COUNT
    for one in ids[::-7]:  # in no order
        data = pictures.thumbnail(one)
        assert data is not None
        with Image.open(io.BytesIO(data)) as small:
            red = small.convert("RGB").getpixel((128, 8))[0]  # type: ignore[index]
        assert red == pytest.approx(int(Path(str(one)).stem) * 6, abs=8)
    assert pictures.thumbnail("secret.png") is None
    kept = pictures.thumbnail(ids[1])
    if packed != "list":
        Path(str(source.fingerprint["path"])).unlink()
        assert pictures.thumbnail(ids[0]) is None  # it was not asked for before
        assert pictures.thumbnail(ids[1]) == kept
    if packed == "list":  # a file also goes by its name, with its ending and without, as in `cnclip search --html`
        assert pictures.thumbnail("7.png") == pictures.thumbnail("7") == pictures.thumbnail(7)


@pytest.mark.parametrize(
    ("path", "param"),
    [("/search", "q"), ("/search?q=", "q"), ("/search?q=%20", "q"), (f"/search?q={'x' * 10_001}", "q")]
    + [(f"/search?q={q}", "q") for q in ("%D3%CE%F6%C0", "%EF%BF%BD%D3%CE", "%ED%A0%80")]
    + [(f"/search?q=x&k={k}", "k") for k in ("0", "201", "-1", "x", "1e2", "9" * 50, "%C2%B2", "")],
)
def test_what_is_no_search(searching: Running, path: str, param: str) -> None:
    answer = searching.ask("GET", path)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_what_is_no_picture(searching: Running) -> None:
    answer = searching.ask("POST", "/search", b"BAD:is no image")
    assert (answer.status, answer.error["code"]) == (400, "bad_input")
    assert answer.error["message"] == "what was sent cannot be encoded: is no image; send another"
    assert searching.ask("POST", "/search", b"").status == 400


def test_pictures_of_another_checkpoint_are_not_compared(
    run: Callable[..., Running], serve: Callable[..., FakeTriton], features: Path, stack: ExitStack
) -> None:
    gateway = run(serve(*both("vit-b-16", sha="b" * 64)).url, searched=open_searched(features, stack))
    answer = gateway.ask("GET", "/search?q=x")
    assert (answer.status, answer.error["code"]) == (503, "checkpoint_mismatch")
    assert gateway.embed("x").status == 200


def test_of_several_models_that_which_the_pictures_are_of(
    run: Callable[..., Running], serve: Callable[..., FakeTriton], features: Path, stack: ExitStack
) -> None:
    several = serve(*both("vit-b-16"), *both("other", sha="b" * 64))
    assert (
        run(several.url, searched=open_searched(features, stack)).ask("GET", "/search?q=x").json["model"] == "vit-b-16"
    )


def test_what_cannot_be_searched(tmp_path: Path, features: Path, stack: ExitStack) -> None:
    from cnclip_client.index import IndexOptions, build_index

    (tmp_path / "no.jsonl").write_text("")
    with pytest.raises(BadFile):
        open_searched(tmp_path / "no.jsonl", stack)
    lines = [json.loads(line) for line in features.read_text().splitlines()]
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text_id": n, "feature": one["feature"]}) + "\n" for n, one in enumerate(lines))
    )
    build_index(texts, tmp_path / "texts.index", "text", IndexOptions(factory="Flat"))
    with pytest.raises(BadFile, match="give one of images"):
        open_searched(tmp_path / "texts.index", stack)


def test_a_picture_goes_by_the_digits_of_its_id(tmp_path: Path, photos: Path) -> None:
    image = base64.b64encode((photos / "0.png").read_bytes())
    (tmp_path / "imgs.tsv").write_bytes(b"7\t%b\n007\t%b\n" % (image, image))
    pictures = Pictures(image_source(tmp_path / "imgs.tsv"))
    assert pictures.thumbnail("7") == pictures.thumbnail(7) is not None
    assert pictures.thumbnail("07") is None


def test_a_picture_with_digits_for_its_id_goes_by_the_integer(tmp_path: Path, photos: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [(photos / "0.png").read_bytes()] * 2
    parquet.write_table(pyarrow.table({"image_id": ["7", "x"], "image": images}), tmp_path / "images.parquet")
    pictures = Pictures(image_source(tmp_path / "images.parquet"))
    assert pictures.thumbnail(7) == pictures.thumbnail("7") is not None
