"""What building and serving cost: seconds, and memory of all processes together."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cnclip_builder.tensors import TOWERS

from cnclip_bench.inputs import repeated
from cnclip_bench.processes import proportional_mib, watching
from cnclip_bench.requests import encode
from cnclip_bench.serving_settings import copy_ensemble, set_max_batch_size
from cnclip_bench.subject import checkpoint_file, serving

if TYPE_CHECKING:
    from cnclip_builder.arch import Arch
    from cnclip_builder.tensors import Tower

    from cnclip_bench.subject import Subject

__all__ = ["BuildCost", "Footprint", "StartUp", "build_costs", "footprints", "start_up"]


@dataclass(frozen=True)
class BuildCost:
    """What one way of building took.

    Attributes:
        arch: Of the checkpoint.
        what: The way: `make repo`, or cn_clip's `pytorch_to_onnx.py`.
        weights_mib: The checkpoint's weights in FP32.
        seconds: From start to end.
        peak_mib: Of all its processes together.
        problem: Why it came to nothing, if it did.
    """

    arch: str
    what: str
    weights_mib: float
    seconds: float
    peak_mib: float
    problem: str = ""


@dataclass(frozen=True)
class StartUp:
    """How long a server took until it was ready.

    Attributes:
        arch: That it serves.
        weights_mib: The weights of its encoders.
        seconds: Of each start.
        idle_mib: Memory of all its processes once it was ready.
    """

    arch: str
    weights_mib: float
    seconds: tuple[float, ...]
    idle_mib: float


@dataclass(frozen=True)
class Footprint:
    """A server's memory after its largest batch.

    Attributes:
        max_batch_size: That it is configured for, and that was asked for.
        idle_mib: Memory of all its processes once it was ready.
        peak_mib: The most while it answered.
    """

    max_batch_size: int
    idle_mib: float
    peak_mib: float


def build_costs(named: str, checkpoint: str) -> list[BuildCost]:
    """Builds a checkpoint by `cnclip-build repository` and by cn_clip's own script, one after the other.

    Both write FP32 and FP16 of both encoders; ours proves each against PyTorch, and makes a repository.

    Args:
        named: The architecture, or a JSON file of one; cn_clip's script knows the official ones alone.
        checkpoint: random:SEED, or a .pt file.
    """
    from cnclip_builder.arch import get_arch
    from cnclip_builder.checkpoint.load import expected_shapes

    arch = get_arch(named)
    file = checkpoint_file(checkpoint, arch).resolve()
    weights_mib = 4 * sum(map(math.prod, expected_shapes(arch).values())) / 2**20
    found = []
    for what in ("make repo", "pytorch_to_onnx.py"):
        with tempfile.TemporaryDirectory(prefix="cnclip-bench-") as folder:
            command = _our_build(named, file, folder) if what == "make repo" else _their_build(arch, file, folder)
            found.append(_timed(arch.name, what, weights_mib, command, folder))
    return found


def _our_build(arch: str, checkpoint: Path, folder: str) -> list[str]:
    # It runs elsewhere, where the path of a file would lead to nothing.
    arch = str(Path(arch).resolve()) if arch.endswith(".json") else arch
    command = str(Path(sys.executable).with_name("cnclip-build"))
    places = [f"--{place}={folder}/{place}" for place in ("repository", "artefacts", "download-root")]
    return [command, "repository", f"--arch={arch}", f"--checkpoint={checkpoint}", "--target=cpu", *places]


def _their_build(arch: Arch, checkpoint: Path, folder: str) -> list[str]:
    options = [
        f"--model-arch={arch.name}",
        f"--pytorch-ckpt-path={checkpoint}",
        f"--save-onnx-path={folder}/{arch.slug}",
    ]
    return [sys.executable, "-m", "cnclip_bench.pytorch_to_onnx", *options, "--convert-text", "--convert-vision"]


def _timed(arch: str, what: str, weights_mib: float, command: list[str], folder: str) -> BuildCost:
    """Runs a command to its end, and tells the last line that it wrote if it failed."""
    # What a command prints would otherwise come when it ends, after the error that it ended with.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        with watching(process.pid) as peak:
            output, _ = process.communicate()
        seconds = time.perf_counter() - began
    lines = output.strip().splitlines() or ["it said nothing"]
    return BuildCost(arch, what, weights_mib, seconds, peak.mib, lines[-1] if process.returncode else "")


def start_up(subject: Subject, rounds: int) -> StartUp:
    """Starts a server of one model several times, after once that does not count."""
    from cnclip_server import TritonServer

    seconds, idle = [], 0.0
    with tempfile.TemporaryDirectory(prefix="cnclip-bench-") as folder:
        for tower in TOWERS:
            copy_ensemble(subject.repository, subject.name, tower, Path(folder))
        for _ in range(1 + rounds):
            began = time.perf_counter()
            with TritonServer(Path(folder), grpc_port=0, http_port=0, metrics_port=0) as server:
                seconds.append(time.perf_counter() - began)
                idle = max(idle, proportional_mib(server.pid))
    files = [file for tower in TOWERS for file in subject.served_file(tower).parent.iterdir()]
    weights = sum(file.stat().st_size for file in files) / 2**20
    return StartUp(subject.arch.name, weights, tuple(seconds[1:]), idle)


def footprints(subject: Subject, tower: Tower, sizes: Sequence[int]) -> list[Footprint]:
    """Serves an ensemble with each maximum of the batch, and asks for as many rows at once, twice."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="cnclip-bench-") as folder:
            copy_ensemble(subject.repository, subject.name, tower, Path(folder))
            set_max_batch_size(Path(folder), subject.name, tower, size)
            with serving(replace(subject, repository=Path(folder))) as (server, client):
                idle = proportional_mib(server.pid)
                given = repeated(subject.items(tower), size)
                with watching(server.pid) as peak:
                    for _ in range(2):
                        encode(client, tower, given, size)
                found.append(Footprint(size, idle, peak.mib))
    return found
