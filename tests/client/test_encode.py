"""Encoding: every item's feature at its index, every bad one reported, and the limits held."""

from __future__ import annotations

import itertools
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cnclip_client import BadInput, Block, CheckpointMismatch, Client, Limits, ModelInfo, ServerError
from hypothesis import given, settings
from hypothesis import strategies as st

TEXTS = st.lists(
    st.one_of(
        st.text(max_size=6).filter(lambda text: not text.startswith("BAD:")),
        st.sampled_from(["BAD:torn", "BAD:", "BAD:原因", "\ud800", None]),
    ),
    max_size=70,
)


def _expected(fake: Any, texts: list[str | None]) -> tuple[list[int], list[int], np.ndarray]:
    """Which items are good, which are bad, and the good ones' un-normalised features."""
    bad = [i for i, text in enumerate(texts) if text is None or text == "\ud800" or text.startswith("BAD:")]
    good = [i for i in range(len(texts)) if i not in bad]
    features = [fake.features_of(texts[i].encode()) for i in good]
    return good, bad, np.array(features, np.float32).reshape(-1, fake.dimension)


@settings(max_examples=60, deadline=None)
@given(
    texts=TEXTS,
    batch_size=st.integers(1, 40),
    in_flight=st.integers(1, 6),
    request_bytes=st.integers(1, 100),
    seed=st.none() | st.integers(0, 99),
)
def test_every_item_comes_out_once_at_its_index(
    shared_triton: Any,
    fake: Any,
    texts: list[str | None],
    batch_size: int,
    in_flight: int,
    request_bytes: int,
    seed: int | None,
) -> None:
    shared_triton.forget()
    if seed is not None:
        # Answers overtake one another.
        delays = random.Random(seed)
        shared_triton.before_infer = lambda attempt, items: time.sleep(delays.random() * 0.004)
    limits = Limits(in_flight=in_flight, request_bytes=request_bytes, in_flight_bytes=3 * request_bytes)
    with Client(shared_triton.url, model="vit-b-16", limits=limits) as client:
        blocks = list(client.iter_texts(iter(texts), normalize=False, batch_size=batch_size))  # type: ignore[arg-type]
    good, bad, features = _expected(fake, texts)
    assert [(block.start, block.stop) for block in blocks] == list(
        itertools.pairwise([0, *(block.stop for block in blocks)])
    )
    assert (blocks[-1].stop if blocks else 0) == len(texts)
    assert [row for block in blocks for row in block.indices.tolist()] == good
    assert [row for block in blocks for row in block.failures] == bad
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 16)), *(b.features for b in blocks)]), features)
    assert shared_triton.most_at_once <= in_flight
    for request in shared_triton.requests:
        assert len(request) <= min(batch_size, 32)
        assert len(request) == 1 or sum(map(len, request)) <= request_bytes


@settings(max_examples=25, deadline=None)
@given(texts=TEXTS)
def test_encode_collects_or_raises_all_bad_rows(shared_triton: Any, fake: Any, texts: list[str | None]) -> None:
    shared_triton.forget()
    good, bad, features = _expected(fake, texts)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    with Client(shared_triton.url, model="vit-b-16") as client:
        found = client.encode_texts(texts, errors="collect")  # type: ignore[arg-type]
        if bad:
            with pytest.raises(BadInput) as caught:
                client.encode_texts(texts)  # type: ignore[arg-type]
            assert caught.value.kind == "text"
            assert list(caught.value.rows) == bad
            assert len(caught.value.encoded.features) == len(good)
        else:
            whole = client.encode_texts(texts)  # type: ignore[arg-type]
            np.testing.assert_allclose(whole, features, rtol=1e-6)
    assert (found.start, found.stop) == (0, len(texts))
    assert found.indices.tolist() == good
    assert list(found.failures) == bad
    assert found.features.dtype == np.float32
    np.testing.assert_allclose(found.features, features, rtol=1e-6)
    assert all(found.failures.values())


