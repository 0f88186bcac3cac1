"""How models are served: the settings together, and the values that follow from them for each encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from typing import Any

from cnclip_machine import usable_cores

from cnclip_builder.arch import MIN_CONTEXT_LENGTH
from cnclip_builder.errors import SettingError
from cnclip_builder.repository.settings import Accelerator, PerTower, Platform, Preprocess, Target, check_value
from cnclip_builder.system.gpu import has_gpu
from cnclip_builder.tensors import TOWERS, Precision, Tower

BOUNDED_BY_BATCH = ("preferred_batch_size", "merged_batch_size")
"""The settings that are rows of a batch, of which none has more than `max_batch_size`."""

DEFAULT_SETTLE_S = 30.0
"""How long servers have to see a change before the next: twice the time between Triton's polls by default."""

_LEAST_GPU_PREPROCESS_INSTANCES = 4
_MOST_GPU_PREPROCESS_INSTANCES = 16
_CORES_OF_A_PROCESS = 4
"""A GPU encodes faster than one process hands images on. Few threads of one seldom wait for Python's lock, which an
image holds for 2 to 7 % of its time; and one process decodes all images of a request, so that it wants some."""

_CARD_PREPROCESS_INSTANCES = 2
"""Of each GPU that decodes by itself: one reads headers while the other waits for the card. Not measured yet."""

_SHORTER_LENGTH = 40
"""Of the two lengths of texts on a GPU: nearly all captions fit into it (docs/gpu.md has the table)."""


def default_target() -> Target:
    """`gpu` where there is one."""
    return "gpu" if has_gpu() else "cpu"


def default_precision(target: Target) -> Precision:
    """FP16 for a GPU; FP32 for a CPU, where FP16 is computed in FP32 with conversions and is slower."""
    return "fp16" if target == "gpu" else "fp32"


def default_max_batch_size(target: Target, platform: Platform) -> PerTower:
    """64 on a GPU, 128 texts under ONNX Runtime; 32 on a CPU, where larger batches bring no speed and cost memory.

    On an H100 128 texts in a batch were 1.3 times as many a second as 64, and 64 images 1.05 times as many as 32
    (docs/gpu.md); nothing is known of plans.
    """
    if target == "cpu":
        return 32
    return {"image": 64, "text": 128} if platform == "onnxruntime" else 64


def most_rows(max_batch_size: PerTower, tower: Tower, target: Target, platform: Platform) -> int:
    """Most rows of an encoder's batches, by what is set and the defaults."""
    return _of(max_batch_size, tower, default_max_batch_size(target, platform))


def within_batches(
    rows: PerTower | None, max_batch_size: PerTower, target: Target, platform: Platform
) -> PerTower | None:
    """Lowers a setting of `BOUNDED_BY_BATCH` to what batches hold."""
    if rows is None:
        return None
    each: Mapping[Tower, int] = rows if isinstance(rows, Mapping) else dict.fromkeys(TOWERS, rows)
    lower = {tower: min(number, most_rows(max_batch_size, tower, target, platform)) for tower, number in each.items()}
    return rows if lower == each else lower


def default_accelerator(target: Target, platform: Platform) -> Accelerator:
    """What runs ONNX files on a GPU best."""
    return "cuda" if (target, platform) == ("gpu", "onnxruntime") else "none"


@dataclass(frozen=True)
class EncoderSettings:
    """How one encoder is served, and the models before it: what `ServingConfig` comes to for it.

    Attributes:
        max_batch_size: most rows of a request, and of a batch that Triton makes of several.
        instances: copies of the encoder, a GPU's for each of its GPUs.
        threads: of each instance on a CPU; 0 for all cores.
        queue_delay_microseconds: how long a request waits for others to share its batch.
        preferred_batch_size: rows of a request that suit the encoder, for clients to ask for.
        merged_batch_size: rows up to which Triton makes one batch of several requests; 0 for up to `max_batch_size`.
    """

    max_batch_size: int
    instances: int
    threads: int
    queue_delay_microseconds: int
    preferred_batch_size: int
    merged_batch_size: int


