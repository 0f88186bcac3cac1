"""What is to be served: a version of a model, with its artefacts and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnclip_builder.arch import Arch
from cnclip_builder.artefacts.maker import Artefacts
from cnclip_builder.plans.here import Plan
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.tensors import TOWERS, Precision, Tower


@dataclass(frozen=True)
class RepositoryEntry:
    """What is to be served.

    Attributes:
        name: of the models: the architecture's slug unless several checkpoints of it are served side by side.
        version: Triton's version number.
        arch: the architecture.
        artefacts: of both encoders, in the precision that is served.
        serving: how they are served.
        plans: of each encoder one for each kind of GPU, where TensorRT serves them.
        card: how far images that the building machine's GPU decoded are from exact ones; empty if it decoded none.
    """

    name: str
    version: int
    arch: Arch
    artefacts: Artefacts
    serving: ServingConfig
    plans: Mapping[Tower, Sequence[Plan]] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)

    def precision_of(self, tower: Tower) -> Precision:
        """What an encoder is served in: FP32 where INT8 was asked for and is not faster."""
        return "fp32" if tower in self.artefacts.slower else self.serving.precision

    @property
    def precision(self) -> str:
        """Of both encoders, each named if they differ: "image fp32, text int8"."""
        precisions = {tower: self.precision_of(tower) for tower in TOWERS}
        if precisions["image"] == precisions["text"]:
            return precisions["image"]
        return ", ".join(f"{tower} {precision}" for tower, precision in precisions.items())
