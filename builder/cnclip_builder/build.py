"""The whole walk: checkpoint -> ONNX -> repository -> live verification."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnclip_builder.arch import TOWERS, Arch
from cnclip_builder.artefacts import Artefacts, build_artefacts
from cnclip_builder.atomic import require_writable
from cnclip_builder.errors import BuildError, MissingRequirementError
from cnclip_builder.isolation import stage_process
from cnclip_builder.parity import PRECISIONS
from cnclip_builder.repository import RepositoryEntry, check_place, publish
from cnclip_builder.serving import ServingConfig
from cnclip_builder.sources import Hub
from cnclip_builder.verify import Verification, verify_server

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildRequest:
    """What to build, and where.

    Attributes:
        arch: the architecture.
        checkpoint: a path, "random:SEED", or None for the official one.
        serving: how it is served.
        repository: the model repository's folder.
        artefacts: folder of all ONNX artefacts; those of one name are in a folder of that name.
        download_root: folder of downloaded and random checkpoints.
        name: of the served models; the architecture's slug if None.
        version: Triton's version number.
        hub: where official checkpoints are fetched from.
        verify: whether to serve the repository and compare it with PyTorch before it takes its place.
    """

    arch: Arch
    checkpoint: str | None
    serving: ServingConfig
    repository: Path
    artefacts: Path
    download_root: Path
    name: str | None = None
    version: int = 1
    hub: Hub = "huggingface"
    verify: bool = False


def build_repository(request: BuildRequest) -> RepositoryEntry:
    """Builds a checkpoint's models into a repository.

    Both precisions of both encoders are made and proved, whichever is served.

    Raises:
        BuildError: something is wrong; whatever was in the repository before is still there.
    """
    request.arch.checked_context_length(request.serving.context_length)
    name = request.name or request.arch.slug
    check_place(name, request.version, request.arch, request.serving, request.repository)
    require_writable(request.repository)
    artefacts = build_artefacts(
        request.arch,
        request.checkpoint,
        request.artefacts / name,
        towers=TOWERS,
        precisions=PRECISIONS,
        download_root=request.download_root,
        hub=request.hub,
    )
    if artefacts.checkpoint.file.is_random:
        logger.warning("These weights are untrained (%s): for load tests only", artefacts.checkpoint.file.source)
    entry = RepositoryEntry(name, request.version, request.arch, artefacts, request.serving)

    def verify(repository: Path) -> Mapping[str, Any]:
        verification = _serve_and_verify(repository, entry)
        return {tower: parity.as_dict() for tower, parity in verification.parity.items()}

    publish(entry, request.repository, verify if request.verify else None)
    return entry


def _serve_and_verify(repository: Path, entry: RepositoryEntry) -> Verification:
    try:
        from cnclip_server import ServerError, TritonServer
    except ImportError as error:
        raise MissingRequirementError(
            f"verification needs the server ({error}): pip install 'cn-clip-triton[server]'"
        ) from error
    logger.info("Serving the repository to compare it with PyTorch")
    try:
        with (
            TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as server,
            stage_process() as process,
        ):
            verification = process.run(
                verify_server, server.grpc_url, entry.name, entry.artefacts.checkpoint.file.path, entry.arch
            )
    except ServerError as error:
        raise BuildError(f"the repository could not be served: {error}") from error
    verification.require()
    return verification


def describe(artefacts: Artefacts) -> list[str]:
    """Sums artefacts up, a line each."""
    return [
        f"{artefact.path}  {artefact.precision}  1 - cosine <= {artefact.record['parity']['cosine_distance']:.0e}"
        f"{'  (reused)' if artefact.reused else ''}"
        for artefact in artefacts.items
    ]
