"""What is installed that a GPU's speed depends on; what is missing is said with how to get it."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cnclip_bench.gpu_report.rows import Fact, Report, Setup
from cnclip_bench.output import installed_version

__all__ = ["MEASURED_CARD", "look_around"]

MEASURED_CARD = "the card that is measured"
"""What its name is told under."""

_CARD = {
    "name": "name",
    "memory": "memory.total",
    "compute capability": "compute_cap",
    "power limit": "power.limit",
    "SM clock, at most": "clocks.max.sm",
    "driver": "driver_version",
}
# Of each library what its file is called, what needs it and what brings it.
_LIBRARIES = {
    "CUDA runtime": ("libcudart.so", "plans are proved with it: pip install nvidia-cuda-runtime"),
    "cuBLASLt": ("libcublasLt.so", "ONNX Runtime on a GPU needs its CUDA's: pip install 'cn-clip-triton[gpu]'"),
    "cuDNN": (
        "libcudnn.so",
        "ONNX Runtime takes attention from it: pip install 'cn-clip-triton[gpu]'",
    ),
    "TensorRT's library": ("libnvinfer.so", "plans need it: docs/tensorrt.md"),
}
_SYSTEM_FOLDERS = ("/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/local/lib")


def look_around(setup: Setup, report: Report) -> None:
    """Tells of the card, its driver, and each library."""
    facts: dict[str, Callable[[], Iterator[Fact]]] = {
        "card": _card,
        "PyTorch": _torch,
        "ONNX Runtime": _onnxruntime,
        "libraries": _libraries,
        "TensorRT": _tensorrt,
        "tritonserver": _tritonserver,
    }
    for what, find in facts.items():
        try:
            for fact in find():
                report(fact)
        except Exception as error:  # a broken one says so on import, in whatever way
            report(Fact(what, f"can't be looked at: {' '.join(str(error).split())}"))


def _card() -> Iterator[Fact]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        yield Fact("CUDA_VISIBLE_DEVICES", visible or "is empty, which hides every card: unset it to measure one")
    command = shutil.which("nvidia-smi")
    if command is None:
        yield Fact("card", "no nvidia-smi, so no driver: install NVIDIA's, or start the container with --gpus all")
        return
    query = f"--query-gpu={','.join(_CARD.values())}"
    listed = subprocess.run([command, query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
    if listed.returncode:
        yield Fact("card", f"nvidia-smi fails: {' '.join((listed.stdout + listed.stderr).split())}")
        return
    for number, line in enumerate(listed.stdout.strip().splitlines()):
        for what, value in zip(_CARD, line.split(", "), strict=False):
            yield Fact(f"card {number}: {what}", value)
    version = ctypes.c_int()
    if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0:
        yield Fact("CUDA that the driver has", f"{version.value // 1000}.{version.value % 1000 // 10}")


def _torch() -> Iterator[Fact]:
    import torch

    yield Fact("PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    if not torch.version.cuda:
        return
    if not torch.cuda.is_available():
        yield Fact("PyTorch's CUDA", "finds no card that it can use: compare its CUDA with the driver's above")
        return
    yield Fact(MEASURED_CARD, torch.cuda.get_device_name())
    major, minor = torch.cuda.get_device_capability()
    built = torch.cuda.get_arch_list()
    if built and (10 * major + minor) < min(int(arch.split("_")[1].rstrip("af")) for arch in built):
        yield Fact("PyTorch's CUDA", f"is for {', '.join(built)}, and this card is too old: sm_{major}{minor}")


def _onnxruntime() -> Iterator[Fact]:
    versions = {name: installed_version(name) for name in ("onnxruntime-gpu", "onnxruntime")}
    both = all(versions.values())
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    fix = ": both own one folder, and either may be broken: uninstall both, then install one" if both else ""
    yield Fact("ONNX Runtime", f"{shown}{fix}" or "is missing: pip install 'cn-clip-triton[gpu]'")
    import onnxruntime

    yield Fact("ONNX Runtime's providers", ", ".join(onnxruntime.get_available_providers()))
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        yield Fact("ONNX Runtime's CUDA", "is missing: pip uninstall onnxruntime, pip install 'cn-clip-triton[gpu]'")
        return
    try:
        _run_on_cuda()
    except Exception as error:  # its errors share no class of their own
        yield Fact("ONNX Runtime's CUDA", f"does not run: {' '.join(str(error).split())}")
    else:
        yield Fact("ONNX Runtime's CUDA", "runs")


def _run_on_cuda() -> None:
    """Runs a node on the card: its library is loaded with drivers and on cards, too, on which it can't run."""
    import numpy as np
    import onnx

    from cnclip_bench.subject import open_session

    text = '<ir_version: 8, opset_import: ["": 17]> one (float[1] x) => (float[1] y) { y = Neg (x) }'
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "one.onnx")
        onnx.save(onnx.parser.parse_model(text), file)
        open_session({"name": "one"}, file, "GPU").run(None, {"x": np.ones(1, np.float32)})


def _libraries() -> Iterator[Fact]:
    """Where each is to be found: LD_LIBRARY_PATH, the system, pip's wheels."""
    named = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    roots = [Path(entry) for entry in sys.path if entry]
    wheels = [folder for root in roots for folder in (*sorted(root.glob("nvidia/*/lib")), root / "tensorrt_libs")]
    folders = [*map(Path, (*named, *_SYSTEM_FOLDERS)), *wheels]
    for what, (name, fix) in _LIBRARIES.items():
        files = {file.resolve() for folder in folders for file in folder.glob(f"{name}*")}
        yield Fact(what, ", ".join(sorted(map(str, files))) or f"not found; {fix}")


def _tensorrt() -> Iterator[Fact]:
    if importlib.util.find_spec("tensorrt") is None:
        yield Fact("TensorRT", "is missing, and plans are passed over: install your tritonserver's, docs/tensorrt.md")
    else:
        import tensorrt

        yield Fact("TensorRT", str(tensorrt.__version__))
    polygraphy = installed_version("polygraphy")
    yield Fact("Polygraphy", polygraphy or "is missing, and plans need it: pip install 'cn-clip-triton[tensorrt]'")


def _tritonserver() -> Iterator[Fact]:
    from cnclip_server import find_binary

    binary = find_binary()
    backends = sorted(folder.name for folder in (binary.home / "backends").iterdir())
    own = "" if binary.has_onnxruntime else "; for onnxruntime the project's stand-in in Python"
    yield Fact("tritonserver", f"{binary.path}, with the backends {', '.join(backends)}{own}")
