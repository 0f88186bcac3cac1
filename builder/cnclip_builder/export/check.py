"""Proves an ONNX artefact against PyTorch, in rungs: tensor names, axes, then values at several batches and lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from cnclip_builder.errors import ParityError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.files import plain_input, served_input
from cnclip_builder.export.tables import read_tables, require_same_tables
from cnclip_builder.parity.distance import TOLERANCES, Parity, Tolerance, check_parity
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.tensors import TENSORS, InputSpec, Precision

# Stricter than what FP32 has to hold elsewhere: beside PyTorch on one CPU it was never seen to be off by more than
# 1e-11. Of 18 swaps of two weights of the demo that 1e-6 let pass, 16 took them by 6e-8 to 9e-7.
_PROVED: dict[Precision, Tolerance] = {
    **TOLERANCES,
    "fp32": replace(TOLERANCES["fp32"], cosine_distance=1e-8),
}

_Signature = tuple[str, list[int | None]]
"""ONNX Runtime's name of a type, and the axes, None for a dynamic one."""


def check_artefact(artefact: Artefact, reference: npt.NDArray[np.float32], threads: int = 0) -> Parity:
    """Compares an exported encoder with PyTorch.

    Args:
        artefact: which; its precision's tolerance counts.
        reference: PyTorch's un-normalised features of the probes, `[N, D]`.
        threads: to compute with; 0 for all cores.

    Returns:
        The distances at the whole batch and full text length.

    Raises:
        ParityError: it does not load, or a rung does not hold; the message names the tensor, what was expected
            and what came.
    """
    path, arch, tower = artefact.path, artefact.arch, artefact.tower
    probes, names = make_probes(arch), TENSORS[tower]
    session = open_session(path, threads=threads)
    _check_tensors(path, session, plain_input(arch, tower), [names.unnormalised], arch.embedding_size)

    def run(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        features: npt.NDArray[np.float32] = session.run([names.unnormalised], {names.input: rows})[0]
        return features

    inputs = probes.inputs(tower)
    return _check_values(path, artefact, run, inputs, run(inputs), reference)


def check_served_encoder(path: Path, artefact: Artefact, threads: int = 0) -> Parity:
    """Compares a served encoder with PyTorch, from uint8 pixels or int32 ids to both kinds of features.

    Args:
        path: its `model.onnx`.
        artefact: what it was written from; its precision's tolerance and its reference count.
        threads: to compute with; 0 for all cores.

    Returns:
        The distances of the un-normalised features.

    Raises:
        ParityError: it does not load, or a rung does not hold.
    """
    arch, tower = artefact.arch, artefact.tower
    probes, names = make_probes(arch), TENSORS[tower]
    session = open_session(path, threads=threads)
    outputs = [names.unnormalised, names.normalised]
    _check_tensors(path, session, served_input(arch, tower), outputs, arch.embedding_size)

    def run(rows: npt.NDArray[Any]) -> list[npt.NDArray[np.float32]]:
        features: list[npt.NDArray[np.float32]] = session.run(outputs, {names.served_input: rows})
        return features

    inputs, reference = probes.served_inputs(tower), np.load(artefact.reference)
    raw, unit = run(inputs)
    norms = np.linalg.norm(unit, axis=1)
    if not np.allclose(norms, 1, atol=1e-5):
        raise ParityError(f"{path}: {names.normalised} have norms from {norms.min()} to {norms.max()} instead of 1")
    lengths = np.linalg.norm(reference, axis=1, keepdims=True)
    check_parity(f"{path.name}, {names.normalised}", unit * lengths, reference, _PROVED[artefact.precision])
    if tower == "text":
        require_same_tables(path, read_tables(path), read_tables(artefact.path))
    return _check_values(path, artefact, lambda rows: run(rows)[0], inputs, raw, reference)


def _check_values(
    path: Path,
    artefact: Artefact,
    run: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]],
    inputs: npt.NDArray[Any],
    features: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
) -> Parity:
    """Compares the features of the probes, of one alone, and of texts that are not padded to the longest."""
    tolerance = _PROVED[artefact.precision]
    parity = check_parity(f"{path.name} at batch {len(inputs)}", features, reference, tolerance)
    check_parity(f"{path.name} at batch 1", run(inputs[:1]), reference[:1], tolerance)
    if artefact.tower == "text":
        lengths = np.count_nonzero(inputs, axis=1).tolist()
        for row in (0, len(lengths) // 2):  # a short one, and a middling one
            alone = run(inputs[row : row + 1, : lengths[row]])
            check_parity(f"{path.name} at length {lengths[row]}", alone, reference[row : row + 1], tolerance)
    return parity


def open_session(model: Path | bytes, *, threads: int = 0, weights: Path | None = None) -> onnxruntime.InferenceSession:
    """Opens an ONNX model on the CPU.

    Args:
        model: the .onnx file, or what would be in it.
        threads: to run on; 0 for all cores.
        weights: the folder of the weights of a model that is no file.

    Raises:
        ParityError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if weights is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights))
    source, name = (model, "the model") if isinstance(model, bytes) else (str(model), model.name)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    # onnxruntime's own errors share no base class of their own.
    except Exception as error:
        raise ParityError(f"{name} does not load in ONNX Runtime: {error}") from error


def _check_tensors(
    path: Path, session: onnxruntime.InferenceSession, spec: InputSpec, outputs: list[str], embedding_size: int
) -> None:
    """Compares a model's input and outputs with what they should be.

    Raises:
        ParityError: a name, type or axis differs.
    """
    kind = "float" if spec.dtype == "float32" else spec.dtype
    taken: _Signature = (f"tensor({kind})", [axis if isinstance(axis, int) else None for axis in spec.axes])
    given: _Signature = ("tensor(float)", [None, embedding_size])
    for tensors, expected in (
        (session.get_inputs(), {spec.name: taken}),
        (session.get_outputs(), dict.fromkeys(outputs, given)),
    ):
        found = {
            tensor.name: (tensor.type, [size if isinstance(size, int) else None for size in tensor.shape])
            for tensor in tensors
        }
        if set(found) != set(expected):
            raise ParityError(f"{path.name} has tensors {sorted(found)} instead of {sorted(expected)}")
        for name, signature in expected.items():
            if found[name] != signature:
                raise ParityError(
                    f"{path.name}: tensor {name!r} is {_describe(*found[name])} instead of {_describe(*signature)}"
                )


def _describe(kind: str, axes: list[int | None]) -> str:
    return f"{kind} [{', '.join('dynamic' if size is None else str(size) for size in axes)}]"
