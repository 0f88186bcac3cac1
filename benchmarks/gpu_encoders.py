"""What served encoders take in ONNX Runtime alone, by the size of a batch: the first run of each size, and those after.

    python benchmarks/gpu_encoders.py build/repository/vit-b-16-image-encoder build/repository/vit-b-16-text-encoder

On a GPU inputs and outputs stay on the card, and options of the CUDA provider are those of Triton's configs (another
--sdpa-kernel to compare). Where there is none it times the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

BATCHES = (1, 8, 32, 64)


def open_encoder(model: Path, sdpa_kernel: int) -> onnxruntime.InferenceSession:
    """Opens a served encoder on a GPU, or on the CPU where ONNX Runtime has no other."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        cuda = {"sdpa_kernel": str(sdpa_kernel), "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
        providers = [("CUDAExecutionProvider", cuda), *providers]
    return onnxruntime.InferenceSession(str(model), options, providers=providers)


def inputs(tensor: Any, rows: int, length: int) -> np.ndarray[Any, Any]:
    """Random pixels, or texts that fill the length."""
    shape = [rows, *(length if isinstance(axis, str) else axis for axis in tensor.shape[1:])]
    random = np.random.default_rng(rows)
    if tensor.type == "tensor(uint8)":
        return random.integers(0, 256, shape, dtype=np.uint8)
    return random.integers(670, 8000, shape, dtype=np.int32)


def prepare(session: onnxruntime.InferenceSession, given: np.ndarray[Any, Any]) -> Callable[[], None]:
    """Binds inputs and outputs where the encoder runs; gives what runs it once and waits for it."""
    device = "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
    binding = session.io_binding()
    binding.bind_ortvalue_input(
        session.get_inputs()[0].name, onnxruntime.OrtValue.ortvalue_from_numpy(given, device, 0)
    )
    for output in session.get_outputs():
        binding.bind_output(output.name, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def seconds(run: Callable[[], None]) -> float:
    """How long one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(model: Path, batches: Sequence[int], lengths: Sequence[int], repeats: int, sdpa_kernel: int) -> list[str]:
    """Times an encoder.

    Returns:
        A row of a Markdown table for each batch: shape, the first run and the median of the others, and rows a second.
    """
    session = open_encoder(model, sdpa_kernel)
    (tensor,) = session.get_inputs()
    rows = []
    for length in lengths if tensor.type == "tensor(int32)" else (0,):
        for batch in batches:
            given = inputs(tensor, batch, length)
            run = prepare(session, given)
            first = seconds(run)
            median = statistics.median(seconds(run) for _ in range(repeats))
            shape = " x ".join(map(str, given.shape))
            rows.append(f"| {shape} | {first * 1e3:.2f} | {median * 1e3:.2f} | {batch / median:,.0f} |")
    return rows


def main() -> None:
    """Prints a table for each encoder."""
    parser = argparse.ArgumentParser(description="Milliseconds of served encoders in ONNX Runtime alone.")
    parser.add_argument("encoders", type=Path, nargs="+", help="folders of served encoders, or .onnx files")
    parser.add_argument("--batch", type=int, action="append", help=f"default: {', '.join(map(str, BATCHES))}")
    parser.add_argument("--length", type=int, action="append", help="of texts; default: 40, 52")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--sdpa-kernel", type=int, default=3, help="0 for ONNX Runtime's choice, 1 flash, 2 efficient")
    arguments = parser.parse_args()
    for place in arguments.encoders:
        files = [place] if place.is_file() else sorted(place.glob("*/model.onnx"))
        for file in files:
            rows = measure(
                file, arguments.batch or BATCHES, arguments.length or (40, 52), arguments.repeats, arguments.sdpa_kernel
            )
            print(f"{file}, ONNX Runtime {onnxruntime.__version__}, {onnxruntime.get_device()}\n")
            print("| input | first ms | median ms | rows/s |\n|---|---|---|---|", *rows, sep="\n", end="\n\n")


if __name__ == "__main__":
    main()
