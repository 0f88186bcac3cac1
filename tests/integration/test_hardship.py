"""What a server has to bear: clients that vanish, little shared memory, the largest batches, odd images before good ones."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from cnclip_client import Client
from cnclip_server import TritonServer
from cnclip_server._watch import children_of, parse_counts
from PIL import Image

pytestmark = pytest.mark.triton

MODEL = "demo"

# States of a connection in Linux's /proc/net/tcp.
ESTABLISHED, CLOSE_WAIT = "01", "08"


def picture(side: int, seed: int = 0, form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def heavy_picture(side: int, seed: int) -> bytes:
    """A JPEG of 0.9 MB that is decoded in a sixth of the time that noise takes: its bytes are comments."""
    buffer = io.BytesIO()
    few = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(few).resize((side, side)).save(buffer, "JPEG")
    comment = b"\xff\xfe\xff\xff" + bytes(0xFFFF - 2)
    return buffer.getvalue()[:2] + comment * 13 + buffer.getvalue()[2:]


def request(name: str, items: list[bytes]) -> grpc.InferInput:
    tensor = grpc.InferInput(name, [len(items), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[item] for item in items], dtype=object))
    return tensor


@dataclass(frozen=True)
class Served:
    """What `cnclip-serve` serves, and starts again when tritonserver dies."""

    grpc_url: str
    metrics_url: str

    def pending(self) -> int | None:
        """How many requests wait, for all models together; None from a server that is not there."""
        try:
            with urllib.request.urlopen(self.metrics_url, timeout=10) as response:  # noqa: S310
                return sum(counts.pending for counts in parse_counts(response.read().decode()).values())
        except OSError:
            return None

    def connections(self) -> int:
        """How many callers its gRPC port has, those included that left and whose connection it has not closed yet."""
        port = f":{int(self.grpc_url.rpartition(':')[2]):04X}"
        tables = [Path("/proc/net", table).read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table]
        return sum(row[1].endswith(port) and row[3] in (ESTABLISHED, CLOSE_WAIT) for row in rows)


@pytest.fixture
def served(demo_repository: Path) -> Iterator[Served]:
    code = "from cnclip_server._cli import main; main()"
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    command = [sys.executable, "-c", code, str(demo_repository), *ports]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        facts = dict(process.stdout.readline().split() for _ in range(3))
        yield Served(facts["grpc"], facts["metrics"])
        process.terminate()


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


FLOOD = """
import sys, numpy as np, tritonclient.grpc as grpc
client = grpc.InferenceServerClient(sys.argv[1])
tensor = grpc.InferInput("TEXT", [16, 1], "BYTES")
tensor.set_data_from_numpy(np.array([["红"]] * 16, dtype=object))
calls = [client.async_infer("demo-text", [tensor], lambda result, error: None) for _ in range(500)]
print("under way", flush=True)
sys.stdin.read()
"""


def test_thousands_of_cancelled_requests_and_clients_that_are_killed(served: Served) -> None:
    """Triton before 2.57 now and then dies of a request that is cancelled in the moment of its answer: it comes back."""
    texts, images = request("TEXT", ["红".encode()] * 16), request("IMAGE", [picture(300)] * 4)
    seen = 0
    with grpc.InferenceServerClient(served.grpc_url) as client:
        for model, tensor, count in (("demo-text", texts, 3000), ("demo-image", images, 200)):
            calls = [client.async_infer(model, [tensor], lambda result, error: None) for _ in range(count)]
            seen = max(seen, served.pending() or 0)
            for call in calls:
                call.cancel()
    assert seen > 10
    assert wait_for(lambda: served.pending() == 0, 60)
    with Client(served.grpc_url, model=MODEL) as survivor:
        assert survivor.encode_texts(["红"] * 5).shape == (5, survivor.info.embedding_size)
        assert served.connections() >= 1

    command = [sys.executable, "-c", FLOOD, served.grpc_url]
    floods = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    for flood in floods:
        with flood:
            assert flood.stdout is not None
            assert flood.stdout.readline() == b"under way\n"
            flood.kill()
    assert wait_for(lambda: served.pending() == 0, 60)
    # Their connections are gone too.
    assert wait_for(lambda: served.connections() == 0, 60)


def test_one_pixel_then_good_ones(demo_server: TritonServer) -> None:
    good = [picture(64, seed) for seed in range(16)]
    with Client(demo_server.grpc_url, model=MODEL) as client:
        before = client.encode_images(good)
        for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
            one = client.encode_images([picture(1, form=form)])
            assert np.isfinite(one).all()
            np.testing.assert_allclose(np.linalg.norm(one), 1, rtol=1e-5)
        np.testing.assert_allclose(client.encode_images([picture(1), *good])[1:], before, atol=1e-5)


def resident_kib(pid: int) -> int:
    """Memory of a process and all below it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return own + sum(map(resident_kib, children_of(pid)))


