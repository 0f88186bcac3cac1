"""What the served models' configs say of themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cnclip_client._exceptions import CheckpointMismatch, ServerError

__all__ = ["ModelInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A served Chinese-CLIP model.

    Attributes:
        model: The slug, such as `vit-b-16`.
        version: The version that this client uses for as long as it lives.
        arch: cn_clip's name of the architecture, such as `ViT-B-16`.
        checkpoint_sha256: The checkpoint that the model was built from, hexadecimal.
        logit_scale: What cosines are multiplied by, already exponentiated.
        embedding_size: D, the features' length.
        context_length: Tokens of a text that are read; the rest is cut off.
        max_batch_size: The largest request that the server takes, in rows.
        precision: Of the encoders' weights: `fp32`, `fp16` or `int8`; `image fp32, text int8` if they differ; empty if
            the config does not say.
        decoding: Of images: `exact`, to cn_clip's pixels, or `reduced`, which is near to them and faster.
        preferred_batch_size: Rows of a request that suit the server; None if the config does not say. Of both towers
            together the smaller one.
    """

    model: str
    version: str
    arch: str
    checkpoint_sha256: str
    logit_scale: float
    embedding_size: int
    context_length: int
    max_batch_size: int
    precision: str = ""
    decoding: str = "exact"
    preferred_batch_size: int | None = None


def parse_info(slug: str, name: str, version: str, parameters: Mapping[str, str], max_batch_size: int) -> ModelInfo:
    """Reads the parameters of one ensemble's config.

    Args:
        slug: The slug, such as `vit-b-16`.
        name: The ensemble's full name, for the message.
        version: The version that the config is of.
        parameters: The config's parameters.
        max_batch_size: The config's `max_batch_size`.

    Raises:
        ServerError: A parameter is missing or is not what its name says.
    """

    def refuse(what: str) -> ServerError:
        return ServerError(
            f"{name} is served, but {what}: it was not built by cnclip-build; build its repository anew",
            model=name,
            status="OK",
            detail=str(dict(parameters)),
        )

    try:
        info = ModelInfo(
            model=slug,
            version=version,
            arch=parameters["arch"],
            checkpoint_sha256=parameters["checkpoint_sha256"],
            logit_scale=float(parameters["logit_scale"]),
            embedding_size=int(parameters["embedding_size"]),
            context_length=int(parameters["context_length"]),
            max_batch_size=max_batch_size,
            precision=parameters.get("precision", ""),
            decoding=parameters.get("decoding", "exact"),
            preferred_batch_size=int(parameters["preferred_batch_size"])
            if "preferred_batch_size" in parameters
            else None,
        )
    except KeyError as error:
        raise refuse(f"its config has no parameter {error.args[0]}") from error
    except ValueError as error:
        raise refuse(f"a parameter of its config is no number ({error})") from error
    if info.max_batch_size < 1:
        raise refuse("it takes no batches (max_batch_size is 0)")
    if info.preferred_batch_size is not None and info.preferred_batch_size < 1:
        raise refuse(f"its preferred_batch_size is {info.preferred_batch_size}")
    if info.embedding_size < 1:
        raise refuse(f"its embedding_size is {info.embedding_size}")
    if not math.isfinite(info.logit_scale):
        raise refuse(f"its logit_scale is {info.logit_scale}")
    return info


def combine(image: ModelInfo, text: ModelInfo) -> ModelInfo:
    """Returns what holds for both towers of a slug.

    Raises:
        CheckpointMismatch: They come of different checkpoints.
    """
    if image.checkpoint_sha256 != text.checkpoint_sha256:
        raise CheckpointMismatch(
            model=text.model,
            image_sha256=image.checkpoint_sha256,
            text_sha256=text.checkpoint_sha256,
        )
    same = image.version == text.version
    return ModelInfo(
        model=text.model,
        version=text.version if same else f"image {image.version}, text {text.version}",
        arch=text.arch,
        checkpoint_sha256=text.checkpoint_sha256,
        logit_scale=text.logit_scale,
        embedding_size=text.embedding_size,
        context_length=text.context_length,
        max_batch_size=min(image.max_batch_size, text.max_batch_size),
        precision=text.precision
        if image.precision == text.precision
        else f"image {image.precision}, text {text.precision}",
        decoding=image.decoding,
        preferred_batch_size=min(
            (one.preferred_batch_size for one in (image, text) if one.preferred_batch_size is not None), default=None
        ),
    )
