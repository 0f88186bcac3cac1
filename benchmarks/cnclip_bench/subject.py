"""What is measured: a checkpoint, where it is served from, and images and texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnclip_builder.arch import Arch, Tower
    from cnclip_client import Client
    from cnclip_templates.cnclip_token_ids import TokenIds

__all__ = ["FOLDER", "Subject", "make_subject", "onnx_session", "serving"]

FOLDER = Path("build/bench")
"""Where what is measured is built: artefacts, random checkpoints and a repository."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        arch: Its architecture.
        checkpoint: Its weights.
        repository: Where it is served from.
        artefacts: Folder of its ONNX files.
        name: Of the served models.
        images: Encoded images.
        texts: Texts.
    """

    arch: Arch
    checkpoint: Path
    repository: Path
    artefacts: Path
    name: str
    images: list[bytes]
    texts: list[str]

    def items(self, tower: Tower) -> list[Any]:
        """Its images or texts."""
        return self.images if tower == "image" else self.texts

    def token_ids(self) -> TokenIds:
        """The tokeniser that is served."""
        from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH, cn_clip_vocabulary
        from cnclip_templates.cnclip_token_ids import TokenIds

        return TokenIds(cn_clip_vocabulary(), DEFAULT_CONTEXT_LENGTH)

    def served_session(self, tower: Tower) -> Any:
        """An ONNX Runtime session on the served encoder's file, with the settings that it is served with."""
        folder = max((self.repository / f"{self.name}-{tower}-encoder").glob("[0-9]*"), key=lambda path: int(path.name))
        return onnx_session(folder / "model.onnx")


def make_subject(
    arch: str, checkpoint: str, repository: Path | None, images: Path | None, captions: Path | None
) -> Subject:
    """Gathers what is measured; builds its repository where one is asked for and lacks the model.

    Args:
        arch: The architecture, or a .json file.
        checkpoint: A .pt file, or random:SEED.
        repository: Where it is to be served from; None if it is not served.
        images: A folder of images; None for the builder's samples.
        captions: A file of texts; None for the builder's.
    """
    from cnclip_builder.arch import get_arch
    from cnclip_builder.build import BuildRequest, build_repository
    from cnclip_builder.serving import ServingConfig

    from cnclip_bench import inputs

    chosen = get_arch(arch)
    path, artefacts = Path(), FOLDER / "artefacts" / chosen.slug
    if repository is not None:
        request = BuildRequest(
            arch=chosen,
            checkpoint=checkpoint,
            serving=ServingConfig(target="cpu", precision="fp32", context_length=52, max_batch_size=16),
            repository=repository,
            artefacts=FOLDER / "artefacts",
            download_root=FOLDER / "checkpoints",
        )
        path = build_repository(request).artefacts.checkpoint.file.path
    return Subject(
        arch=chosen,
        checkpoint=path,
        repository=repository or Path(),
        artefacts=artefacts,
        name=chosen.slug,
        images=inputs.images(images, chosen.resolution),
        texts=inputs.captions(captions),
    )


@contextmanager
def serving(subject: Subject) -> Iterator[tuple[str, Client]]:
    """Serves the repository; gives the server's address and a client of the model."""
    from cnclip_client import Client
    from cnclip_server import TritonServer

    with (
        TritonServer(subject.repository, grpc_port=0, http_port=0, metrics_port=0) as server,
        Client(server.grpc_url, model=subject.name) as client,
    ):
        yield server.grpc_url, client


def onnx_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU that leaves the cores to others while it has nothing to do."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Or its idle threads would take the cores from what is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
