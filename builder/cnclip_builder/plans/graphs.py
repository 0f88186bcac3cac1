"""Writes what plans are made from: ONNX files that TensorRT's parsers take, proved, and the inputs to prove a plan on.

Imports onnx and onnxruntime: run it in a process of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cnclip_builder.export.artefact import Artefact
from cnclip_builder.export.check import open_session
from cnclip_builder.export.files import plain_input, served_input
from cnclip_builder.export.served import make_served_model, take_int32_ids
from cnclip_builder.parity.distance import TOLERANCES, check_parity
from cnclip_builder.parity.probes import make_probes
from cnclip_builder.plans.lowering import lower_opset
from cnclip_builder.plans.profiles import Profile, check_profiles
from cnclip_builder.plans.record import Edges, PlanJob
from cnclip_builder.plans.stage import plan_name
from cnclip_builder.system.atomic import sha256_of_file
from cnclip_builder.tensors import TENSORS, InputSpec

_OPSETS = (17, 16)


def plan_input(artefact: Artefact, edges: Edges) -> InputSpec:
    """The input tensor of a plan."""
    arch, tower = artefact.arch, artefact.tower
    return served_input(arch, tower) if tower == "text" or edges == "served" else plain_input(arch, tower)


def write_plan_sources(artefact: Artefact, edges: Edges, profiles: tuple[Profile, ...], folder: Path) -> PlanJob:
    """Writes a plan's ONNX files, weights and probes into a folder, and proves the ONNX files.

    Args:
        artefact: the encoder, of opset 18.
        edges: what the plan takes and gives.
        profiles: what it is to be tuned for.
        folder: where to; in the artefact's own folder the weights are shared, elsewhere they are copied.

    Raises:
        SettingError: a profile does not fit the encoder.
        BuildError: the graph holds an operator that can't be written for an older TensorRT.
        ParityError: a written ONNX file differs from PyTorch beyond the tolerance.
    """
    names, tensor = TENSORS[artefact.tower], plan_input(artefact, edges)
    check_profiles(profiles, tensor)
    plan = plan_name(artefact, edges)
    stem = plan.removesuffix(".trt")
    weights = artefact.weights
    if folder != artefact.folder:
        shutil.copyfile(weights, folder / weights.name)
    features: dict[int, npt.NDArray[np.float32]] = {}
    graphs = {str(opset): f"{stem}.opset{opset}.onnx" for opset in _OPSETS}
    probes = make_probes(artefact.arch)
    # Ids are int32 whatever the edges; cn_clip's images are float32.
    inputs = probes.image if (artefact.tower, edges) == ("image", "cn_clip") else probes.served_inputs(artefact.tower)
    expected = np.load(artefact.reference)
    for opset in _OPSETS:
        model = make_served_model(artefact) if edges == "served" else _with_int32_ids(artefact)
        lower_opset(model, opset)
        onnx.save_model(model, folder / graphs[str(opset)])
        features[opset] = _prove(folder / graphs[str(opset)], artefact, inputs, expected)
    np.savez(folder / f"{stem}.probes.npz", inputs=inputs, pytorch=expected, onnx=features[17])
    files = [*graphs.values(), f"{stem}.probes.npz", weights.name]
    return PlanJob(
        plan=plan,
        tower=artefact.tower,
        precision=artefact.precision,
        graphs=graphs,
        probes=f"{stem}.probes.npz",
        files={name: sha256_of_file(folder / name) for name in files},
        input=tensor,
        features=names.unnormalised,
        normalised=names.normalised if edges == "served" else None,
        profiles=profiles,
    )


def _with_int32_ids(artefact: Artefact) -> onnx.ModelProto:
    """cn_clip's graph; its ids become int32, as they do in the plans that TensorRT 8 makes of cn_clip's ONNX files."""
    model = onnx.load(artefact.path, load_external_data=False)
    if artefact.tower == "text":
        take_int32_ids(model.graph)
    return model


def _prove(
    path: Path, artefact: Artefact, inputs: npt.NDArray[Any], expected: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    names = TENSORS[artefact.tower]
    session = open_session(path)
    features: npt.NDArray[np.float32] = session.run([names.unnormalised], {session.get_inputs()[0].name: inputs})[0]
    check_parity(path.name, features, expected, TOLERANCES[artefact.precision])
    return features
