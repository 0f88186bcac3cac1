"""On a local Ray cluster: the same files as without it, tables with features and reasons, and actors that are killed."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cnclip_client import Client, ModelChanged, Retry, ServerError, TooManyFailures
from cnclip_client.extraction import ExtractOptions, Sharding, extract, extract_parts
from cnclip_client.sources import Item, image_source, text_source
from PIL import Image

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install '.[ray]'")

from cnclip_client.ray import FeatureExtractor, RayEngine, _chunks, _Run  # noqa: E402

pytestmark = [
    # Of Ray's own, not of ours.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
OUTPUTS = ("{}", "{}.errors.jsonl")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=2,
        object_store_memory=100 * 1024 * 1024,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def connecting(*servers: Any) -> Any:
    return partial(Client, [server.url for server in servers], model="vit-b-16", retry=Retry.patient(30))


def test_actors_prepare_for_a_server_of_encoders_alone(cluster: None, serve: Any, fake: Any, tmp_path: Path) -> None:
    """Each in processes of its own, which divide the cores; texts as ids."""
    alone = serve(fake.image_encoder("vit-b-16", 32), fake.text_encoder("vit-b-16"))
    connect = partial(Client, alone.url, model="vit-b-16", prepare="auto", retry=Retry.patient(30))
    (tmp_path / "images").mkdir()
    for number in range(20):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"images/{number:02}.png")
    (tmp_path / "images/20.png").write_bytes(b"no image")
    (tmp_path / "texts.txt").write_text("".join(f"第{number}张图\n" for number in range(70)), encoding="utf-8")
    for source, actors in (
        (image_source(str(tmp_path / "images")), 2),
        (text_source(str(tmp_path / "texts.txt"), format="lines"), 1),
    ):
        found = []
        for engine in (None, RayEngine(connect, actors=actors)):
            output = tmp_path / f"{source.kind}-{engine is None}.jsonl"
            with connect() as client:
                extract(client, source, output, ExtractOptions(), engine=engine)
            found.append(output.read_bytes())
        assert found[0] == found[1]
        assert found[0].count(b"\n") == (20 if source.kind == "image" else 70)


def actor_processes() -> list[int]:
    """The processes of the actors of this test's cluster: Ray names them so, and its raylet is our child."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            raylet = _parent(folder)
            if b"ray::_Actor" in (folder / "cmdline").read_bytes() and _parent(Path("/proc", raylet)) == str(
                os.getpid()
            ):
                found.append(int(folder.name))
    return found


def _parent(folder: Path) -> str:
    return (folder / "stat").read_text().rpartition(")")[2].split()[1]


@pytest.fixture
def sources(tmp_path: Path) -> list[Any]:
    (tmp_path / "photos/deep").mkdir(parents=True)
    for number in range(60):
        (tmp_path / f"photos/deep/{number:03}.jpg").write_bytes(b"image %d" % number)
    (tmp_path / "photos/bad.jpg").write_bytes(b"BAD:torn")
    (tmp_path / "photos/empty.jpg").write_bytes(b"")
    lines = [b"%d\t%b\n" % (number, base64.b64encode(b"tsv %d" % number)) for number in range(700)]
    (tmp_path / "images.tsv").write_bytes(b"".join(lines) + b"broken\n")
    texts = [json.dumps({"text_id": number, "text": f"第{number}句 “A”"}) for number in range(1500)]
    (tmp_path / "texts.jsonl").write_text("\n".join([*texts, '{"text_id": 9999}', ""]))
    return [
        image_source(tmp_path / "photos"),
        image_source(tmp_path / "images.tsv"),
        text_source(tmp_path / "texts.jsonl"),
    ]


def same(folder: Path, one: str, two: str) -> None:
    for name in OUTPUTS:
        assert (folder / name.format(one)).read_bytes() == (folder / name.format(two)).read_bytes()


