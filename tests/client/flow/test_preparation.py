"""Images prepared by the client: the server's bytes and words, in processes that may die and are not the user's."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from cnclip_client import Client, CnclipError, Limits, MissingExtra, ModelChanged, ModelInfo, ServerError
from cnclip_client._flow import preparation as module
from cnclip_client._flow.items import Unsendable
from cnclip_client._flow.preparation import Preparation
from cnclip_pixels import BadImage, decode_pixels
from PIL import Image

SIDE = 32


def told(**changes: Any) -> ModelInfo:
    known = {"resolution": SIDE, "max_image_pixels": 178_956_970, **changes}
    return ModelInfo(
        model="m",
        version="1",
        arch="ViT-B-16",
        checkpoint_sha256="a" * 64,
        logit_scale=100.0,
        embedding_size=16,
        context_length=52,
        max_batch_size=32,
        precision="fp32",
        preferred_batch_size=8,
        **known,  # type: ignore[arg-type]
    )


def picture(colour: int, size: tuple[int, int] = (50, 40), format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize(size).point(lambda grey: (grey + colour) % 256).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def preparation() -> Iterator[Preparation]:
    made = Preparation(told(), 2)
    yield made
    made.close()


def outcome(prepare: Callable[[bytes], Any], encoded: bytes) -> Any:
    try:
        return prepare(encoded)
    except (BadImage, Unsendable) as error:
        return str(error)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd metadata
def test_the_same_bytes_and_the_same_words(preparation: Preparation, shared_images: list[Path]) -> None:
    for path in shared_images:
        data = path.read_bytes()
        here = outcome(lambda encoded: decode_pixels(encoded, SIDE).tobytes(), data)
        assert outcome(preparation.prepare, data) == here, path.name


def test_the_servers_limits_are_kept_and_not_the_users_changed() -> None:
    before = Image.MAX_IMAGE_PIXELS
    made = Preparation(told(max_image_pixels=1000), 1)
    try:
        with pytest.raises(Unsendable, match="DecompressionBombError: Image size .2000 pixels. exceeds limit of 1000"):
            made.prepare(picture(1))
        assert len(made.prepare(picture(1, (30, 30)))) == SIDE * SIDE * 3
    finally:
        made.close()
    assert before == Image.MAX_IMAGE_PIXELS
    reduced = Preparation(told(decoding="reduced"), 1)
    try:
        large = picture(1, (400, 300))
        assert reduced.prepare(large) == decode_pixels(large, SIDE, reduced=True).tobytes()
        assert reduced.prepare(large) != decode_pixels(large, SIDE).tobytes()
    finally:
        reduced.close()


def test_formats_that_a_server_does_not_decode_are_not_decoded_here(preparation: Preparation) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    with pytest.raises(Unsendable, match="^UnidentifiedImageError: cannot identify image file$"):
        preparation.prepare(postscript)
    with pytest.raises(CnclipError, match="this Pillow has no format NONE.*or leave it to the server"):
        Preparation(told(image_formats="none"), 1)


def test_a_process_that_is_killed_costs_nothing(preparation: Preparation) -> None:
    expected = [decode_pixels(picture(colour), SIDE).tobytes() for colour in range(40)]
    killed = threading.Event()

    def kill() -> None:
        for _ in range(6):
            for worker in list(preparation._workers):
                os.kill(worker._process.pid, signal.SIGKILL)
            time.sleep(0.01)
        killed.set()

    thread = threading.Thread(target=kill)
    with ThreadPoolExecutor(2) as pool:
        thread.start()
        while True:
            over = killed.is_set()
            found = list(pool.map(lambda colour: outcome(preparation.prepare, picture(colour)), range(40)))
            # Two that are killed at the same picture are no proof against it, but nobody could tell.
            assert all(one == right or "two processes died" in one for one, right in zip(found, expected, strict=True))
            if over:
                break
    thread.join()
    assert found == expected  # the round that began after the last kill


def test_what_kills_twice_is_to_blame_and_nothing_else(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = module._Worker.ask

    def dies_of_it(worker: Any, message: bytes) -> bytes | None:
        if message == b"poison":
            worker.kill()
        return ask(worker, message)

    monkeypatch.setattr(module._Worker, "ask", dies_of_it)
    with pytest.raises(
        Unsendable, match=r"^two processes died while they decoded it \(signal 9, as when memory runs out\)$"
    ):
        preparation.prepare(b"poison")
    assert preparation.prepare(picture(3)) == decode_pixels(picture(3), SIDE).tobytes()


def test_a_want_of_memory_is_not_the_images_fault(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without any is replaced; that there is none for long ends the run, and no item fails of it."""
    image = picture(1, (3000, 2000), "BMP")
    for worker in preparation._workers:
        resource.prlimit(worker._process.pid, resource.RLIMIT_AS, (1, resource.RLIM_INFINITY))
    assert preparation.prepare(image) == decode_pixels(image, SIDE).tobytes()
    for worker in preparation._workers:
        monkeypatch.setattr(worker, "ask", lambda _: b"!no memory")
    monkeypatch.setattr(preparation, "_drop", lambda _: "")
    monkeypatch.setattr(preparation, "_start", lambda: worker)
    with pytest.raises(CnclipError, match="cannot be prepared here: no memory; let fewer processes do it"):
        preparation.prepare(image)


