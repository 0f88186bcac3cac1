"""How models are served: the typed values that the config templates are filled with."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cnclip_builder.arch import Tower
from cnclip_builder.errors import SettingError
from cnclip_builder.parity.distance import Precision
from cnclip_builder.system.machine import Accelerator, Platform, Target

DEFAULT_MAX_IMAGE_PIXELS = 178_956_970
"""What Pillow refuses by itself (a bitmap of 512 MiB), and with it cn_clip."""

DEFAULT_SETTLE_S = 30.0
"""How long servers have to see a change before the next: twice the time between Triton's polls by default."""


@dataclass(frozen=True)
class ServingConfig:
    """Settings of all models of one architecture.

    Attributes:
        target: whether encoders run on a CPU or a GPU.
        precision: of the served encoders.
        context_length: most tokens of a text.
        max_batch_size: most rows of a request, and of a batch that Triton makes of several.
        platform: Triton's backend for the encoders.
        accelerator: how the onnxruntime backend runs encoders on a GPU: "cuda" (its own default, with one stream for
            all that it runs), "tensorrt" (it builds engines when models load, and keeps them), or "none" to leave it.
        cuda_graphs: let the tensorrt backend record the image encoder's launches, at powers of two of the batch, and
            replay them: less time per request at small batches, more GPU memory. Text lengths vary too much for it.
        pinned_memory: copy to and from the GPU by way of page-locked memory.
        max_queue_size: requests that may wait for a model; past it Triton answers UNAVAILABLE. 0 for no such bound:
            any queue policy turns off Triton's prefetching of batches, and requests then stall for half a second at
            a time (docs/serving.md has the figures).
        encoder_instances: copies of each encoder, a GPU's for each of its GPUs.
        encoder_queue_delay_microseconds: how long a request waits for others to share its batch.
        encoder_threads: threads of each encoder instance on a CPU; 0 for all cores.
        preprocess_instances: processes that decode images.
        preprocess_threads: threads in each of them; 0 for as many as the server has cores.
        max_image_pixels: width times height of the largest image that is decoded; a larger one is refused unread.
        reduced_decoding: decode large JPEGs at a smaller scale: twice as fast, and not equal to cn_clip's transform.
        tokenize_instances: processes that tokenise texts.
    """

    target: Target
    precision: Precision
    context_length: int
    max_batch_size: int
    platform: Platform = "onnxruntime"
    accelerator: Accelerator = "none"
    cuda_graphs: bool = False
    pinned_memory: bool = True
    max_queue_size: int = 0
    encoder_instances: int = 1
    encoder_queue_delay_microseconds: int = 1000
    encoder_threads: int = 0
    preprocess_instances: int = 1
    preprocess_threads: int = 0
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS
    reduced_decoding: bool = False
    tokenize_instances: int = 1

    def __post_init__(self) -> None:
        """Refuses values out of range.

        Raises:
            SettingError: naming the setting.
        """
        may_be_zero = {"max_queue_size", "encoder_queue_delay_microseconds", "encoder_threads", "preprocess_threads"}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool):
                least = 0 if field.name in may_be_zero else 1
                if not least <= value <= 2**31 - 1:
                    raise SettingError(f"{field.name} is {value}: choose at least {least}")

        if self.precision == "int8" and self.target != "cpu":
            raise SettingError("INT8 is for CPUs: choose PRECISION=fp16 on a GPU, or TARGET=cpu")
        if self.platform == "tensorrt" and self.target != "gpu":
            raise SettingError("TensorRT plans run on GPUs alone: choose TARGET=gpu, or PLATFORM=onnxruntime")
        if self.accelerator != "none" and (self.target, self.platform) != ("gpu", "onnxruntime"):
            raise SettingError(
                f"accelerator {self.accelerator!r} is the onnxruntime backend's on a GPU: choose TARGET=gpu and "
                "PLATFORM=onnxruntime, or no accelerator"
            )
        if self.cuda_graphs and self.platform != "tensorrt":
            raise SettingError("CUDA graphs are the tensorrt backend's: choose PLATFORM=tensorrt, or leave them off")

    @property
    def encoder_kind(self) -> str:
        """Triton's kind of instance for the encoders."""
        return "KIND_GPU" if self.target == "gpu" else "KIND_CPU"

    def preferred_batch_size(self, tower: Tower) -> int:
        """Rows of a request that suit an encoder, for clients to ask for: more gain nothing, or lose.

        On a CPU that is few images: from some 800 tokens on, what a block computes no longer fits into the caches.
        """
        images = 4 if self.target == "cpu" else 8
        return min(images if tower == "image" else 32, self.max_batch_size)

    def merged_batch_size(self, tower: Tower) -> int | None:
        """Rows up to which Triton makes one batch of several requests; None for up to `max_batch_size`."""
        return self.preferred_batch_size(tower) if (self.target, tower) == ("cpu", "image") else None

    @property
    def decoding(self) -> str:
        """How images are decoded: "exact", as cn_clip does, or "reduced"."""
        return "reduced" if self.reduced_decoding else "exact"

    @property
    def skips_padding(self) -> bool:
        """Whether text encoders leave padding out: measured to pay on CPUs, not yet on a GPU; TensorRT can't."""
        return self.target == "cpu"

    @property
    def text_length_step(self) -> int:
        """Steps of the length to which texts are padded.

        Where padding costs nothing, all texts have one shape. Triton then makes batches of them all; and while requests
        of another shape wait, its batcher's thread spins, and takes a core off the encoder.
        """
        return self.context_length if self.skips_padding else 8

    @property
    def encoder_parameters(self) -> dict[str, str]:
        """Parameters of Triton's onnxruntime backend; the tensorrt backend has none that matter here."""
        return {"intra_op_thread_count": str(self.encoder_threads)} if self.target == "cpu" else {}
