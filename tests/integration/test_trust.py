"""Order, identity and memory of the real server under load and hostile input."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from cnclip_client import Client, Limits, Retry
from cnclip_pixels import resizer
from cnclip_server import TritonServer
from PIL import Image

from tests.templates.test_fuzz import FORMATS, damaged
from tests.templates.test_pixels import cn_clip_pixels

pytestmark = pytest.mark.triton

MODEL = "demo"


def pictures(count: int, seed: int) -> list[bytes]:
    """Small pictures, no two alike."""
    rng = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        colours = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(colours).resize((48, 48), Image.Resampling.NEAREST).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def sentences(count: int, seed: int) -> list[str]:
    """Texts of all lengths, no two alike."""
    rng = random.Random(seed)
    return [
        f"{number}" + "".join(rng.choices("红绿蓝圆方大小左右上下的", k=rng.randrange(1, 60)))
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_everyone_gets_their_own_rows(demo_server: TritonServer, seed: int) -> None:
    """Many clients at once, with overlapping picks and batch sizes of their own: each row is its item's."""
    images, texts = pictures(60, seed), sentences(60, seed)
    with Client(demo_server.grpc_url, model=MODEL) as client:
        alone = {
            "image": np.concatenate([client.encode_images([image]) for image in images]),
            "text": np.concatenate([client.encode_texts([text]) for text in texts]),
        }
    for features in alone.values():
        cosines = features @ features.T - 2 * np.eye(len(features))
        assert cosines.max() < 1 - 1e-4, "the items must be further apart than the tolerance below"

    def job(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        limits = Limits(in_flight=rng.choice([1, 3, 8]))
        with Client(demo_server.grpc_url, model=MODEL, limits=limits) as client:
            for _ in range(4):
                picked = rng.choices(range(60), k=rng.randrange(1, 90))
                batch_size = rng.randrange(1, 17)
                if rng.random() < 0.5:
                    kind, got = "image", client.encode_images([images[i] for i in picked], batch_size=batch_size)
                else:
                    kind, got = "text", client.encode_texts([texts[i] for i in picked], batch_size=batch_size)
                cosines = np.einsum("nd,nd->n", got, alone[kind][picked])
                assert cosines.min() > 1 - 1e-5, (kind, batch_size)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(job, range(20)))


def test_few_images_meet_in_a_batch_on_a_cpu(demo_server: TritonServer) -> None:
    """Of many waiting requests Triton takes as many as the config prefers, though 16 would fit."""

    def batches() -> dict[int, int]:
        found = server.get_inference_statistics(f"{MODEL}-image-encoder").model_stats[-1].batch_stats
        return {one.batch_size: one.compute_infer.count for one in found}

    with (
        grpc.InferenceServerClient(demo_server.grpc_url) as server,
        Client(demo_server.grpc_url, model=MODEL, limits=Limits(in_flight=32)) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        images, before = pictures(200, 5), batches()
        list(threads.map(lambda first: client.encode_images(images[first::8], batch_size=1), range(8)))
        taken = {size: count - before.get(size, 0) for size, count in batches().items()}
    used = {size for size, count in taken.items() if count}
    assert max(used) == 4


def test_damaged_images_among_good_ones(demo_server: TritonServer) -> None:
    """Each image has a feature exactly where cn_clip accepts it."""
    files = [data for name in FORMATS for data in damaged(name, 60, 7)]
    good = pictures(len(files), 7)
    mixed = [data for pair in zip(files, good, strict=True) for data in pair]
    with Client(demo_server.grpc_url, model=MODEL) as client:
        expected = client.encode_images(good)
        block = client.encode_images(mixed, errors="collect")
    accepted = [cn_clip_pixels(data, 32) is not None for data in mixed]
    assert [row not in block.failures for row in range(len(mixed))] == accepted
    np.testing.assert_allclose(block.filled()[1::2], expected, atol=1e-5)


# What decodes them, tests/templates/test_fuzz.py watches in a process of its own; what a server keeps of large requests,
# refused ones among them, test_hardship.py.
@pytest.mark.slow
def test_damaged_images_leave_nothing_behind(demo_server: TritonServer) -> None:
    """The stubs do not grow."""
    files = [data for name in FORMATS for data in damaged(name, 60, 7)]
    mixed = [data for pair in zip(files, pictures(len(files), 7), strict=True) for data in pair]
    with Client(demo_server.grpc_url, model=MODEL) as client:
        sizes: list[int] = []
        # malloc keeps, for each thread, the largest size that a damaged header has claimed of it. Which thread gets that
        # file is chance, so that there are late steps, but as many as threads; what leaks has no end.
        while len(sizes) < 14 or max(sizes[-4:]) - max(sizes[:-4]) >= 20_000:
            assert len(sizes) < 40, f"KiB after each round: {sizes}"
            client.encode_images(mixed, errors="collect")
            sizes.append(resident_kib(demo_server.pid))


def test_what_is_refused_is_logged(demo_server: TritonServer) -> None:
    time.sleep(0.5)  # another test's flood of refusals may have used up the lines of this moment
    with Client(demo_server.grpc_url, model=MODEL) as client:
        client.encode_images([b"no picture of mine"], errors="collect")
    lines = [line for line in demo_server.log_path.read_text().splitlines() if "refused" in line]
    # Triton writes the message as a JSON string after its own prefix.
    entry = json.loads(json.loads(lines[-1].partition("] ")[2]))
    assert (entry["model"], entry["row"], entry["bytes"]) == (f"{MODEL}-image-preprocess", 0, 18)
    assert "no picture of mine" not in demo_server.log_path.read_text()


def test_the_log_tells_who_resizes(demo_server: TritonServer) -> None:
    assert f"{MODEL}-image-preprocess: images are resized by {resizer()}" in demo_server.log_path.read_text()


def test_a_megabyte_of_text(demo_server: TritonServer) -> None:
    with Client(demo_server.grpc_url, model=MODEL) as client:
        features = client.encode_texts(["红" * 350_000, "红" * 52, "a" + "\u0301\u0316" * 200_000, "a"])
    np.testing.assert_allclose(features[0], features[1], atol=1e-6)
    np.testing.assert_allclose(features[2], features[3], atol=1e-6)


def resident_kib(pid: int) -> int:
    """Memory of a process and all below it."""
    status = Path(f"/proc/{pid}/status").read_text()
    own = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return own + sum(map(resident_kib, children))


def test_a_job_outlives_the_death_of_a_model_process(demo_repository: Path) -> None:
    """cnclip-serve starts the server again; the client waits, and every row is its item's."""
    command = [sys.executable, "-c", "from cnclip_server._cli import main; main()", str(demo_repository)]
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    texts = sentences(1200, 5)
    with subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            with Client(url, model=MODEL, retry=Retry.patient(60)) as client:
                expected = client.encode_texts(texts)
                blocks = []
                for block in client.iter_texts(texts):
                    blocks.append(block.filled())
                    if len(blocks) == 20:
                        os.kill(stub_of(process.pid, "text-tokenize"), signal.SIGKILL)
                np.testing.assert_allclose(np.concatenate(blocks), expected, atol=1e-5)
        finally:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
    assert "demo-text-tokenize died" in err
    assert "the server is back" in err


def stub_of(pid: int, kind: str) -> int:
    """The process below another that serves a model of this kind."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    for child in children:
        if f"{MODEL}-{kind}/" in Path(f"/proc/{child}/cmdline").read_text():
            return child
        if found := stub_of(child, kind):
            return found
    return 0
