"""The two things that are compared, A and B: whatever gives features of images and texts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cnclip_builder.errors import SettingError
from cnclip_builder.repository.manifest import MANIFEST_NAME
from cnclip_builder.tensors import ALL_PRECISIONS, Tower

if TYPE_CHECKING:
    from cnclip_client import Block

_SERVER = re.compile(r"(?:grpc://)?(?P<address>(?:\[[^]/]+\]|[^:/\\]+):\d+)(?:/(?P<model>[^/]+))?")


@dataclass(frozen=True)
class Facts:
    """What a side is.

    Attributes:
        name: as it was named on the command line.
        kind: "checkpoint", "onnx", "repository" or "server".
        arch: the architecture's name.
        checkpoint_sha256: what it comes of.
        precision: of its encoders: "fp32" and so on.
        embedding_size: length of its features.
        context_length: tokens of a text that it reads.
    """

    name: str
    kind: str
    arch: str
    checkpoint_sha256: str
    precision: str
    embedding_size: int
    context_length: int


class Side(Protocol):
    """Gives features."""

    @property
    def facts(self) -> Facts:
        """What it is."""

    def encode(self, tower: Tower, values: Iterable[Any]) -> Iterator[Block]:
        """Encodes images (paths or encoded bytes) or texts, in memory that does not grow with their number.

        Raises:
            BuildError: it has no such encoder, or can't be had.
        """


@dataclass(frozen=True)
class Named:
    """A side as it was named, and what helps to open it.

    Attributes:
        name: a checkpoint (a file, a folder of transformers, hf:OWNER/NAME, random:SEED, official), ONNX files with a
            precision (FOLDER:fp16), a repository (FOLDER, FOLDER#MODEL), or a server (HOST:PORT, HOST:PORT/MODEL).
        arch: of a checkpoint, as `choose_arch` takes it; None to read it off its tensors.
        context_length: tokens of a text that a checkpoint or an ONNX file is to read; None for its arch's default.
        download_root: folder of downloaded and random checkpoints.
        hub: where official checkpoints are fetched from.
        vocabulary: the file of its tokens, if it is not cn_clip's.
    """

    name: str
    arch: str | None
    context_length: int | None
    download_root: Path
    hub: Any
    vocabulary: Path | None = None


@contextlib.contextmanager
def open_side(named: Named) -> Iterator[Side]:
    """Opens a checkpoint, ONNX files, a repository or a server; closes it on exit.

    Raises:
        SettingError: the name is none of those, or not complete.
        BuildError: it can't be used.
    """
    folder, _, precision = named.name.rpartition(":")
    repository, _, model = named.name.partition("#")
    if folder and precision in ALL_PRECISIONS:
        from cnclip_builder.comparison.local import OnnxSide

        yield OnnxSide(named, Path(folder), precision)
    elif (Path(repository) / MANIFEST_NAME).is_file():
        from cnclip_builder.comparison.served import serving_repository

        with serving_repository(named, Path(repository), model or None) as side:
            yield side
    elif not _is_checkpoint(named.name) and (server := _SERVER.fullmatch(named.name)):
        from cnclip_builder.comparison.served import asking_server

        with asking_server(named, server["address"], server["model"], "server") as side:
            yield side
    elif Path(named.name).is_dir() and any(Path(named.name).glob("*.onnx")):
        raise SettingError(f"{named.name} holds ONNX files: say which precision, {named.name}:fp16 or :fp32")
    else:
        from cnclip_builder.comparison.local import CheckpointSide

        yield CheckpointSide(named)


def _is_checkpoint(name: str) -> bool:
    """Whether a name that looks like `HOST:PORT` is none."""
    return name.startswith("random:") or Path(name).exists()