def test_what_keeps_images_from_being_prepared_here(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "PIL" else find(name))
    with pytest.raises(MissingExtra, match=r"cn-clip-triton\[prepare\]"):
        Preparation(told(), 1)


def test_processes_end_with_their_client() -> None:
    made = Preparation(told(), 3)
    processes = [worker._process for worker in made._workers]
    made.close()
    assert len(processes) == 3
    assert all(process.poll() is not None for process in processes)
    with pytest.raises(RuntimeError, match="the client is closed"):
        made.prepare(picture(1))


def test_the_environment_divides_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.PREPARERS_VARIABLE, "3")
    made = Preparation(told())
    made.close()
    assert made.processes == 3


@pytest.mark.parametrize("told_value", ["abc", "0", "-1", "2.5", "1025", "1" + "0" * 5000, "²"])
def test_an_environment_that_says_no_number_is_named(monkeypatch: pytest.MonkeyPatch, told_value: str) -> None:
    monkeypatch.setenv(module.PREPARERS_VARIABLE, told_value)
    with pytest.raises(ValueError, match="CNCLIP_PREPARERS is '.*'; give a number of processes from 1 to 1024"):
        Preparation(told())


@pytest.mark.parametrize("nothing", ["", " "])
def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch, nothing: str) -> None:
    monkeypatch.setenv(module.PREPARERS_VARIABLE, nothing)
    assert module._preparers_of_environment() is None
    monkeypatch.setenv(module.PREPARERS_VARIABLE, "abc")
    made = Preparation(told(), 1)  # what is not asked is not looked at
    made.close()


def test_no_more_processes_than_a_machine_stands() -> None:
    with pytest.raises(ValueError, match="Limits.preparers must be at most 1024, got 80000"):
        Limits(preparers=80_000)


# --- The client.


def connect(triton: Any, **options: Any) -> Client:
    return Client(triton.url, model="vit-b-16", limits=Limits(preparers=2), **options)


def test_pixels_go_to_the_encoder_and_every_image_has_its_row(serve: Callable[..., Any], fake: Any) -> None:
    triton = serve(fake.image_encoder("vit-b-16", SIDE))
    items = [b"no image" if number % 7 == 3 else picture(number) for number in range(50)]
    with connect(triton, prepare="client") as client:
        block = client.encode_images(iter(items), normalize=False, errors="collect")  # type: ignore[call-overload]
        assert client.info_of("image").resolution == SIDE
    bad = [number for number in range(50) if number % 7 == 3]
    assert block.failures == dict.fromkeys(bad, "UnidentifiedImageError: cannot identify image file")
    assert block.indices.tolist() == [number for number in range(50) if number not in bad]
    expected = [fake.features_of(decode_pixels(items[row], SIDE).tobytes()) for row in block.indices]
    np.testing.assert_array_equal(block.features, np.stack(expected))


def test_texts_go_to_the_ensemble_as_ever(serve: Callable[..., Any], fake: Any) -> None:
    triton = serve(fake.image_encoder("vit-b-16", SIDE), fake.tower("vit-b-16", "text"))
    with connect(triton, prepare="client") as client:
        features = client.encode_texts(["a"], normalize=False)
        assert client.info.resolution == SIDE
    np.testing.assert_array_equal(features, [fake.features_of(b"a")])


def test_an_encoders_config_tells_of_one_version_alone(serve: Callable[..., Any], fake: Any) -> None:
    triton = serve(fake.image_encoder("vit-b-16", SIDE, parameters={"version": "2"}))
    with connect(triton, prepare="client") as client, pytest.raises(ServerError, match="tells of version 2, not of 1"):
        client.encode_images([picture(1)])