def test_memory_after_the_largest_batches(demo_server: TritonServer) -> None:
    """It keeps what the largest took, for the next one, and no more after many than after some; refused ones as well."""
    images = [heavy_picture(400, seed) for seed in range(2)] * 8
    images[5] = images[5][:-100]  # its last lines are missing
    with Client(demo_server.grpc_url, model=MODEL) as client:
        sizes = []
        for _ in range(60):  # the first fill a fresh server's arenas; one message of 14 MB kept of each would be 280 MB
            block = client.encode_images(images, batch_size=16, errors="collect")
            assert list(block.failures) == [5]
            sizes.append(resident_kib(demo_server.pid))
    assert max(sizes[40:]) - max(sizes[:40]) < 100_000
    time.sleep(1)
    assert resident_kib(demo_server.pid) <= max(sizes) + 5_000


LITTLE = """
import io, sys
from pathlib import Path
import numpy as np
import tritonclient.grpc as grpc
from cnclip_server import TritonServer
from PIL import Image

def picture(side):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()

def infer(items):
    tensor = grpc.InferInput("IMAGE", [len(items), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[item] for item in items], dtype=object))
    try:
        return client.infer("demo-image", [tensor]).as_numpy("image_features")
    except grpc.InferenceServerException as error:
        return str(error)

with TritonServer(Path(sys.argv[1]), grpc_port=0, http_port=0, metrics_port=0) as server:
    with grpc.InferenceServerClient(server.grpc_url) as client:
        small = [picture(64)] * 16
        before = infer(small)
        assert before.shape[0] == 16
        assert infer([picture(1000)] * 10).shape[0] == 10, "30 MB in one request"
        refused = infer([picture(1500)] * 14)  # 95 MB
        assert "No space left on device" in refused and "shared memory" in refused, refused
        np.testing.assert_allclose(infer(small), before, atol=1e-5)
        assert server.troubles() == []
"""


@pytest.fixture
def private_shared_memory() -> list[str]:
    """A command that runs another with a /dev/shm of 64 MB, Docker's default, that nobody else sees."""
    mount = ["sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]
    command = ["unshare", "--map-root-user", "--mount", *mount]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a /dev/shm of one's own needs a user namespace")
    return command


def test_a_small_dev_shm(private_shared_memory: list[str], demo_repository: Path) -> None:
    """A request that does not fit is refused with words that say why; everything else goes on."""
    result = subprocess.run(
        [*private_shared_memory, sys.executable, "-c", LITTLE, str(demo_repository)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_what_lies_in_the_repository_runs_and_not_what_is_installed(demo_repository: Path, tmp_path: Path) -> None:
    """The tests' own environment has this project installed: under the names of what a Python model takes along, too."""
    shutil.copytree(demo_repository, tmp_path / "repository")
    with (tmp_path / "repository/demo-image-preprocess/1/cnclip_pixels.py").open("a") as pixels:
        pixels.write("\n\ndef resizer():\n    return 'what lies here'\n")
    with (tmp_path / "repository/demo-text-tokenize/1/cnclip_token_ids.py").open("a") as tokens:
        tokens.write(
            "\n\nof_old = decoded\n\n\ndef decoded(text):\n"
            "    if text == b'x':\n        raise BadText('says what lies here')\n    return of_old(text)\n"
        )
    with TritonServer(tmp_path / "repository", grpc_port=0, http_port=0, metrics_port=0) as server:
        assert "images are resized by what lies here" in server.log_path.read_text()
        with Client(server.grpc_url, model=MODEL) as client:
            assert client.encode_texts(["x"], errors="collect").failures == {0: "says what lies here"}
