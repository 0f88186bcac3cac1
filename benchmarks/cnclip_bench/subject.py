"""What is measured: a checkpoint, where it is served from, and images and texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnclip_builder.arch import Arch
    from cnclip_builder.tensors import Tower
    from cnclip_client import Client
    from cnclip_server import TritonServer
    from cnclip_token_ids import TokenIds

__all__ = [
    "FOLDER",
    "OWN_REPOSITORY",
    "Subject",
    "arch_option",
    "checkpoint_file",
    "make_subject",
    "onnx_session",
    "open_session",
    "read_config",
    "serving",
]

FOLDER = Path("build/bench")
"""Where what is measured is built: artefacts, random checkpoints and a repository."""

OWN_REPOSITORY = FOLDER / "repository"
"""What is served where a user names no repository."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        arch: Its architecture.
        checkpoint: Its weights.
        repository: Where it is served from.
        artefacts: Folder of its ONNX files in cn_clip's format; may be missing for a repository that was there.
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
        """The tokeniser that is served; it pads to steps of 8 tokens."""
        from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH
        from cnclip_token_ids import TokenIds

        return TokenIds(self.arch.vocabulary_file, DEFAULT_CONTEXT_LENGTH, range(8, DEFAULT_CONTEXT_LENGTH, 8))

    def served_file(self, tower: Tower) -> Path:
        """The file that Triton loads as the encoder: ONNX, or the plan of the first kind of GPU."""
        model = self.repository / f"{self.name}-{tower}-encoder"
        version = max((path for path in model.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
        return version / str(read_config(model).default_model_filename)

    def served_session(self, tower: Tower) -> Any:
        """An ONNX Runtime session on the served encoder's file, where it is served: on the CPU, or a GPU.

        Raises:
            ValueError: A plan is served.
        """
        path = self.served_file(tower)
        if path.suffix != ".onnx":
            raise ValueError(f"{path} is a TensorRT plan, and no ONNX Runtime runs it in process")
        return onnx_session(path, gpu=self.is_served_on_gpu(tower))

    def is_served_on_gpu(self, tower: Tower) -> bool:
        """Whether the encoder has instances on a GPU."""
        groups = read_config(self.repository / f"{self.name}-{tower}-encoder").instance_group
        return any(group.kind == group.KIND_GPU for group in groups)


def make_subject(
    arch: str | None,
    checkpoint: str,
    repository: Path | None = None,
    *,
    name: str | None = None,
    images: Path | None = None,
    captions: Path | None = None,
    served: bool = True,
) -> Subject:
    """Gathers what is measured.

    The benchmarks' own repository, and any that lacks the model, is built; a repository that has it is left as it is.

    Args:
        arch: The architecture, or a .json file; None to read it off the checkpoint.
        checkpoint: As `cnclip-build` takes it.
        repository: Where its served models are; None if only the checkpoint is measured.
        name: Of the served models; None for the arch in lower case.
        images: A folder of images; None for the builder's samples.
        captions: A file of texts; None for the builder's.
        served: Whether a server will be started on the repository: then what keeps one from running is told before a
            build takes its minutes.

    Raises:
        ServerError: No server can be started here.
        ValueError: The repository serves another checkpoint, or encoders alone.
    """
    from cnclip_builder.arch import get_arch
    from cnclip_server import require_tritonserver

    from cnclip_bench import inputs

    if repository is not None and served:
        require_tritonserver()
    chosen = get_arch(arch_option(arch, checkpoint, name))
    served_as, path = name or chosen.slug, Path()
    if repository is not None:
        there = {part for part in ("", "-encoder") if (repository / f"{served_as}-image{part}").exists()}
        if there == {"-encoder"}:
            raise ValueError(
                f"{repository} has encoders of {served_as} alone, and what prepares for them is measured too: "
                "give a --repository with all models"
            )
        if repository == OWN_REPOSITORY or not there:
            path = _build(chosen, checkpoint, repository, served_as)
        else:
            path = _served_checkpoint(chosen, checkpoint, repository, served_as)
    return Subject(
        arch=chosen,
        checkpoint=path,
        repository=repository or Path(),
        artefacts=FOLDER / "artefacts" / served_as,
        name=served_as,
        images=inputs.images(images, chosen.resolution),
        texts=inputs.captions(captions),
    )


def arch_option(arch: str | None, checkpoint: str, name: str | None) -> str:
    """Names the architecture that is measured, as `get_arch` takes it.

    Args:
        arch: As the command line has it; None for the checkpoint's.
        checkpoint: As `cnclip-build` takes it.
        name: Of the served models.

    Returns:
        A name, or a JSON file: one of its own sizes is written down, since several processes ask for it.
    """
    from cnclip_builder.checkpoint.choose import choose_arch

    chosen = choose_arch(arch, checkpoint, name=name)
    if not chosen.of_checkpoint:
        return chosen.option
    file = FOLDER / "archs" / f"{chosen.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(chosen.model_info, indent=1) + "\n", encoding="utf-8")
    return str(file)


def checkpoint_file(checkpoint: str, arch: Arch) -> Path:
    """The file, or folder, of a checkpoint as `cnclip-build` takes it; made or fetched if need be.

    Raises:
        CheckpointError: There is none.
    """
    from cnclip_builder.checkpoint.sources import fetch_checkpoint

    return fetch_checkpoint(checkpoint, arch, FOLDER / "checkpoints", "huggingface").path


def _build(arch: Arch, checkpoint: str, repository: Path, name: str) -> Path:
    from cnclip_builder.arch import DEFAULT_CONTEXT_LENGTH
    from cnclip_builder.build import BuildRequest, build_repository
    from cnclip_builder.repository.choosing import choose_settings

    serving, _ = choose_settings({}, {}, DEFAULT_CONTEXT_LENGTH)  # for a GPU where there is one, as users build
    request = BuildRequest(
        arch=arch,
        checkpoint=checkpoint,
        serving=serving,
        repository=repository,
        artefacts=FOLDER / "artefacts",
        download_root=FOLDER / "checkpoints",
        name=name,
    )
    return build_repository(request).artefacts.checkpoint.file.path


def _served_checkpoint(arch: Arch, checkpoint: str, repository: Path, name: str) -> Path:
    """The file of a checkpoint, once it is known to be what the repository serves."""
    from cnclip_builder.checkpoint.parts import find_parts

    path = checkpoint_file(checkpoint, arch)
    served = read_config(repository / f"{name}-image").parameters["checkpoint_sha256"].string_value
    if find_parts(path).sha256() != served:
        raise ValueError(
            f"{repository} serves another checkpoint as {name} than {checkpoint}, and only the same is worth "
            "comparing: give its own with --checkpoint, or another --repository"
        )
    return path


def read_config(model: Path) -> Any:
    """The `ModelConfig` of a model's folder."""
    from cnclip_builder.repository.render import parse_config

    file = model / "config.pbtxt"
    return parse_config(file.read_bytes(), str(file))


@contextmanager
def serving(subject: Subject) -> Iterator[tuple[TritonServer, Client]]:
    """Serves the repository on free ports; gives the server, and a client of the model."""
    from cnclip_client import Client
    from cnclip_server import TritonServer

    with (
        TritonServer(subject.repository, grpc_port=0, http_port=0, metrics_port=0) as server,
        Client(server.grpc_url, model=subject.name) as client,
    ):
        yield server, client


def onnx_session(path: Path, gpu: bool = False) -> Any:
    """An ONNX Runtime session that leaves the cores to others while it has nothing to do.

    Raises:
        ValueError: A GPU is asked for, and it would not run there.
    """
    if gpu:
        return open_session({"name": path.parents[1].name}, path, "GPU")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Or its idle threads would take the cores from what is measured next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_session(config: Mapping[str, Any], path: Path, kind: str) -> Any:
    """Opens a session as the server's stand-in backend does: with CUDA of pip's wheels, and on a GPU or not at all.

    Args:
        config: The model's, as Triton gives it.
        path: The ONNX file.
        kind: Of its instances: CPU or GPU.

    Raises:
        ValueError: It would not run where it is served.
    """
    from cnclip_server.backends import onnxruntime as stand_in

    # As Triton has it for the stub; its modules import each other by their bare names.
    sys.path[:0] = stand_in.__path__
    from cnclip_server.backends.onnxruntime import cnclip_ort_session

    try:
        return cnclip_ort_session.open_session(config, path, kind=kind, device_id=0)
    except Exception as error:  # of a class that the stand-in knows by another name
        raise ValueError(str(error)) from error