def test_images_of_every_kind_in_one_call(triton: Any, fake: Any, tmp_path: Path) -> None:
    from PIL import Image

    file = tmp_path / "a.jpg"
    file.write_bytes(b"file")
    picture = Image.new("RGB", (4, 4), "red")
    with Client(triton.url, model="vit-b-16") as client:
        features = client.encode_images([file, b"raw", str(file), picture], normalize=False)
        with pytest.raises(BadInput) as caught:
            client.encode_images([b"", file, tmp_path, b"BAD:torn"])
    assert features.shape == (4, 16)
    np.testing.assert_array_equal(features[0], fake.features_of(b"file"))
    np.testing.assert_array_equal(features[1], fake.features_of(b"raw"))
    np.testing.assert_array_equal(features[2], features[0])
    assert triton.requests[0][3].startswith(b"\x89PNG")
    assert caught.value.rows == {0: "is empty (0 bytes)", 2: "Is a directory", 3: "torn"}
    # The bad rows of our own finding never travelled, the server's one did once, its neighbour was sent again.
    assert triton.requests[1:] == [[b"file", b"BAD:torn"], [b"file"]]


def test_nothing_encodes_to_no_rows_of_the_right_width(triton: Any) -> None:
    with Client(triton.url, model="vit-b-16") as client:
        for features in (client.encode_texts([]), client.encode_images([])):
            assert (features.shape, features.dtype) == ((0, 16), np.float32)
        assert list(client.iter_texts([])) == []
        assert client.similarity([], ["a"]).shape == (0, 1)
        assert client.similarity([b"a"], []).shape == (1, 0)
    assert triton.requests == []


def test_only_the_wanted_output_travels(triton: Any) -> None:
    with Client(triton.url, model="vit-b-16") as client:
        client.encode_texts(["a"])
        client.encode_images([b"a"], normalize=False)
    assert triton.outputs == [["text_features"], ["unnorm_image_features"]]


def test_default_batches_and_the_servers_maximum(serve: Callable[..., Any], fake: Any) -> None:
    wide, narrow = serve(*fake.both("vit-b-16", max_batch_size=64)), serve(*fake.both("vit-b-16", max_batch_size=4))
    for server, texts, images in [(wide, 32, 8), (narrow, 4, 4)]:
        with Client(server.url, model="vit-b-16") as client:
            client.encode_texts(["a"] * 40)
            assert max(map(len, server.requests)) == texts
            server.forget()
            client.encode_images([b"a"] * 40)
            assert max(map(len, server.requests)) == images
            server.forget()
            client.encode_texts(["a"] * 100, batch_size=1000)
            assert max(map(len, server.requests)) == server.models["vit-b-16-text"].max_batch_size


def test_the_batches_that_the_server_prefers(serve: Callable[..., Any], fake: Any) -> None:
    image = fake.tower("m", "image", parameters={"preferred_batch_size": "4"})
    text = fake.tower("m", "text", parameters={"preferred_batch_size": "64"})
    server = serve(image, text)
    with Client(server.url, model="m") as client:
        assert client.info.preferred_batch_size == 4
        for items, encode, sizes in (
            ([b"a"] * 10, client.encode_images, [4, 4, 2]),
            (["a"] * 40, client.encode_texts, [32, 8]),  # no more than it takes
        ):
            server.forget()
            encode(items)
            assert sorted(map(len, server.requests), reverse=True) == sizes
        server.forget()
        client.encode_images([b"a"] * 10, batch_size=5)
        assert sorted(map(len, server.requests)) == [5, 5]
        # Another size is no other model.
        server.models["m-image"].parameters["preferred_batch_size"] = "2"
        client.require_unchanged()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("arch", None, "its config has no parameter arch"),
        ("embedding_size", "wide", "a parameter of its config is no number"),
        ("embedding_size", "0", "its embedding_size is 0"),
        ("logit_scale", "nan", "its logit_scale is nan"),
        ("preferred_batch_size", "0", "its preferred_batch_size is 0"),
        ("preferred_batch_size", "many", "a parameter of its config is no number"),
    ],
)
def test_a_config_that_no_build_wrote_is_refused(triton: Any, name: str, value: str | None, told: str) -> None:
    parameters = triton.models["vit-b-16-text"].parameters
    parameters.pop(name, None)
    if value is not None:
        parameters[name] = value
    with (
        Client(triton.url, model="vit-b-16") as client,
        pytest.raises(ServerError, match=f"{told}.*: it was not built by cnclip-build; build its repository anew"),
    ):
        client.encode_texts(["a"])


