"""Writes what plans are made from: ONNX files that TensorRT's parsers take, proved, and the inputs to prove a plan on.

Imports onnx and onnxruntime: run it in a process of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from cnclip_builder.arch import Arch, Tower
from cnclip_builder.export.check import open_session
from cnclip_builder.export.files import TENSORS, external_data_of, onnx_name, served_input
from cnclip_builder.export.served import make_served_model, take_int32_ids
from cnclip_builder.parity.distance import TOLERANCES, Precision, check_parity
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.plans.lowering import lower_opset
from cnclip_builder.plans.profiles import BATCH, PlanInput, Profile, check_profiles
from cnclip_builder.plans.record import PlanJob
from cnclip_builder.system.atomic import sha256_of_file

Edges = Literal["served", "cn_clip"]
"""What a plan takes and gives.

`served`: what Triton serves, uint8 pixels or int32 ids to both kinds of features; `vit-b-16.img.fp16.served.trt`.
`cn_clip`: what cn_clip's own scripts make, normalised float32 images or ids to un-normalised features, under their
name, `vit-b-16.img.fp16.trt`. A plan of one kind never has the other's name.
"""

_OPSETS = (17, 16)


def plan_input(arch: Arch, tower: Tower, edges: Edges) -> PlanInput:
    """The input tensor of a plan."""
    if tower == "text" or edges == "served":
        return served_input(arch, tower)
    return PlanInput(TENSORS[tower].input, "float32", (BATCH, 3, arch.resolution, arch.resolution))


def plan_name(arch: Arch, tower: Tower, precision: Precision, edges: Edges) -> str:
    """Names a plan: "vit-b-16.img.fp16.trt", as cn_clip's onnx_to_tensorrt.py does, or "….served.trt"."""
    return f"{_stem(arch, tower, precision, edges)}.trt"


def write_plan_sources(
    artefact: Path,
    reference: Path,
    arch: Arch,
    tower: Tower,
    precision: Precision,
    edges: Edges,
    profiles: tuple[Profile, ...],
    folder: Path,
) -> PlanJob:
    """Writes a plan's ONNX files, weights and probes into a folder, and proves the ONNX files.

    Args:
        artefact: the encoder's .onnx file, of opset 18.
        reference: PyTorch's un-normalised features of the probes, .npy, `[N, D]`.
        arch: the architecture.
        tower: which encoder.
        precision: of the artefact.
        edges: what the plan takes and gives.
        profiles: what it is to be tuned for.
        folder: where to; in the artefact's own folder the weights are shared, elsewhere they are copied.

    Raises:
        SettingError: a profile does not fit the encoder.
        BuildError: the graph holds an operator that can't be written for an older TensorRT.
        ParityError: a written ONNX file differs from PyTorch beyond the tolerance.
    """
    tensor = plan_input(arch, tower, edges)
    check_profiles(profiles, tensor)
    stem = _stem(arch, tower, precision, edges)
    weights = external_data_of(artefact)
    if weights.exists() and folder != artefact.parent:
        shutil.copyfile(weights, folder / weights.name)
    features: dict[int, npt.NDArray[np.float32]] = {}
    graphs = {str(opset): f"{stem}.opset{opset}.onnx" for opset in _OPSETS}
    inputs = _probe_inputs(arch, tower, edges)
    expected = np.load(reference)
    for opset in _OPSETS:
        model = make_served_model(artefact, arch, tower) if edges == "served" else _with_int32_ids(artefact, tower)
        lower_opset(model, opset)
        onnx.save_model(model, folder / graphs[str(opset)])
        features[opset] = _prove(folder / graphs[str(opset)], tower, precision, inputs, expected)
    probes = f"{stem}.probes.npz"
    np.savez(folder / probes, inputs=inputs, pytorch=expected, onnx=features[17])
    names = [*graphs.values(), probes, *([weights.name] if weights.exists() else [])]
    return PlanJob(
        plan=plan_name(arch, tower, precision, edges),
        tower=tower,
        precision=precision,
        graphs=graphs,
        probes=probes,
        files={name: sha256_of_file(folder / name) for name in names},
        input=tensor,
        features=TENSORS[tower].unnormalised,
        normalised=TENSORS[tower].normalised if edges == "served" else None,
        profiles=profiles,
    )


def _stem(arch: Arch, tower: Tower, precision: Precision, edges: Edges) -> str:
    stem = onnx_name(arch, tower, precision).removesuffix(".onnx")
    return f"{stem}.served" if edges == "served" else stem


def _with_int32_ids(artefact: Path, tower: Tower) -> onnx.ModelProto:
    """cn_clip's graph; its ids become int32, as they do in the plans that TensorRT 8 makes of cn_clip's ONNX files."""
    model = onnx.load(artefact, load_external_data=False)
    if tower == "text":
        take_int32_ids(model.graph)
    return model


def _probe_inputs(arch: Arch, tower: Tower, edges: Edges) -> npt.NDArray[Any]:
    probes = make_probes(arch)
    if tower == "text":
        return probes.text.astype(np.int32)
    return probes.pixels if edges == "served" else probes.image


def _prove(
    path: Path, tower: Tower, precision: Precision, inputs: npt.NDArray[Any], expected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    names = TENSORS[tower]
    session = open_session(path)
    features: npt.NDArray[np.float32] = session.run([names.unnormalised], {session.get_inputs()[0].name: inputs})[0]
    check_parity(path.name, features, expected, TOLERANCES[precision])
    return features
