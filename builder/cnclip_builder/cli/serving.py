"""The options of how a model is served: those fields of `ServingConfig` that a command line names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any

from cnclip_console import option

from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH
from cnclip_builder.cli.options import LIMITS, SERVED, SPEED, Tf32Option
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.repository.settings import (
    PER_TOWER,
    Accelerator,
    Platform,
    Preprocess,
    Target,
    parse_gpus,
    parse_lengths,
    parse_per_tower,
)
from cnclip_builder.tensors import Precision

__all__ = ["ServingOptions"]

# Options by the headings under which help shows them.
_served, _limits, _speed = (partial(option, panel=panel) for panel in (SERVED, LIMITS, SPEED))
_EACH = "; image=N,text=N for one of each"


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """Settings of `ServingConfig`, by their names there; None where the command line says nothing."""

    target: Annotated[
        Target | None, _served("What encoders run on. Default: gpu where nvidia-smi lists one, else cpu.")
    ] = None
    precision: Annotated[
        Precision | None, _served("Of the served encoders; int8 on CPUs alone. Default: fp16 on a GPU, fp32 on a CPU.")
    ] = None
    platform: Annotated[
        Platform | None, _served(f"Triton's backend for the encoders. Default: {ServingConfig.platform}.")
    ] = None
    accelerator: Annotated[
        Accelerator | None,
        _served(
            "What the onnxruntime backend runs ONNX files with on a GPU; tensorrt builds at load time, none leaves the "
            "choice of kernels to ONNX Runtime. Default: cuda on a GPU."
        ),
    ] = None
    preprocess: Annotated[
        Preprocess | None,
        _served(
            "Who decodes images: exact, the processor; gpu, each GPU, JPEGs alone, and near to exact: docs/gpu.md. "
            f"Default: {ServingConfig.preprocess}."
        ),
    ] = None
    gpus: Annotated[
        str | None,
        _served(
            "Numbers of the GPUs that serve encoders, as tritonserver counts them. Default: all that it sees.",
            metavar="N,N",
        ),
    ] = None
    tf32: Tf32Option = None
    context_length: Annotated[
        int | None,
        _limits(
            f"Most tokens of a text; longer ones are cut. Default: {DEFAULT_CONTEXT_LENGTH}, or all it takes.",
            metavar="N",
        ),
    ] = None
    encoders_only: Annotated[
        bool | None,
        _served(
            "Serve the encoders and nothing else: clients prepare images and texts (--prepare client), and the server "
            "needs no Python. Default: no."
        ),
    ] = None
    max_batch_size: Annotated[
        str | None,
        _limits(
            f"Most rows of a batch{_EACH}. Default: 64 on a GPU, 128 texts in ONNX Runtime, 32 on a CPU.", metavar="N"
        ),
    ] = None
    max_queue_size: Annotated[
        int | None,
        _limits(
            "Requests that may wait for a model; 0: any number. A bound costs throughput: docs/serving.md. "
            f"Default: {ServingConfig.max_queue_size}.",
            metavar="N",
        ),
    ] = None
    max_image_pixels: Annotated[
        int | None,
        _limits(
            "Width times height of the largest image that is decoded; a larger one is refused. "
            f"Default: {ServingConfig.max_image_pixels}.",
            metavar="N",
        ),
    ] = None
    image_formats: Annotated[
        str | None,
        _limits(
            "Formats to decode beside those that Pillow decodes by itself, such as MPEG,WMF: docs/security.md.",
            metavar="NAMES",
        ),
    ] = None
    preferred_batch_size: Annotated[
        str | None,
        _speed(
            f"Rows of the requests that clients send{_EACH}. Default: 4 images on a CPU, 8 on a GPU, 32 texts.",
            metavar="N",
        ),
    ] = None
    merged_batch_size: Annotated[
        str | None,
        _speed(
            f"Rows up to which requests share a batch, 0: up to the largest{_EACH}. Default: the preferred images on a "
            "CPU, else 0.",
            metavar="N",
        ),
    ] = None
    encoder_instances: Annotated[
        str | None,
        _speed(f"Copies of each encoder, of each GPU{_EACH}. Default: {ServingConfig.encoder_instances}.", metavar="N"),
    ] = None
    encoder_queue_delay_microseconds: Annotated[
        str | None,
        _speed(
            f"How long a request waits for others to share its batch{_EACH}. "
            f"Default: {ServingConfig.encoder_queue_delay_microseconds}.",
            "--encoder-queue-delay",
            metavar="MICROSECONDS",
        ),
    ] = None
    encoder_threads: Annotated[
        str | None,
        _speed(
            f"Threads of an encoder on a CPU, 0: all cores{_EACH}. Default: {ServingConfig.encoder_threads}.",
            metavar="N",
        ),
    ] = None
    preprocess_instances: Annotated[
        int | None,
        _speed(
            "Processes that decode images; they divide the cores. Default: 1 before a CPU; before GPUs one for each 4 "
            "cores of this machine, from 4 to 16; 2 of each GPU with --preprocess gpu.",
            metavar="N",
        ),
    ] = None
    preprocess_threads: Annotated[
        int | None,
        _speed(
            f"Threads in each of them; 0: its share of the cores. Default: {ServingConfig.preprocess_threads}.",
            metavar="N",
        ),
    ] = None
    tokenize_instances: Annotated[
        int | None, _speed(f"Processes that tokenise texts. Default: {ServingConfig.tokenize_instances}.", metavar="N")
    ] = None
    text_lengths: Annotated[
        str | None,
        _speed(
            "Tokens to which texts are padded, besides the context length. Default: 40 on a GPU, none on a CPU, where "
            "padding costs nothing.",
            metavar="N,N",
        ),
    ] = None
    reduced_decoding: Annotated[
        bool | None,
        _speed(
            "Decode large JPEGs at 1/2, 1/4 or 1/8 of their size, above twice the resolution: twice as fast, grey "
            "levels off by 0.3 on average (1.5 at 12 megapixels), features by 1 - cosine = 1e-5: docs/serving.md. "
            "Default: no."
        ),
    ] = None
    cuda_graphs: Annotated[
        bool | None,
        _speed("Record the launches of plans and replay them, at the batch sizes that are likely. Default: no."),
    ] = None
    pinned_memory: Annotated[bool | None, _speed("Copy to and from a GPU by page-locked memory. Default: yes.")] = None

    def given(self) -> dict[str, Any]:
        """Returns those that the command line names, as `ServingConfig` has them.

        Raises:
            SettingError: one is not of its form.
        """
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _parsed(name, value) for name, value in given.items() if value is not None}


def _parsed(name: str, value: Any) -> Any:
    if name in PER_TOWER:
        return parse_per_tower(name, value)
    if name == "gpus":
        return parse_gpus(value)
    return parse_lengths(value) if name == "text_lengths" else value
