"""Proves an ONNX artefact against PyTorch, in rungs: tensor names, axes, then values at several batches and lengths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from cnclip_builder.errors import ParityError
from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.tables import read_tables, require_same_tables
from cnclip_builder.parity.distance import TOLERANCES, Parity, Tolerance, check_parity
from cnclip_builder.parity.probes import Probes, make_probes
from cnclip_builder.tensors import TENSORS, Precision, Tower

_FEATURE_TYPE = "tensor(float)"

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
    inputs = probes.inputs(tower)
    session = open_session(path, threads=threads)
    axes: dict[Tower, _Signature] = {
        "image": ("tensor(float)", [None, 3, arch.resolution, arch.resolution]),
        "text": ("tensor(int64)", [None, None]),
    }
    check_signature(path, session.get_inputs(), {names.input: axes[tower]})
    check_signature(path, session.get_outputs(), {names.unnormalised: (_FEATURE_TYPE, [None, arch.embedding_size])})

    def features(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = session.run([names.unnormalised], {names.input: rows})[0]
        return result

    tolerance = _PROVED[artefact.precision]
    parity = check_parity(f"{path.name} at batch {len(inputs)}", features(inputs), reference, tolerance)
    check_parity(f"{path.name} at batch 1", features(inputs[:1]), reference[:1], tolerance)
    if tower == "text":
        for row, length in trimmed_rows(probes):
            check_parity(
                f"{path.name} at length {length}",
                features(inputs[row : row + 1, :length]),
                reference[row : row + 1],
                tolerance,
            )
    return parity


def trimmed_rows(probes: Probes) -> list[tuple[int, int]]:
    """A short and a middling text of the probes, each with its number of tokens."""
    lengths = np.count_nonzero(probes.text, axis=1)
    return [(row, int(lengths[row])) for row in (0, len(lengths) // 2)]


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


def check_signature(path: Path, tensors: list[Any], expected: dict[str, _Signature]) -> None:
    """Compares a model's inputs or outputs with what they should be.

    Args:
        path: named in the error.
        tensors: of `session.get_inputs()` or `get_outputs()`.
        expected: by name, ONNX Runtime's type and the axes, None for a dynamic one.

    Raises:
        ParityError: a name, type or axis differs.
    """
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
    arch, names = artefact.arch, TENSORS[artefact.tower]
    probes = make_probes(arch)
    inputs = probes.served_inputs(artefact.tower)
    reference = np.load(artefact.reference)
    session = open_session(path, threads=threads)
    axes: dict[Tower, _Signature] = {
        "image": ("tensor(uint8)", [None, arch.resolution, arch.resolution, 3]),
        "text": ("tensor(int32)", [None, None]),
    }
    check_signature(path, session.get_inputs(), {names.served_input: axes[artefact.tower]})
    features = (_FEATURE_TYPE, [None, arch.embedding_size])
    check_signature(path, session.get_outputs(), {names.unnormalised: features, names.normalised: features})
    raw, unit = session.run([names.unnormalised, names.normalised], {names.served_input: inputs})
    norms = np.linalg.norm(unit, axis=1)
    if not np.allclose(norms, 1, atol=1e-5):
        raise ParityError(f"{path}: {names.normalised} have norms from {norms.min()} to {norms.max()} instead of 1")
    tolerance = _PROVED[artefact.precision]
    lengths = np.linalg.norm(reference, axis=1, keepdims=True)
    check_parity(f"{path.name}, {names.normalised}", unit * lengths, reference, tolerance)
    alone = {"at batch 1": (0, inputs[:1])}
    if artefact.tower == "text":
        require_same_tables(path, read_tables(path), read_tables(artefact.path))
        alone |= {f"at length {length}": (row, inputs[row : row + 1, :length]) for row, length in trimmed_rows(probes)}
    for where, (row, sample) in alone.items():
        features_alone = session.run([names.unnormalised], {names.served_input: sample})[0]
        check_parity(f"{path.name} {where}", features_alone, reference[row : row + 1], tolerance)
    return check_parity(f"{path.name}, {names.unnormalised}", raw, reference, tolerance)
