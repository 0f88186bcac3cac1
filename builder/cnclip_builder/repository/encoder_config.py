"""What the config of a served encoder holds: tensors, backend, files, instances, batching, profiles, optimisations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cnclip_builder.arch import Arch
from cnclip_builder.export.files import SERVED_FILENAME, served_input
from cnclip_builder.plans.profiles import default_profiles
from cnclip_builder.plans.record import PlanRecord
from cnclip_builder.repository.graphs import served_graph
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.tensors import LENGTH, TENSORS, InputSpec, Tower

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
class Warmup:
    """A batch that each instance computes before it counts as ready.

    Attributes:
        name: what the server's log calls it.
        batch_size: its rows; Triton repeats the one that is in the file.
        dims: of a row.
        file: in the model's folder `warmup`.
    """

    name: str
    batch_size: int
    dims: Sequence[int]
    file: str


@dataclass(frozen=True)
class EncoderConfig:
    """What the template of an encoder is filled with, besides its name, its versions and its largest batch.

    Attributes:
        backend: Triton's name of it.
        filename: of the model; with plans, of the one for the first kind of GPU.
        input: name of the input tensor.
        data_type: of the input, as Triton names it.
        dims: of the input without the batch, -1 for one of any size.
        warmups: the batches that warm it up.
        outputs: names of the features, float32.
        embedding_size: length of a feature.
        instances: copies of the encoder, a GPU's for each of its GPUs.
        kind: Triton's kind of instance.
        queue_delay_microseconds: how long a request waits for others to share its batch.
        max_queue_size: requests that may wait; 0 for any number.
        merged_batch_size: rows up to which Triton makes one batch of several requests; 0 for the largest.
        pinned_memory: copy to and from the GPU by way of page-locked memory; None where there is no GPU.
        parameters: of the backend.
        filenames_by_capability: plans by the compute capability that Triton chooses them by.
        profiles: numbers of the optimisation profiles that an instance may use.
        accelerators: execution providers of the onnxruntime backend whose settings are not its own defaults.
        graphs: what CUDA graphs are recorded of: a batch's size and the dims of a row.
        gpus: numbers of the GPUs that serve it; empty for all, and on a CPU.
    """

    backend: str
    filename: str
    input: str
    data_type: str
    dims: Sequence[int]
    warmups: Sequence[Warmup]
    outputs: Sequence[str]
    embedding_size: int
    instances: int
    kind: str
    queue_delay_microseconds: int
    max_queue_size: int
    merged_batch_size: int
    pinned_memory: bool | None
    parameters: Mapping[str, str]
    filenames_by_capability: Mapping[str, str] = field(default_factory=dict)
    profiles: Sequence[str] = ()
    accelerators: Sequence[Accelerator] = ()
    graphs: Sequence[tuple[int, Sequence[int]]] = ()
    gpus: Sequence[int] = ()


def plan_filename(record: PlanRecord) -> str:
    """Names a plan in a repository by the kind of GPU it is for: "model.sm86.plan"."""
    return f"model.sm{record.device.compute_capability.replace('.', '')}.plan"


def encoder_config(
    serving: ServingConfig, arch: Arch, tower: Tower, plans: Sequence[PlanRecord], engines: str
) -> EncoderConfig:
    """Gives the config of an encoder.

    Args:
        serving: how it is served.
        arch: its architecture.
        tower: which encoder.
        plans: its plans, one for each kind of GPU; none for ONNX.
        engines: what the names of engines begin with that ONNX Runtime's TensorRT builds and keeps of it.
    """
    settings, spec, names = serving.encoder(tower), served_input(arch, tower), TENSORS[tower]
    plain = EncoderConfig(
        backend=serving.platform,
        filename=SERVED_FILENAME,
        input=spec.name,
        data_type=f"TYPE_{spec.dtype.upper()}",
        dims=[-1 if isinstance(axis, str) else axis for axis in spec.axes[1:]],
        warmups=_warmups(serving, spec, tower),
        outputs=(names.normalised, names.unnormalised),
        embedding_size=arch.embedding_size,
        instances=settings.instances,
        kind=serving.encoder_kind,
        queue_delay_microseconds=settings.queue_delay_microseconds,
        max_queue_size=serving.max_queue_size,
        merged_batch_size=settings.merged_batch_size,
        pinned_memory=serving.pinned_memory if serving.target == "gpu" else None,
        parameters=_parameters(serving, arch, tower),
        gpus=serving.gpus or (),
    )
    if serving.platform == "onnxruntime":
        return replace(plain, accelerators=_accelerators(serving, arch, tower, engines))
    profiles = [str(number) for number in range(len(plans[0].profiles))]
    return replace(
        plain,
        filename=plan_filename(plans[0]),
        filenames_by_capability={plan.device.compute_capability: plan_filename(plan) for plan in plans},
        profiles=profiles,
        # Triton makes an execution context for each profile, which by default has room for the largest of all. Backends
        # from before April 2025 do not read it (triton-inference-server/tensorrt_backend#108).
        parameters={"execution_context_allocation_strategy": "ON_PROFILE_CHANGE"} if len(profiles) > 1 else {},
        graphs=_graphs(serving, spec, tower) if serving.cuda_graphs else (),
    )


def _graphs(serving: ServingConfig, spec: InputSpec, tower: Tower) -> list[tuple[int, Sequence[int]]]:
    """The batches that are likely: a graph is replayed for exactly its batch size and dims.

    A few lone requests, and what comes of up to eight of the size that clients are told to send.
    """
    settings = serving.encoder(tower)
    most, preferred = settings.max_batch_size, settings.preferred_batch_size
    batches = sorted(size for size in {1, 2, 4, most, *(preferred * n for n in range(1, 9))} if size <= most)
    return [(batch, dims) for dims in _row_dims(serving, spec) for batch in batches]


def _row_dims(serving: ServingConfig, spec: InputSpec) -> list[list[int]]:
    """The dims of a row, in each length that is served."""
    if LENGTH in spec.axes:
        return [[length] for length in serving.padded_lengths]
    return [[axis for axis in spec.axes if isinstance(axis, int)]]


def warmup_file(spec: InputSpec, dims: Sequence[int]) -> str:
    """Names the file with the input that warms an encoder up: "pixels", or "text-40" for texts of 40 tokens."""
    return f"{spec.name}-{dims[0]}" if LENGTH in spec.axes else spec.name


def _warmups(serving: ServingConfig, spec: InputSpec, tower: Tower) -> list[Warmup]:
    """One row, and on a GPU also as many as clients send and the most: kernels are chosen and set up for each size."""
    settings = serving.encoder(tower)
    batches = {1} if serving.target == "cpu" else {1, settings.preferred_batch_size, settings.max_batch_size}
    return [
        Warmup(f"{batch} of {' x '.join(map(str, dims))}", batch, dims, warmup_file(spec, dims))
        for dims in _row_dims(serving, spec)
        for batch in sorted(batches)
    ]


def _parameters(serving: ServingConfig, arch: Arch, tower: Tower) -> Mapping[str, str]:
    """Those of the onnxruntime backend."""
    if serving.target == "cpu":
        return {"intra_op_thread_count": str(serving.encoder(tower).threads)}
    if (serving.platform, tower, served_graph(serving, arch, tower)) == ("onnxruntime", "image", "plain"):
        # By default cuDNN times every algorithm for each new size of a batch. Triton's backend takes this from here
        # alone: wherever a config has parameters, they win over the accelerator's.
        return {"cudnn_conv_algo_search": "1"}  # HEURISTIC
    return {}


def _accelerators(serving: ServingConfig, arch: Arch, tower: Tower, engines: str) -> tuple[Accelerator, ...]:
    if serving.target == "cpu":
        return ()
    # Flash attention and the memory-efficient one (1 + 2 of ONNX Runtime's AttentionBackend). Its own choice on Hopper
    # is cuDNN's, which builds a kernel for every size of a batch: 71 to 480 ms, at each that it has not seen.
    cuda = {"sdpa_kernel": "3"} if serving.accelerator == "cuda" else {}
    if serving.precision == "fp32":
        cuda["use_tf32"] = str(int(serving.tf32))  # said either way: ONNX Runtime's default is 1, the stand-in's 0
    tensorrt = [_tensorrt(serving, arch, tower, engines)] if serving.accelerator == "tensorrt" else []
    return (*tensorrt, *([Accelerator("cuda", cuda)] if cuda else []))


def _tensorrt(serving: ServingConfig, arch: Arch, tower: Tower, engines: str) -> Accelerator:
    spec = served_input(arch, tower)
    context_length = serving.context_length if tower == "text" else None
    most, tuned = serving.encoder(tower).max_batch_size, serving.padded_lengths[0]
    full_batches = default_profiles(most, context_length, tuned)[-1]
    bounds = zip(("min", "opt", "max"), full_batches.shapes(spec), strict=True)
    return Accelerator(
        "tensorrt",
        {
            "precision_mode": serving.precision.upper(),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": ENGINE_CACHE,
            # All models share that folder, and an engine's name tells nothing of its weights: see `Artefact.identity`.
            "trt_engine_cache_prefix": engines,
            # Without them an engine is built anew whenever a batch is larger or a text longer than any before.
            **{f"trt_profile_{bound}_shapes": f"{spec.name}:{'x'.join(map(str, shape))}" for bound, shape in bounds},
        },
    )
