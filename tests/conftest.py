"""What all tests share: models made once for all workers, and the real images and captions if they are at hand."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import logging
import os
import pickle
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.client import OK, HTTPConnection
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from cnclip_bench.jobs import moto_server
from cnclip_builder.arch import Arch, get_arch
from cnclip_builder.artefacts.maker import Artefacts, build_artefacts
from cnclip_builder.build import BuildRequest, build_repository
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.tensors import PRECISIONS, TOWERS
from cnclip_server import TritonServer
from PIL import Image

T = TypeVar("T")

# Threads of torch that wait burn the cores that other workers' tests need; torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Triton takes three seconds to let go of its models. Those that test how a server ends call `stop` or a command.
TritonServer.__exit__ = lambda self, *_: self.stop(0)  # type: ignore[method-assign]

# Some tests run `make`: the FLAGS of `make test FLAGS=...` are pytest's, and not for what they ask it.
for name in ("FLAGS", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES"):
    os.environ.pop(name, None)

# A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
DEMO = ROOT / "examples/demo"

# The environment of a process that takes everything for ASCII: Python neither takes the C locale for UTF-8's nor is told so.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
starts_in_ascii = pytest.mark.skipif(
    sys.version_info < (3, 13) and not str(ROOT).isascii(),
    reason="Python before 3.13 doesn't start in ASCII where an editable install's path is not",
)

# Of memory, for a worker with torch and Ray imported, its servers and its builds.
WORKER_BYTES = 3 * 2**30

TINY_VIT: dict[str, Any] = {
    "embed_dim": 48,
    "image_resolution": 32,
    "vision_layers": 2,
    "vision_width": 64,
    "vision_patch_size": 8,
    "vocab_size": 21128,
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 32,
    # BERT's own 0.02 would leave so narrow a model features that differ by no more than FP16's rounding.
    "text_initializer_range": 0.1,
    "text_intermediate_size": 64,
    "text_max_position_embeddings": 80,
    "text_num_attention_heads": 2,
    "text_num_hidden_layers": 2,
    "text_type_vocab_size": 2,
}
TINY_RESNET: dict[str, Any] = {
    **TINY_VIT,
    "image_resolution": 64,
    "vision_layers": [1, 1, 1, 1],
    "vision_width": 8,
    "vision_patch_size": None,
}


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Pays no heed to finalizers that fail of too deep a recursion: a test's, of JSON nested so, as garbage is collected."""
    report = sys.unraisablehook
    sys.unraisablehook = lambda told: None if isinstance(told.exc_value, RecursionError) else report(told)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """Imports cn_clip before any test does, which would bring torch's compiler in: for two seconds more."""
    import_module("cnclip_builder.cn_clip")


