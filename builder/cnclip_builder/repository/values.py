"""What each model's template is filled with: plain values, worked out here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cnclip_builder.arch import Arch
from cnclip_builder.plans.record import PlanRecord
from cnclip_builder.repository.encoder_config import encoder_config
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.system.atomic import sha256_of_file
from cnclip_builder.tensors import Tower

KINDS = ("image", "image-preprocess", "image-encoder", "text", "text-tokenize", "text-encoder")
"""The served models of an architecture; each is named after it: "vit-b-16-image-encoder"."""

ENCODERS = ("image-encoder", "text-encoder")
"""Those of them that there are where clients prepare images and texts."""

TOWER_OF: Mapping[str, Tower] = {kind: "image" if kind.startswith("image") else "text" for kind in KINDS}
"""The encoder that a model is, or serves."""


def kinds_of(encoders_only: bool) -> tuple[str, ...]:
    """Which of `KINDS` are served; a build deletes those of the others that are there."""
    return ENCODERS if encoders_only else KINDS


def kinds_recorded(versions: Mapping[str, Any]) -> tuple[str, ...]:
    """Which of `KINDS` a name has; all its versions have the same.

    Args:
        versions: what the manifest holds of it.
    """
    return kinds_of(any(record["serving"]["encoders_only"] for record in versions.values()))


def template_values(
    kind: str,
    name: str,
    arch: Arch,
    serving: ServingConfig,
    versions: Sequence[int],
    version: int,
    facts: Mapping[str, Any],
    plans: Sequence[PlanRecord] = (),
) -> dict[str, Any]:
    """Gives the values of one model's config.

    Args:
        kind: one of `KINDS`.
        name: of the model itself.
        arch: the architecture.
        serving: how it is served.
        versions: those that are there of the encoder and the Python model.
        version: the one that the ensemble serves.
        facts: what an ensemble and its encoder tell their clients, besides what follows from the settings.
        plans: of the encoder, one for each kind of GPU; none for ONNX.
    """
    tower = TOWER_OF[kind]
    encoder = serving.encoder(tower)
    common = {"name": name, "max_batch_size": encoder.max_batch_size, "versions": versions}
    if kind.endswith("-encoder"):
        engines = f"{name}-{facts['checkpoint_sha256'][:12]}"
        config = encoder_config(serving, arch, tower, plans, engines)
        # Clients that prepare by themselves ask the encoder. Its older versions share this config: so it says of which
        # version it tells. Triton's backends pass over parameters that are not theirs.
        told = {**_told(tower, arch, serving, facts), "version": version, **_tensors_on_gpu(serving, tower)}
        return {**common, "encoder": replace(config, parameters={**config.parameters, **told})}
    if kind == "image-preprocess":
        return {
            **common,
            "resolution": arch.resolution,
            "instances": serving.preprocess_processes,
            "kind": serving.preprocess_kind,
            "gpus": (serving.gpus or ()) if serving.preprocess == "gpu" else (),
            "max_queue_size": serving.max_queue_size,
            "parameters": {
                "resolution": arch.resolution,
                "threads": serving.preprocess_threads,
                **_preparation(serving),
                **_tensors_on_gpu(serving, tower),
            },
        }
    if kind == "text-tokenize":
        return {
            **common,
            "instances": serving.tokenize_instances,
            "max_queue_size": serving.max_queue_size,
            "parameters": {
                "context_length": serving.context_length,
                "lengths": ",".join(map(str, serving.padded_lengths)),
            },
        }
    return {
        **common,
        "version": version,
        "embedding_size": arch.embedding_size,
        "facts": _told(tower, arch, serving, facts),
    }


def _told(tower: Tower, arch: Arch, serving: ServingConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What clients are told of a tower."""
    told = {**facts, "preferred_batch_size": serving.encoder(tower).preferred_batch_size}
    if tower == "image":
        return {**told, "resolution": arch.resolution, **_preparation(serving)}
    return {
        **told,
        "vocabulary_sha256": sha256_of_file(arch.vocabulary_file),
        "text_lengths": ",".join(map(str, serving.padded_lengths)),
    }


def _tensors_on_gpu(serving: ServingConfig, tower: Tower) -> dict[str, str]:
    """Has Triton's Python backend leave a GPU's tensors there: for what decodes, and for the stand-in that encodes."""
    return {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"} if serving.preprocess == "gpu" and tower == "image" else {}


def _preparation(serving: ServingConfig) -> dict[str, Any]:
    """How images are prepared, besides their resolution."""
    formats = {"image_formats": serving.image_formats} if serving.image_formats else {}
    return {"max_image_pixels": serving.max_image_pixels, "decoding": serving.decoding, **formats}