def test_a_batch_closes_on_bytes_and_a_large_item_travels_alone(triton: Any) -> None:
    limits = Limits(request_bytes=100, item_bytes=500)
    with Client(triton.url, model="vit-b-16", limits=limits) as client:
        found = client.encode_images([b"a" * 40, b"b" * 40, b"c" * 40, b"d" * 300, b"e", b"f" * 501], errors="collect")
    assert sorted([len(item) for item in request] for request in triton.requests) == [[1], [40], [40, 40], [300]]
    assert list(found.failures) == [5]


def test_an_endless_source_is_read_only_as_far_as_needed(triton: Any) -> None:
    taken = itertools.count()
    source = (f"text {next(taken)}" for _ in itertools.count())
    with Client(triton.url, model="vit-b-16", limits=Limits(in_flight=3)) as client:
        stream = client.iter_texts(source, batch_size=5)
        assert next(taken) == 0
        for round_ in range(1, 6):
            next(stream)
            # What is out, what may be under way or answered, and one batch in the making.
            assert next(taken) - round_ <= 5 * (round_ + 2 * 3 + 1)
        stream.close()  # type: ignore[attr-defined]


def test_bytes_under_way_are_bounded(triton: Any) -> None:
    under_way, most, lock = [0], [0], threading.Lock()

    def before(attempt: int, items: list[bytes]) -> None:
        size = sum(map(len, items))
        with lock:
            under_way[0] += size
            most[0] = max(most[0], under_way[0])
        time.sleep(0.005)
        with lock:
            under_way[0] -= size

    triton.before_infer = before
    limits = Limits(in_flight=8, request_bytes=1000, in_flight_bytes=2500)
    with Client(triton.url, model="vit-b-16", limits=limits) as client:
        client.encode_images([bytes([65 + i % 20]) * 900 for i in range(30)])
    assert 900 < most[0] <= 2500


def test_requests_overlap(triton: Any) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.05)
    with Client(triton.url, model="vit-b-16", limits=Limits(in_flight=4)) as client:
        client.encode_texts(["a"] * 32, batch_size=2)
    assert 2 <= triton.most_at_once <= 4