# Until all is imported there is none, and looking for it takes two of the fifteen seconds.
gc.disable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Leaves what torch, Ray and all tests brought out of every later collection of garbage."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: one more than there are cores, since many tests wait, and no more than memory has room for."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min(len(os.sched_getaffinity(0)) + 1, memory // WORKER_BYTES), 1)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], T]], T]:
    """Makes what is costly once for all workers: who asks first makes it, and who asks meanwhile waits.

    `once(name, make)` gives what `make(folder)` returned, in this worker or another. What is in the folder belongs to
    all: to be read, or copied.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each worker has a folder in that of the run
    root = root / "once"
    root.mkdir(exist_ok=True)

    def get(name: str, make: Callable[[Path], T]) -> T:
        folder, made = root / name, root / f"{name}.pickle"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                value = make(folder)
                made.write_bytes(pickle.dumps(value))
            value = pickle.loads(made.read_bytes())
        return value

    return get


@pytest.fixture(autouse=True)
def pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts Pillow's limit of pixels back after each test: what serves sets it for the whole process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@contextmanager
def umask_of(umask: int) -> Iterator[None]:
    """Makes new files as whoever has this umask, in the whole process."""
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def ordinary_user() -> Iterator[None]:
    """Forbids to root, too, in this thread, what modes of files forbid, and ports below 1024."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h: version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # two times what is in effect, what may be, what is inherited
    assert libc.capget(header, sets) == 0
    in_effect = sets[0]
    sets[0] &= ~(1 << 1 | 1 << 2 | 1 << 10)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_NET_BIND_SERVICE
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = in_effect
    assert libc.capset(header, sets) == 0


@pytest.fixture
def port_of_root(ordinary_user: None) -> int:
    """A port that only root may listen on."""
    if Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text(encoding="ascii") == "0\n":
        pytest.skip("every port is everybody's here, as in a container of Docker's")
    return 1


@pytest.fixture(scope="session")
def shared_images() -> list[Path]:
    """Real images, ordinary and hostile; the test is skipped where they are not at hand."""
    folder = SHARED_DATA / "images"
    images = sorted(path for path in folder.glob("*.*") if path.suffix not in {".csv", ".md"})
    if not images:
        pytest.skip(f"no real images beside the checkout ({folder.name}/ of shared/data)")
    return images


@pytest.fixture(scope="session")
def shared_captions() -> list[str]:
    """Real Chinese captions; the test is skipped where they are not at hand."""
    path = SHARED_DATA / "captions" / "captions.jsonl"
    if not path.exists():
        pytest.skip("no real captions beside the checkout (captions/ of shared/data)")
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Arch:
    """A ViT of Chinese-CLIP's kind, small enough to build in seconds."""
    return _write_arch(tmp_path_factory.mktemp("arch"), "tiny-vit", TINY_VIT)


@pytest.fixture(scope="session")
def tiny_resnet(tmp_path_factory: pytest.TempPathFactory) -> Arch:
    """A ResNet of Chinese-CLIP's kind, small enough to build in seconds."""
    return _write_arch(tmp_path_factory.mktemp("arch"), "tiny-rn", TINY_RESNET)


@pytest.fixture(scope="session")
def resnet_checkpoint(tiny_resnet: Arch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tiny ResNet whose residual branches count; fresh ones are zero at first."""
    import torch
    from cn_clip.clip.model import CLIP

    torch.manual_seed(8)
    weights = CLIP(**tiny_resnet.model_info).state_dict()
    for name, value in weights.items():
        if "bn3.weight" in name or "running_var" in name:
            value.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("weights") / "resnet.pt"
    torch.save({"state_dict": weights}, path)
    return path


@pytest.fixture(scope="session")
def tiny_artefacts(tiny_vit: Arch, once: Any, tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """Both encoders of a tiny ViT, random:0, in both precisions; the checkpoint is beside their folder."""

    def make(folder: Path) -> tuple[Path, Artefacts]:
        place = {"download_root": folder, "towers": TOWERS, "precisions": PRECISIONS}
        return folder, build_artefacts(tiny_vit, "random:0", folder / "artefacts", **place)

    made, artefacts = once("tiny-vit", make)
    # Tests write beside them.
    own = Path(shutil.copytree(made, tmp_path_factory.mktemp("tiny-vit") / "made"))
    file = replace(artefacts.checkpoint.file, path=own / artefacts.checkpoint.file.path.name)
    items = (replace(item, folder=own / "artefacts") for item in artefacts.items)
    return replace(artefacts, checkpoint=replace(artefacts.checkpoint, file=file), items=tuple(items))


def demo_request(folder: Path, **changes: Any) -> BuildRequest:
    """To build the bundled checkpoint in a folder, FP32, for a CPU: `repository`, and `artefacts` beside it."""
    request = BuildRequest(
        arch=get_arch(str(DEMO / "demo.json")),
        checkpoint=str(DEMO / "clip_cn_demo.pt"),
        serving=ServingConfig(target="cpu", precision="fp32", context_length=52, max_batch_size=16),
        repository=folder / "repository",
        artefacts=folder / "artefacts",
        download_root=folder,
    )
    return replace(request, **changes)


@pytest.fixture(scope="session")
def demo_repository(once: Any) -> Path:
    """The repository of the bundled checkpoint, model `demo`, FP32; `artefacts` is beside it."""

    def make(folder: Path) -> Path:
        request = demo_request(folder)
        build_repository(request)
        return request.repository

    return once("demo", make)


@pytest.fixture(scope="session")
def demo_artefacts(demo_repository: Path) -> Path:
    """The folder of its artefacts: a build that finds a copy of it where it keeps its own need not export."""
    return demo_repository.parent / "artefacts" / "demo"


@pytest.fixture(scope="session")
def demo_server(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """It, served. Tests that stop or harm a server start one of their own."""
    log = tmp_path_factory.mktemp("log") / "tritonserver.log"
    with TritonServer(demo_repository, grpc_port=0, http_port=0, metrics_port=0, log_file=log) as server:
        yield server
        # Why it died: of that the tests that needed it say nothing.
        assert server.wait(0) is None, log.read_text()[-4000:]


@pytest.fixture
def builder_log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The builder's log records from INFO on."""
    with caplog.at_level(logging.INFO, logger="cnclip_builder"):
        yield caplog


def _write_arch(folder: Path, name: str, info: dict[str, Any]) -> Arch:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(info), encoding="utf-8")
    return get_arch(str(path))


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A local S3, as the environment of whoever uses it."""
    for library in ("moto", "s3fs"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    with moto_server(tmp_path_factory.mktemp("s3") / "log") as url:
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4()}"
    # Not by s3fs: what it leaves to the garbage collector may still be closing its connections when another test is watched.
    with closing(HTTPConnection(urlsplit(s3["AWS_ENDPOINT_URL"]).netloc, timeout=60)) as connection:
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == OK
    return name
