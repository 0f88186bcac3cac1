"""What the served models' configs say of themselves."""

from __future__ import annotations

from dataclasses import dataclass

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
        precision: Of the encoders' weights: `fp32`, `fp16` or `int8`; `image fp32, text int8` if they differ.
        preferred_batch_size: Rows of a request that suit the server. Of both towers together the smaller one.
        decoding: Of images: `exact`, to cn_clip's pixels; `reduced`, which is near to them and faster; or `gpu`, which
            is so too, for JPEGs that the server's GPU decodes. Where this client prepares, never `gpu`.
        resolution: Side of the square that the image encoder takes, in pixels; None of the text encoder alone.
        max_image_pixels: Larger images are refused; None of the text encoder alone.
        image_formats: Pillow's names of formats that are decoded beside those that are by default, with commas.
        vocabulary_sha256: Of the file with the text encoder's tokens, hexadecimal; empty of the image encoder alone.
        text_lengths: To the shortest of these that holds them token ids are padded; empty of the image encoder alone.
    """

    model: str
    version: str
    arch: str
    checkpoint_sha256: str
    logit_scale: float
    embedding_size: int
    context_length: int
    max_batch_size: int
    precision: str
    preferred_batch_size: int
    decoding: str = "exact"
    resolution: int | None = None
    max_image_pixels: int | None = None
    image_formats: str = ""
    vocabulary_sha256: str = ""
    text_lengths: tuple[int, ...] = ()