# The first of this file: beside the cluster that the others share, a second one now and then did not come up.
@pytest.mark.slow
def test_the_command_starts_a_cluster_of_its_own(tmp_path: Path, triton: Any) -> None:
    (tmp_path / "texts.txt").write_text("".join(f"第{row}句\n" for row in range(50)))
    command = [sys.executable, "-c", "from cnclip_client._cli import main; main()", "extract", "texts", "texts.txt"]
    environment = {**os.environ, "CNCLIP_URL": triton.url, "COLUMNS": "200"}
    environment.pop("RAY_ADDRESS", None)
    for output, options in {"near.jsonl": [], "far.jsonl": ["--engine", "ray", "--actors", "1"]}.items():
        done = subprocess.run(
            [*command, "-o", output, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("cnclip: 50 items, 0 failures"), done.stderr
    same(tmp_path, "near.jsonl", "far.jsonl")
    done = subprocess.run([*command, "-o", "x.jsonl", "--actors", "2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "give --engine ray" in done.stderr


def test_the_same_files_as_without_it(tmp_path: Path, cluster: None, serve: Any, fake: Any, sources: list[Any]) -> None:
    servers = [serve(*fake.both("vit-b-16")) for _ in range(2)]
    with connecting(*servers)() as client:
        # One actor each, since each is a process that imports all of it; there are more where they are killed.
        for number, (source, ending) in enumerate(zip(sources, ("jsonl", "parquet", "npy"), strict=True)):
            engine = RayEngine(connecting(*servers), actors=1)
            here, there = f"here{number}.{ending}", f"there{number}.{ending}"
            local = extract(client, source, tmp_path / here)
            far = extract(client, source, tmp_path / there, engine=engine)
            assert (far.items, far.failures) == (local.items, local.failures)
            assert local.failures > 0
            same(tmp_path, here, there)
            assert extract(client, source, tmp_path / there).already_finished


def test_outcomes_keep_the_order_of_the_items_whichever_is_done_first() -> None:
    cluster = SimpleNamespace(
        wait=lambda refs, num_returns, timeout: ([] if timeout == 0 else refs[-num_returns:], None),
        get=lambda ref: [ref],
        kill=lambda actor: None,
        exceptions=None,
    )
    actor = SimpleNamespace(encode=SimpleNamespace(remote=tuple))
    chunks: list[Any] = [[number] for number in range(20)]
    assert list(_Run(cluster, lambda: actor, 2).outcomes(iter(chunks))) == [tuple(chunk) for chunk in chunks]


def test_killed_actors_lose_nothing(tmp_path: Path, cluster: None, triton: Any, sources: list[Any]) -> None:
    triton.before_infer = lambda attempt, items: time.sleep(0.4)
    stop, killed = threading.Event(), []

    def kill() -> None:
        while not stop.wait(0.7) and len(killed) < 2:
            if triton.requests and (found := actor_processes()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])

    with connecting(triton)() as client:
        killing = threading.Thread(target=kill)
        killing.start()
        try:
            extract(client, sources[2], tmp_path / "far.jsonl", engine=RayEngine(connecting(triton), actors=2))
        finally:
            stop.set()
            killing.join()
        assert len(killed) == 2
        triton.forget()
        extract(client, sources[2], tmp_path / "near.jsonl")
    same(tmp_path, "far.jsonl", "near.jsonl")


@pytest.mark.parametrize("when", [pytest.param("at its first item", marks=pytest.mark.slow), "at one item"])
def test_actors_that_crash_again_and_again_end_the_job_with_a_word(
    tmp_path: Path, cluster: None, triton: Any, sources: list[Any], caplog: Any, monkeypatch: Any, when: str
) -> None:
    """Such as for want of memory, or with a library that is broken on the nodes."""
    monkeypatch.setattr("cnclip_client.ray._MOST_DEATHS", 3)  # not five, each of seconds
    url, here = triton.url, os.getpid()

    class Crashing(Client):
        def iter_texts(self, texts: Any, **options: Any) -> Any:
            texts = list(texts)
            if when == "at its first item" or any(text and "第600句" in text for text in texts):
                os._exit(9)
            return super().iter_texts(texts, **options)

    def crashing() -> Client:
        assert os.getpid() != here
        return Crashing(url, model="vit-b-16")

    output = tmp_path / "out.jsonl"
    with (
        connecting(triton)() as client,
        pytest.raises(ServerError, match="^3 Ray actors died .* the same 512 items") as e,
    ):
        extract(client, sources[2], output, ExtractOptions(checkpoint_s=0.01), engine=RayEngine(crashing, actors=1))
    # Where all die, it may be the chunk that waited behind the first.
    chunks = ("0 to 511", "512 to 1023") if when == "at its first item" else ("512 to 1023",)
    assert any(chunk in str(e.value) for chunk in chunks)
    assert "another takes its place" in caplog.text
    with connecting(triton)() as client:
        extract(client, sources[2], output)
        extract(client, sources[2], tmp_path / "near.jsonl")
    same(tmp_path, "out.jsonl", "near.jsonl")


def test_a_job_goes_on_under_the_other_engine(tmp_path: Path, cluster: None, triton: Any, sources: list[Any]) -> None:
    """The engine is a run's, not the job's: each goes on with what the other left."""
    few = ExtractOptions(max_errors=0, checkpoint_s=0.01)
    with connecting(triton)() as client:
        with pytest.raises(TooManyFailures):
            extract(client, sources[0], tmp_path / "a.jsonl", few)
        summary = extract(client, sources[0], tmp_path / "a.jsonl", engine=RayEngine(connecting(triton)))
        with pytest.raises(TooManyFailures):
            extract(client, sources[0], tmp_path / "b.jsonl", few, engine=RayEngine(connecting(triton)))
        extract(client, sources[0], tmp_path / "b.jsonl")
    assert (summary.items, summary.failures) == (62, 2)
    same(tmp_path, "a.jsonl", "b.jsonl")


def test_actors_are_held_to_the_model_of_the_job(
    tmp_path: Path, cluster: None, triton: Any, serve: Any, fake: Any, sources: list[Any]
) -> None:
    other = serve(*fake.both("vit-b-16", sha="b" * 64))
    with connecting(triton)() as client, pytest.raises(ModelChanged, match="aaaaaaaaaaaa -> bbbbbbbbbbbb"):
        extract(client, sources[2], tmp_path / "a.jsonl", engine=RayEngine(connecting(other), actors=1))
    assert not other.requests


def test_what_fails_in_an_actor_is_one_line(tmp_path: Path, cluster: None, triton: Any, sources: list[Any]) -> None:
    def broken() -> Client:
        raise LookupError("no such thing\nmore")

    with connecting(triton)() as client, pytest.raises(ServerError, match=r"\(LookupError: no such thing\)"):
        extract(client, sources[2], tmp_path / "a.jsonl", engine=RayEngine(broken, actors=1))

    def away() -> Client:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/mnt/photos/1.jpg")

    with connecting(triton)() as client, pytest.raises(OSError, match=r"not connected: '/mnt/photos/1.jpg'$"):
        extract(client, sources[2], tmp_path / "a.jsonl", engine=RayEngine(away, actors=1))


def in_this_process(extractor: Any, tables: list[Any]) -> Any:
    """What Ray Data calls in an actor, which it sends as bytes: its own way to it is slow, 13 s of a processor."""
    extractor = ray.cloudpickle.loads(ray.cloudpickle.dumps(extractor))()
    return pa.concat_tables(extractor(part) for table in tables for part in (table.slice(0, 64), table.slice(64)))


def by_ray_data(extractor: Any, tables: list[Any]) -> Any:
    import ray.data

    dataset = ray.data.from_arrow(tables).map_batches(
        extractor.func,
        fn_constructor_kwargs=extractor.keywords,
        batch_format="pyarrow",
        batch_size=64,
        concurrency=1,
    )
    # Not written to files: that is Ray's own, and tasks for it are processes more.
    return pa.concat_tables(dataset.iter_batches(batch_size=None, batch_format="pyarrow")).sort_by("id")


@pytest.mark.parametrize("extract_by", [in_this_process, pytest.param(by_ray_data, marks=pytest.mark.slow)])
def test_a_dataset_gets_features_and_reasons(
    request: pytest.FixtureRequest, triton: Any, fake: Any, extract_by: Any
) -> None:
    if extract_by is by_ray_data:
        request.getfixturevalue("cluster")
    images: list[bytes | None] = [b"image %d" % number for number in range(300)]
    images[7], images[8] = b"BAD:torn", None
    table = pa.table({"id": range(300), "bytes": pa.array(images, pa.binary())})
    options = {"kind": "image", "column": "bytes", "drop": ["bytes"], "normalize": False}
    extractor = partial(FeatureExtractor, connect=connecting(triton), **options)
    found = extract_by(extractor, [table.slice(start, 100) for start in (0, 100, 200)])
    assert found.column_names == ["id", "feature", "error"]
    assert found["id"].to_pylist() == list(range(300))
    assert {row: reason for row, reason in enumerate(found["error"].to_pylist()) if reason} == {7: "torn", 8: "is null"}
    for row, feature in enumerate(found["feature"].to_pylist()):
        if row in (7, 8):
            assert feature is None
        else:
            np.testing.assert_array_equal(feature, fake.features_of(b"image %d" % row))


def test_addresses_go_to_actors_as_they_are_and_paths_as_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    given = ["s3://bucket/a.jpg", "https://example.org/b.jpg?size=1", "photos/c.jpg"]
    (chunk,) = _chunks("image", iter([Item(one, one) for one in given]), lambda one: "")
    assert [item.value for item in chunk] == [*given[:2], "/photos/c.jpg"]


def test_another_batch_format_is_refused() -> None:
    with pytest.raises(TypeError, match="batch_format='pyarrow'"):
        FeatureExtractor(lambda: Client(model="m"), "text", column="text")({"text": ["a"]})


@pytest.mark.slow  # parts by themselves, and Ray by itself, are in the quick ones
def test_parts_are_the_same_as_without_it(
    tmp_path: Path, cluster: None, serve: Any, fake: Any, sources: list[Any]
) -> None:
    server = serve(*fake.both("vit-b-16"))
    engine = RayEngine(connecting(server), actors=2)
    with connecting(server)() as client:
        for number, source in enumerate(sources):
            for index in range(2):
                sharding = Sharding(items=97, format="jsonl", index=index, jobs=2)
                here, there = f"here{number}", f"there{number}"
                local = extract_parts(client, source, tmp_path / here, sharding=sharding)
                far = extract_parts(client, source, tmp_path / there, sharding=sharding, engine=engine)
                assert (far.items, far.failures, far.parts) == (local.items, local.failures, local.parts)
            names = sorted(path.name for path in (tmp_path / here).glob("part-*.jsonl"))
            assert names == sorted(path.name for path in (tmp_path / there).glob("part-*.jsonl"))
            for name in names:
                assert (tmp_path / here / name).read_bytes() == (tmp_path / there / name).read_bytes()
