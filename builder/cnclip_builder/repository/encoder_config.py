"""What the config of a served encoder holds besides its tensors: backend, files, profiles and optimisations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cnclip_builder.arch import Arch, Tower
from cnclip_builder.export.files import SERVED_FILENAME, served_input
from cnclip_builder.plans.profiles import BATCH, LENGTH, Profile, ShapeRange
from cnclip_builder.plans.record import PlanRecord
from cnclip_builder.repository.serving import ServingConfig

ENGINE_CACHE = "/tmp/cnclip-engines"  # noqa: S108  # on the server, for engines that ONNX Runtime builds and can rebuild
"""Where the onnxruntime backend keeps the engines of its TensorRT accelerator."""


@dataclass(frozen=True)
class Accelerator:
    """An execution provider of the onnxruntime backend.

    Attributes:
        name: Triton's name for it.
        parameters: its settings.
    """

    name: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class EncoderConfig:
    """What the template of an encoder is filled with.

    Attributes:
        backend: Triton's name of it.
        filename: of the model; with plans, of the one for the first kind of GPU.
        filenames_by_capability: plans by the compute capability that Triton chooses them by.
        profiles: numbers of the optimisation profiles that an instance may use.
        accelerator: of the onnxruntime backend, if one is chosen.
        graph_batches: batch sizes for which CUDA graphs are recorded.
    """

    backend: str
    filename: str
    filenames_by_capability: Mapping[str, str] = field(default_factory=dict)
    profiles: Sequence[str] = ()
    accelerator: Accelerator | None = None
    graph_batches: Sequence[int] = ()


def plan_filename(record: PlanRecord) -> str:
    """Names a plan in a repository by the kind of GPU it is for: "model.sm86.plan"."""
    return f"model.sm{record.device.compute_capability.replace('.', '')}.plan"


def encoder_config(serving: ServingConfig, arch: Arch, tower: Tower, plans: Sequence[PlanRecord]) -> EncoderConfig:
    """Gives the config of an encoder.

    Args:
        serving: how it is served.
        arch: its architecture.
        tower: which encoder.
        plans: its plans, one for each kind of GPU; none for ONNX.
    """
    if serving.platform == "onnxruntime":
        return EncoderConfig("onnxruntime", SERVED_FILENAME, accelerator=_accelerator(serving, arch, tower))
    sizes = [2**power for power in range(serving.max_batch_size.bit_length()) if 2**power <= serving.max_batch_size]
    return EncoderConfig(
        "tensorrt",
        plan_filename(plans[0]),
        {plan.device.compute_capability: plan_filename(plan) for plan in plans},
        [str(number) for number in range(len(plans[0].profiles))],
        graph_batches=sizes if serving.cuda_graphs and tower == "image" else (),
    )


def _accelerator(serving: ServingConfig, arch: Arch, tower: Tower) -> Accelerator | None:
    if serving.accelerator == "none":
        return None
    if serving.accelerator == "cuda":
        return Accelerator("cuda", {"use_ep_level_unified_stream": "1"})
    name, *shapes = _engine_shapes(serving, arch, tower)
    bounds = dict(zip(("min", "opt", "max"), shapes, strict=True))
    return Accelerator(
        "tensorrt",
        {
            "precision_mode": serving.precision.upper(),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": ENGINE_CACHE,
            # Without them an engine is built anew whenever a batch is larger or a text longer than any before.
            **{f"trt_profile_{bound}_shapes": f"{name}:{shape}" for bound, shape in bounds.items()},
        },
    )


def _engine_shapes(serving: ServingConfig, arch: Arch, tower: Tower) -> list[str]:
    tensor = served_input(arch, tower)
    ranges = {BATCH: ShapeRange(1, max(1, serving.max_batch_size // 2), serving.max_batch_size)}
    if tower == "text":
        ranges[LENGTH] = ShapeRange(3, max(3, serving.context_length // 2), serving.context_length)
    return [tensor.name, *("x".join(map(str, shape)) for shape in Profile(ranges).shapes(tensor))]
