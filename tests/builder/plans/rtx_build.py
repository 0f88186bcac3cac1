"""Builds every plan of a folder with TensorRT-RTX, of both ONNX files; run as a program, it prints what came of it.

    python rtx_build.py FOLDER

TensorRT-RTX has TensorRT's interface and ONNX parser, and builds without a GPU. It is another builder: what it takes
parses and has valid shapes in every profile; speed, kernels and features of a TensorRT plan it says nothing about.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path


def load_tensorrt_rtx() -> None:
    """Imports TensorRT-RTX's bindings on the libraries that the wheel of ONNX Runtime's provider carries."""
    spec = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    assert spec
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    for pattern in ("libcudart.so.*", "libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*"):
        ctypes.CDLL(str(next(folder.glob(pattern))), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_rtx_bindings

    sys.modules["tensorrt_rtx"] = tensorrt_rtx_bindings
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"


def main(folder: Path) -> None:
    load_tensorrt_rtx()
    from cnclip_builder.plans.api import BuildOptions, load_tensorrt
    from cnclip_builder.plans.record import read_jobs

    tensorrt = load_tensorrt()
    built = {}
    for job in read_jobs(folder):
        for opset, graph in job.graphs.items():
            plan = tensorrt.build(
                folder / graph, job.input, job.profiles, job.precision, BuildOptions(512), folder / "timing.cache"
            )
            built[f"{job.plan} opset {opset}"] = len(plan)
    print(json.dumps({"version": tensorrt.version, "strongly_typed": tensorrt.strongly_typed, "built": built}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
