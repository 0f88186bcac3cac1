"""Encoders in ONNX Runtime and in TensorRT, in one process: what a server can come to at best."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cnclip_builder.tensors import TOWERS, Tower

from cnclip_bench.gpu_report.inputs import batches
from cnclip_bench.gpu_report.memory import Meter
from cnclip_bench.gpu_report.repositories import subject_of
from cnclip_bench.gpu_report.rows import Fact, Report, Setup, Timing
from cnclip_bench.gpu_report.timing import time_runs
from cnclip_bench.subject import open_session, read_config

__all__ = ["time_images_in_onnxruntime", "time_plans", "time_texts_in_onnxruntime", "who_ran"]


def time_images_in_onnxruntime(setup: Setup, report: Report) -> None:
    """Times the served image encoder's file with the session that its config asks for."""
    _time_onnxruntime(setup, report, "image")


def time_texts_in_onnxruntime(setup: Setup, report: Report) -> None:
    """Times the served text encoder's file with the session that its config asks for."""
    _time_onnxruntime(setup, report, "text")


def _time_onnxruntime(setup: Setup, report: Report, tower: Tower) -> None:
    import onnxruntime

    subject = subject_of(setup, "onnxruntime")
    meter = Meter(setup.gpu)
    file = subject.served_file(tower)
    config, kind = _config(subject.repository / f"{subject.name}-{tower}-encoder")
    session = open_session(config, file, kind)
    meter.tell(report, "ONNX Runtime", f"{tower} encoder, loaded")
    device = "cuda" if setup.gpu else "cpu"
    (tensor,) = session.get_inputs()
    for length, rows in batches(tower, subject.arch.resolution):
        binding, value = session.io_binding(), onnxruntime.OrtValue.ortvalue_from_numpy(rows, device, 0)
        binding.bind_ortvalue_input(tensor.name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, device, 0)
        first, ms = time_runs(partial(session.run_with_iobinding, binding), setup.seconds)
        report(Timing("ONNX Runtime", tower, len(rows), length, first, ms))
    meter.tell(report, "ONNX Runtime", f"{tower} encoder, after these batches")
    report(Fact(f"{tower} encoder's nodes", who_ran(_profile(config, kind, file, {tensor.name: rows}))))


def who_ran(events: Iterable[Mapping[str, Any]]) -> str:
    """Says which execution providers ran the nodes of a profile of ONNX Runtime's: on a GPU all but a few are CUDA's.

    A provider that has no kernel for a node's version leaves it to the CPU, with copies there and back, and warns of
    nothing.
    """
    nodes: dict[str, Counter[str]] = {}
    copies = 0
    for event in events:
        if event.get("cat") != "Node" or not str(event.get("name")).endswith("_kernel_time"):
            continue
        kind = str(event["args"]["op_name"])
        if kind.startswith("Memcpy"):
            copies += 1
        else:
            name = str(event["args"]["provider"]).removesuffix("ExecutionProvider")
            nodes.setdefault(name, Counter())[kind] += 1
    most = max(nodes, key=lambda name: nodes[name].total())
    told = [f"{nodes.pop(most).total()} by {most}"]
    for name, kinds in nodes.items():
        named = ", ".join(f"{kind} {count}" if count > 1 else kind for kind, count in kinds.most_common())
        told.append(f"{kinds.total()} by {name} ({named})")
    return "; ".join([*told, f"{copies} copies between them"])


def _profile(config: dict[str, Any], kind: str, file: Path, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ONNX Runtime tells of one run of a served file."""
    import onnxruntime
    from cnclip_server.backends.onnxruntime.cnclip_ort_session import execution_providers, session_options

    options = session_options(config)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        providers = execution_providers(config, kind=kind, device_id=0)
        session = onnxruntime.InferenceSession(str(file), sess_options=options, providers=providers)
        session.run(None, inputs)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events


def _config(model: Path) -> tuple[dict[str, Any], str]:
    """A model's configuration as the stand-in gets it, and the kind of its instances."""
    from google.protobuf.json_format import MessageToDict

    config: dict[str, Any] = MessageToDict(read_config(model), preserving_proto_field_name=True)
    (group,) = config["instance_group"]
    return config, group["kind"].removeprefix("KIND_")


def time_plans(setup: Setup, report: Report) -> None:
    """Times both plans in TensorRT by Polygraphy, inputs and outputs on the card.

    Raises:
        MissingRequirementError: There is no TensorRT, or not what it needs.
    """
    from cnclip_builder.plans.api import load_tensorrt
    from cnclip_builder.plans.device import current_device
    from cnclip_builder.plans.requirements import require_machine

    tensorrt, subject = load_tensorrt(), subject_of(setup, "tensorrt")
    require_machine(tensorrt, current_device())  # it opens what pip's wheels have
    for tower in TOWERS:
        meter = Meter(setup.gpu)
        with tensorrt.open_on_device(subject.served_file(tower).read_bytes()) as lay:
            meter.tell(report, "TensorRT", f"{tower} plan, loaded")
            most = read_config(subject.repository / f"{subject.name}-{tower}-encoder").max_batch_size
            for length, rows in batches(tower, subject.arch.resolution):
                if len(rows) <= most:
                    first, ms = time_runs(lay(0, rows), setup.seconds)
                    report(Timing("TensorRT", tower, len(rows), length, first, ms))