def test_an_answer_at_hand_is_not_kept_back_by_a_slow_source(triton: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    came, taken = threading.Event(), threading.Event()

    class Answers(queue.SimpleQueue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            super().put(item, block, timeout)
            came.set()

    def before(attempt: int, items: list[bytes]) -> None:
        if items == [b"c"]:  # so that the server has work while the first answer is at hand
            taken.wait(30)

    def source() -> Iterator[str]:
        yield "a"
        assert came.wait(30)
        yield "c"
        assert taken.is_set(), "asked for more before what was at hand came out"
        yield "d"

    triton.before_infer = before
    monkeypatch.setattr("cnclip_client._flow.pipeline.queue", SimpleNamespace(SimpleQueue=Answers, Empty=queue.Empty))
    with Client(triton.url, model="vit-b-16") as client:
        stream = client.iter_texts(source(), batch_size=1)
        assert next(stream).stop == 1
        taken.set()
        assert [block.stop for block in stream] == [2, 3]


def test_an_error_of_the_source_comes_through(triton: Any) -> None:
    def source() -> Iterator[str]:
        yield "a"
        raise LookupError("the database went away")

    with Client(triton.url, model="vit-b-16") as client, pytest.raises(LookupError, match="database"):
        list(client.iter_texts(source()))


@pytest.mark.parametrize("count", [0, 1, 8, 100])
def test_all_that_a_source_gave_before_it_failed_comes_out_first(triton: Any, fake: Any, count: int) -> None:
    def source() -> Iterator[str]:
        yield from (str(row) for row in range(count))
        raise LookupError("the database went away")

    given: list[int] = []
    with Client(triton.url, model="vit-b-16") as client, pytest.raises(LookupError, match="database"):
        for block in client.iter_texts(source(), batch_size=8):
            np.testing.assert_array_equal(block.features[0], _normalised(fake, str(block.start)))
            given.extend(block.indices.tolist())
    assert given == list(range(count))


@pytest.mark.parametrize("encode", ["iter_images", "iter_texts"])
def test_a_source_goes_on_where_a_run_was_left(triton: Any, encode: str) -> None:
    source = (str(row).encode() if encode == "iter_images" else str(row) for row in itertools.count())
    with Client(triton.url, model="vit-b-16") as client:
        blocks = getattr(client, encode)(source, batch_size=2)
        assert next(blocks).stop == 2
        blocks.close()
    assert 2 <= int(next(source)) < 1000


def _normalised(fake: Any, text: str) -> np.ndarray:
    feature = fake.features_of(text.encode())
    return np.asarray(feature / np.linalg.norm(feature[None], axis=1)[0])


def test_threads_share_a_client(triton: Any, fake: Any) -> None:
    found: dict[int, np.ndarray] = {}
    with Client(triton.url, model="vit-b-16") as client:

        def work(seed: int) -> None:
            found[seed] = client.encode_texts([f"{seed} {i}" for i in range(50)], normalize=False, batch_size=3)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed in range(4):
        expected = [fake.features_of(f"{seed} {i}".encode()) for i in range(50)]
        np.testing.assert_array_equal(found[seed], expected)


def test_similarity_is_cn_clips(triton: Any, fake: Any) -> None:
    images, texts = [b"a", b"b", b"c"], ["皮卡丘", "杰尼龟"]
    with Client(triton.url, model="vit-b-16") as client:
        chances, logits = client.similarity(images, texts), client.similarity(images, texts, logits=True)
    left = np.stack([fake.features_of(image) for image in images])
    right = np.stack([fake.features_of(text.encode()) for text in texts])
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (left, right))
    np.testing.assert_allclose(logits, 100.0 * left @ right.T, rtol=1e-5)
    powers = np.exp(100.0 * left @ right.T)
    np.testing.assert_allclose(chances, powers / powers.sum(axis=1, keepdims=True), rtol=1e-3)
    assert (chances.dtype, logits.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-6)


def test_similarity_says_whether_images_or_texts_are_bad(triton: Any) -> None:
    with Client(triton.url, model="vit-b-16") as client:
        for images, texts, kind in [([b""], ["a"], "image"), ([b"a"], ["BAD:x"], "text")]:
            with pytest.raises(BadInput) as caught:
                client.similarity(images, texts)
            assert caught.value.kind == kind


def test_a_feature_that_is_no_number_fails_alone(triton: Any, fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worth = {b"b": np.nan, b"d": np.nan}
    monkeypatch.setattr(
        sys.modules[type(triton).__module__],
        "features_of",
        lambda item, dimension: fake.features_of(item, dimension) * np.float32(worth.get(item, 1)),
    )
    with Client(triton.url, model="vit-b-16") as client:
        block = client.encode_texts(["a", *"bcd"], normalize=False, errors="collect", batch_size=2)
    assert block.failures == {1: "its feature holds NaN or infinity", 3: "its feature holds NaN or infinity"}
    np.testing.assert_array_equal(block.features, [fake.features_of(text) for text in (b"a", b"c")])


@pytest.mark.parametrize("call", ["encode_texts", "iter_texts", "encode_images", "iter_images"])
@pytest.mark.parametrize("single", ["皮卡丘", b"bytes", Path("a.jpg"), 3, None])
def test_a_single_item_is_refused_at_once_with_the_fix(call: str, single: Any) -> None:
    with Client("localhost:1", model="vit-b-16") as client, pytest.raises(TypeError, match="put it in a list"):
        getattr(client, call)(single)


def test_wrong_options_are_refused_at_once() -> None:
    with Client("localhost:1", model="vit-b-16") as client:
        with pytest.raises(ValueError, match="batch_size must be at least 1"):
            client.iter_texts(["a"], batch_size=0)
        with pytest.raises(ValueError, match="'raise' or 'collect'"):
            client.encode_texts(["a"], errors="ignore")  # type: ignore[call-overload]


def test_info_is_what_the_server_says_and_asked_once(triton: Any, fake: Any) -> None:
    with Client(triton.url, model="vit-b-16") as client:
        asked = []
        triton.before_config = lambda: asked.append(1)
        expected = ModelInfo(
            model="vit-b-16",
            version="1",
            arch="ViT-B-16",
            checkpoint_sha256=fake.sha,
            logit_scale=100.0,
            embedding_size=16,
            context_length=52,
            max_batch_size=32,
            precision="fp32",
            preferred_batch_size=8,
            resolution=32,
            max_image_pixels=10_000_000,
            vocabulary_sha256=fake.vocabulary_sha,
            text_lengths=(40, 52),
        )
        assert client.info == expected
        asked.clear()
        assert client.info == expected
        assert not asked


def test_different_checkpoints_are_never_compared(serve: Callable[..., Any], fake: Any) -> None:
    server = serve(fake.tower("vit-b-16", "image", sha="b" * 64), fake.tower("vit-b-16", "text"))
    with Client(server.url, model="vit-b-16") as client:
        for use in (lambda: client.similarity([b"a"], ["a"]), lambda: client.info):
            with pytest.raises(CheckpointMismatch) as caught:
                use()
            assert (caught.value.image_sha256, caught.value.text_sha256) == ("b" * 64, fake.sha)
        assert server.requests == []
        assert client.encode_texts(["a"]).shape == client.encode_images([b"a"]).shape == (1, 16)


def test_a_single_tower_is_enough_for_its_own_kind(serve: Callable[..., Any], fake: Any) -> None:
    for kind in ("text", "image"):
        with Client(serve(fake.tower("vit-b-16", kind)).url, model="vit-b-16") as client:
            encode: Any = client.encode_texts if kind == "text" else client.encode_images
            assert encode(["a"] if kind == "text" else [b"a"]).shape == (1, 16)
            assert client.info.arch == "ViT-B-16"


def test_the_version_first_found_is_held(triton: Any) -> None:
    with Client(triton.url, model="vit-b-16") as client:
        client.encode_texts(["a"])
    with Client(triton.url, model="vit-b-16", version=1) as client:
        client.encode_texts(["a"])
    assert triton.versions == ["1", "1"]


def test_blocks_know_their_place(triton: Any) -> None:
    with Client(triton.url, model="vit-b-16") as client:
        blocks: list[Block] = list(client.iter_texts(["a", "BAD:x", "b"], batch_size=2))
    assert [(b.start, b.stop, b.indices.tolist(), dict(b.failures)) for b in blocks] == [
        (0, 2, [0], {1: "x"}),
        (2, 3, [2], {}),
    ]
    assert all(block.indices.dtype == np.int64 for block in blocks)


def test_texts_of_like_length_share_a_request_and_come_back_in_order(triton: Any) -> None:
    texts = ["长" * (1 + row * 7 % 40) for row in range(40)]
    texts[3] = "BAD:3"
    with Client(triton.url, model="vit-b-16") as client:
        block = client.encode_texts([*texts, None], batch_size=8, errors="collect")  # type: ignore[list-item]
        alone = np.concatenate([client.encode_texts([text]) for row, text in enumerate(texts) if row != 3])
    assert list(block.failures) == [3, 40]
    assert block.indices.tolist() == [row for row in range(40) if row != 3]
    np.testing.assert_array_equal(block.features, alone)
    lengths = [[len(item) for item in request] for request in triton.requests if len(request) == 8]
    assert len(lengths) >= 4
    assert all(max(request) - min(request) <= 10 * 3 for request in lengths)  # UTF-8: three bytes a character