@dataclass(frozen=True)
class ServingConfig:
    """Settings of all models of one architecture.

    Attributes:
        target: whether encoders run on a CPU or a GPU.
        precision: of the served encoders.
        context_length: most tokens of a text.
        max_batch_size: most rows of a request, and of a batch that Triton makes of several.
        platform: Triton's backend for the encoders.
        accelerator: how the onnxruntime backend runs encoders on a GPU: "cuda" (with attention kernels that have
            nothing to set up for a batch of a new size; from ONNX Runtime 1.19 on), "tensorrt" (it builds engines when
            models load, and keeps them), or "none" for ONNX Runtime's own choice of kernels.
        cuda_graphs: let the tensorrt backend record the encoders' launches, at the batch sizes and lengths that are
            likely, and replay them: less time per request at small batches, more GPU memory.
        pinned_memory: copy to and from the GPU by way of page-locked memory.
        tf32: let a GPU's FP32 products round what they multiply to TF32's 10 bits, as NVIDIA's libraries do unless told
            not to: several times as fast, and not FP32.
        max_queue_size: requests that may wait for a model; past it Triton answers UNAVAILABLE. 0 for no such bound:
            any queue policy turns off Triton's prefetching of batches, and requests then stall for half a second at
            a time (docs/serving.md has the figures).
        encoder_instances: copies of each encoder, a GPU's for each of its GPUs.
        encoder_queue_delay_microseconds: how long a request waits for others to share its batch.
        encoder_threads: threads of each encoder instance on a CPU; 0 for all cores.
        preferred_batch_size: rows of a request that suit an encoder, for clients to ask for; None for what was
            measured to suit: 4 images on a CPU, since from some 800 tokens on what a block computes no longer fits into
            the caches, 8 on a GPU; 32 texts.
        merged_batch_size: rows up to which Triton makes one batch of several requests, 0 for up to `max_batch_size`;
            None for the preferred images on a CPU, and else 0.
        preprocess: who decodes images: "exact", the processor; or "gpu", each GPU the JPEGs of everyday kinds, as near
            to exact as its decoder is, and the processor all else.
        preprocess_instances: processes that decode images; None for 1 before a CPU, whose cores the encoder needs,
            before GPUs one for each 4 cores of the building machine, from 4 to 16, and for each GPU that decodes 2.
        preprocess_threads: threads in each of them; 0 for as many as the server has cores.
        max_image_pixels: width times height of the largest image that is decoded; a larger one is refused unread.
        image_formats: Pillow's names of formats that are decoded beside those it decodes by itself, with commas between
            them: "MPEG,WMF"; never one for which it starts a program.
        reduced_decoding: decode large JPEGs at a smaller scale: twice as fast, and not equal to cn_clip's transform.
        tokenize_instances: processes that tokenise texts.
        text_lengths: to which texts are padded, besides `context_length`: to the shortest that holds the longest of
            those that are tokenised together. Texts of different lengths share no batch. None for one length on a CPU,
            where padding costs nothing, and for two on a GPU.
        gpus: numbers of the GPUs that serve encoders, each its own instances; None for all that tritonserver sees.
        encoders_only: serve the encoders and nothing else: clients prepare images and texts, and no Python model does.
    """

    target: Target
    precision: Precision
    context_length: int
    max_batch_size: PerTower
    platform: Platform = "onnxruntime"
    accelerator: Accelerator = "none"
    cuda_graphs: bool = False
    pinned_memory: bool = True
    tf32: bool = False
    max_queue_size: int = 0
    encoder_instances: PerTower = 1
    encoder_queue_delay_microseconds: PerTower = 1000
    encoder_threads: PerTower = 0
    preferred_batch_size: PerTower | None = None
    merged_batch_size: PerTower | None = None
    preprocess: Preprocess = "exact"
    preprocess_instances: int | None = None
    preprocess_threads: int = 0
    max_image_pixels: int = 178_956_970  # what Pillow refuses by itself (a bitmap of 512 MiB), and with it cn_clip
    image_formats: str = ""
    reduced_decoding: bool = False
    tokenize_instances: int = 1
    text_lengths: Sequence[int] | None = None
    gpus: Sequence[int] | None = None
    encoders_only: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            SettingError: naming the setting.
        """
        for field in fields(self):
            check_value(field.name, getattr(self, field.name))
        for name in ("text_lengths", "gpus"):
            if (numbers := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(numbers))
        if why := next(chain(self._unfit_numbers(), self._contradictions()), ""):
            raise SettingError(why)

    def _unfit_numbers(self) -> Iterator[str]:
        """Says which numbers other settings leave no room for."""
        for name in BOUNDED_BY_BATCH:
            for tower in TOWERS:
                rows = _of(getattr(self, name), tower, 0)
                most = most_rows(self.max_batch_size, tower, self.target, self.platform)
                if rows > most:
                    yield (
                        f"{name} is {rows}, and the {tower} encoder's max_batch_size {most}: choose at most that, or "
                        "larger batches"
                    )
        for length in self.text_lengths or ():
            if not MIN_CONTEXT_LENGTH <= length <= self.context_length:
                yield (
                    f"text_lengths has {length}: choose lengths from {MIN_CONTEXT_LENGTH} to the context length, "
                    f"{self.context_length}"
                )
        gpus = self.gpus
        if gpus is not None and (self.target != "gpu" or not gpus or len(set(gpus)) < len(gpus)):
            yield (
                f"gpus is {','.join(map(str, gpus))!r}: name each GPU once, such as 0,2, with TARGET=gpu; or leave it "
                "out for all"
            )

    def _contradictions(self) -> Iterator[str]:
        """Says what does not go together."""
        if self.precision == "int8" and self.target != "cpu":
            yield "INT8 is for CPUs: choose PRECISION=fp16 on a GPU, or TARGET=cpu"
        if self.platform == "tensorrt" and self.target != "gpu":
            yield "TensorRT plans run on GPUs alone: choose TARGET=gpu, or PLATFORM=onnxruntime"
        if self.accelerator != "none" and (self.target, self.platform) != ("gpu", "onnxruntime"):
            yield (
                f"accelerator {self.accelerator!r} is the onnxruntime backend's on a GPU: choose TARGET=gpu and "
                "PLATFORM=onnxruntime, or no accelerator"
            )
        if self.preprocess == "gpu" and self.target != "gpu":
            yield "only GPUs that serve encoders decode images: choose TARGET=gpu, or PREPROCESS=exact"
        if self.preprocess == "gpu" and self.encoders_only:
            yield "encoders alone decode nothing, their clients do: leave PREPROCESS=gpu out, or --encoders-only"
        if self.preprocess == "gpu" and self.reduced_decoding:
            yield "a GPU decodes JPEGs at their full size: leave --reduced-decoding out, or choose PREPROCESS=exact"
        if self.cuda_graphs and self.platform != "tensorrt":
            yield "CUDA graphs are the tensorrt backend's: choose PLATFORM=tensorrt, or leave them off"
        if self.tf32 and (self.target, self.precision) != ("gpu", "fp32"):
            yield "TF32 is how a GPU may compute FP32: choose TARGET=gpu and PRECISION=fp32, or leave --tf32 out"
        if self.accelerator == "tensorrt" and self.precision == "fp32" and not self.tf32:
            # https://github.com/microsoft/onnxruntime/issues/26029
            yield (
                "ONNX Runtime's TensorRT accelerator computes FP32 in TF32 and has no switch for it: choose "
                "PRECISION=fp16, ACCELERATOR=cuda or PLATFORM=tensorrt; or take TF32 with --tf32"
            )

    def encoder(self, tower: Tower) -> EncoderSettings:
        """What holds for one encoder."""
        most = most_rows(self.max_batch_size, tower, self.target, self.platform)
        images = 4 if self.target == "cpu" else 8
        preferred = _of(self.preferred_batch_size, tower, min(images if tower == "image" else 32, most))
        merged = preferred if (self.target, tower) == ("cpu", "image") else 0
        return EncoderSettings(
            max_batch_size=most,
            instances=_of(self.encoder_instances, tower, ServingConfig.encoder_instances),
            threads=_of(self.encoder_threads, tower, ServingConfig.encoder_threads),
            queue_delay_microseconds=_of(
                self.encoder_queue_delay_microseconds, tower, ServingConfig.encoder_queue_delay_microseconds
            ),
            preferred_batch_size=preferred,
            merged_batch_size=_of(self.merged_batch_size, tower, merged),
        )

    @property
    def largest_batch_size(self) -> int:
        """Most rows of a request to either encoder."""
        return max(self.encoder(tower).max_batch_size for tower in TOWERS)

    @property
    def encoder_kind(self) -> str:
        """Triton's kind of instance for the encoders."""
        return "KIND_GPU" if self.target == "gpu" else "KIND_CPU"

    @property
    def preprocess_kind(self) -> str:
        """Triton's kind of instance for what decodes images."""
        return "KIND_GPU" if self.preprocess == "gpu" else "KIND_CPU"

    @property
    def preprocess_processes(self) -> int:
        """Processes that decode images; of each GPU, where those decode."""
        if self.preprocess_instances is not None:
            return self.preprocess_instances
        if self.preprocess == "gpu":
            return _CARD_PREPROCESS_INSTANCES
        if self.target == "cpu":
            return 1
        wanted = usable_cores() // _CORES_OF_A_PROCESS
        return min(max(wanted, _LEAST_GPU_PREPROCESS_INSTANCES), _MOST_GPU_PREPROCESS_INSTANCES)

    @property
    def decoding(self) -> str:
        """How images are decoded: "exact", as cn_clip does, "reduced", or "gpu"."""
        if self.preprocess == "gpu":
            return "gpu"
        return "reduced" if self.reduced_decoding else "exact"

    @property
    def padded_lengths(self) -> tuple[int, ...]:
        """The lengths to which texts are padded, ascending; the last is the context length.

        On CPUs, where encoders leave padding out, all texts have one shape. Triton then makes batches of them all; and
        while requests of another shape wait, its batcher's thread spins, and takes a core off the encoder.
        """
        if self.text_lengths is not None:
            shorter = self.text_lengths
        else:
            shorter = () if self.target == "cpu" or self.context_length <= _SHORTER_LENGTH else (_SHORTER_LENGTH,)
        return tuple(sorted({*shorter, self.context_length}))

    def as_dict(self) -> dict[str, Any]:
        """The settings for a manifest."""
        return asdict(self)


SETTINGS = tuple(field.name for field in fields(ServingConfig))
"""The names of all settings."""


def _of(value: PerTower | None, tower: Tower, default: PerTower) -> int:
    """One encoder's part of a setting, or of the default where the setting names none for it."""
    named = value.get(tower) if isinstance(value, Mapping) else value
    if named is not None:
        return named
    return default[tower] if isinstance(default, Mapping) else default