@pytest.mark.parametrize(
    ("pillow", "said"),
    [
        ("11.3.0", "pixels of pictures that shrink more than twice .* pip install 'pillow==11.3.0' makes them equal"),
        (PIL.__version__, ""),
        (None, ""),
    ],
)
def test_a_server_with_another_pillow_is_warned_of_once(
    serve: Callable[..., Any],
    fake: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    pillow: str | None,
    said: str,
) -> None:
    start = Preparation.__init__

    def with_pillow_13(self: Preparation, *given: Any) -> None:
        start(self, *given)
        if pillow == "11.3.0":  # whatever is installed where the tests run
            self.pillow = "13.0.0"

    monkeypatch.setattr(Preparation, "__init__", with_pillow_13)
    tells = {} if pillow is None else {"pillow": pillow}
    preprocess = fake.Model("vit-b-16-image-preprocess", parameters=tells)
    triton = serve(fake.image_encoder("vit-b-16", SIDE), preprocess)
    with connect(triton, prepare="client") as client:
        for _ in range(2):
            client.encode_images([picture(1)])
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == bool(said)
    assert all(re.search(said, line) for line in warned)


@pytest.mark.parametrize("slower", ["server", "client"])
def test_auto_measures_and_keeps_to_who_is_faster(
    serve: Callable[..., Any], fake: Any, monkeypatch: pytest.MonkeyPatch, slower: str
) -> None:
    monkeypatch.setattr("cnclip_client._ways.faster._TRIAL_ITEMS", 8)
    triton = serve(*fake.both("vit-b-16"), fake.image_encoder("vit-b-16", SIDE))
    pixels = SIDE * SIDE * 3

    def before(attempt: int, items: list[bytes]) -> None:
        if (slower == "client") == (len(items[0]) == pixels):
            time.sleep(1)

    triton.before_infer = before
    images = [picture(number) for number in range(40)]
    with connect(triton, prepare="auto") as client:
        assert client.prepares_itself is None
        found = client.encode_images(images, normalize=False, batch_size=4)
        assert client.prepares_itself is (slower == "server")
        again = client.encode_images(images[:4], normalize=False)
    by_server = np.stack([fake.features_of(image) for image in images])
    here = np.stack([fake.features_of(decode_pixels(image, SIDE).tobytes()) for image in images])
    chosen = here if slower == "server" else by_server
    np.testing.assert_array_equal(found, np.concatenate([by_server[:8], here[8:16], chosen[16:]]))
    np.testing.assert_array_equal(again, chosen[:4])


def test_a_server_that_decodes_on_its_gpu_is_told_of_once(
    serve: Callable[..., Any], fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Pixels are prepared exactly, and so says the client of its features; it may be one of a fleet that is exact."""
    on_gpu = {"decoding": "gpu"}
    servers = [serve(fake.image_encoder("vit-b-16", SIDE, parameters=told)) for told in (on_gpu, {}, on_gpu)]
    urls = [server.url for server in servers]
    with Client(urls, model="vit-b-16", limits=Limits(preparers=1), prepare="client") as client:
        for _ in range(2):
            found = client.encode_images([picture(1)], normalize=False)
        assert client.info_of("image").decoding == "exact"
    np.testing.assert_array_equal(found, [fake.features_of(decode_pixels(picture(1), SIDE).tobytes())])
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1
    assert re.search("vit-b-16-image at .* decodes JPEGs on its GPU, this client decodes exactly", warned[0])


def test_a_server_that_decodes_on_its_gpu_and_one_that_is_exact_are_no_fleet(
    serve: Callable[..., Any], fake: Any
) -> None:
    servers = [serve(fake.tower("vit-b-16", "image", parameters={"decoding": one})) for one in ("exact", "gpu")]
    with Client([server.url for server in servers], model="vit-b-16") as client:
        with pytest.raises(ModelChanged, match="decoding"):
            client.encode_images([picture(1)])


def test_auto_leaves_to_the_server_what_its_gpu_decodes(
    serve: Callable[..., Any], fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of both ways must not be in one answer."""
    monkeypatch.setattr("cnclip_client._ways.faster._TRIAL_ITEMS", 2)
    on_gpu = {"decoding": "gpu"}
    encoder = fake.image_encoder("vit-b-16", SIDE, parameters=on_gpu)
    triton = serve(*fake.both("vit-b-16", parameters=on_gpu), encoder)
    images = [picture(number) for number in range(8)]
    with connect(triton, prepare="auto") as client:
        found = client.encode_images(images, normalize=False)
        assert client.prepares_itself is False
        assert client.info_of("image").decoding == "gpu"
    np.testing.assert_array_equal(found, [fake.features_of(image) for image in images])


def test_auto_leaves_to_the_server_what_cannot_be_prepared_here(triton: Any, fake: Any) -> None:
    images = [picture(number) for number in range(3)]
    with connect(triton, prepare="auto") as client:  # the server has no encoder of that name
        found = client.encode_images(images, normalize=False)
        assert client.prepares_itself is False
    np.testing.assert_array_equal(found, [fake.features_of(image) for image in images])


def test_who_prepares_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="prepare must be one of server, client, auto, got 'gpu'"):
        Client("localhost:1", model="m", prepare="gpu")  # type: ignore[arg-type]
