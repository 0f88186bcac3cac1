"""A side that is computed here: a checkpoint in PyTorch, or ONNX files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cnclip_client import Block, Limits

from cnclip_builder.arch import Arch
from cnclip_builder.comparison.sides import Facts, Named
from cnclip_builder.errors import SettingError
from cnclip_builder.parity.probes import normalise
from cnclip_builder.prepared import tokenize_as_cn_clip
from cnclip_builder.system.atomic import sha256_of_file
from cnclip_builder.tensors import TENSORS, TOWERS, Precision, Tower

_Features = npt.NDArray[np.float32]
_Encoder = Callable[[npt.NDArray[Any]], _Features]

_BATCH: Mapping[Tower, int] = {"image": 8, "text": 32}


class CheckpointSide:
    """Features of the reference in PyTorch, of the pixels and the token ids that cn_clip makes.

    Raises:
        SettingError: nothing tells its arch.
        CheckpointError: the checkpoint can't be had or used.
    """

    def __init__(self, named: Named) -> None:
        from cnclip_builder.checkpoint.choose import choose_arch
        from cnclip_builder.checkpoint.load import load_checkpoint
        from cnclip_builder.checkpoint.sources import fetch_checkpoint

        source = None if named.name == "official" else named.name
        self._arch = choose_arch(named.arch, source, named.vocabulary)
        self._arch.require_vocabulary()
        file = fetch_checkpoint(source, self._arch, named.download_root, named.hub)
        self._checkpoint = load_checkpoint(file.path, self._arch)
        self.facts = Facts(
            name=named.name,
            kind="checkpoint",
            arch=self._arch.name,
            checkpoint_sha256=self._checkpoint.sha256,
            precision="fp32",
            embedding_size=self._arch.embedding_size,
            context_length=_context_length(named, self._arch),
        )

    def encode(self, tower: Tower, values: Iterable[Any]) -> Iterator[Block]:
        """See `Side`."""
        from cnclip_builder.checkpoint.towers import encode, load_tower

        module = load_tower(self._checkpoint, tower)
        return _encode(self._arch, self.facts, tower, values, lambda inputs: encode(module, inputs))


class OnnxSide:
    """Features of the ONNX files that a build leaves in its folder of artefacts.

    Args:
        named: what it was named.
        folder: of the files.
        precision: which of them.

    Raises:
        SettingError: there are none of this precision, or of several architectures.
    """

    def __init__(self, named: Named, folder: Path, precision: Precision) -> None:
        self._folder = folder
        records = _read_sidecars(folder, precision)
        fingerprint = next(iter(records.values()))["fingerprint"]
        self._files = {tower: record["file"] for tower, record in records.items()}
        info = dict(fingerprint["arch"])
        self._arch = Arch(str(info.pop("name")), info, vocabulary=_vocabulary(named, folder, fingerprint))
        self.facts = Facts(
            name=named.name,
            kind="onnx",
            arch=self._arch.name,
            checkpoint_sha256=fingerprint["checkpoint_sha256"],
            precision=precision,
            embedding_size=self._arch.embedding_size,
            context_length=_context_length(named, self._arch),
        )

    def encode(self, tower: Tower, values: Iterable[Any]) -> Iterator[Block]:
        """See `Side`."""
        from cnclip_builder.export.check import open_session

        if tower not in self._files:
            raise SettingError(f"{self.facts.name} has no {tower} encoder in {self.facts.precision}: build it")
        session, names = open_session(self._folder / self._files[tower]), TENSORS[tower]

        def run(inputs: npt.NDArray[Any]) -> _Features:
            features: _Features = session.run([names.unnormalised], {names.input: inputs})[0]
            return features

        return _encode(self._arch, self.facts, tower, values, run)


def _context_length(named: Named, arch: Arch) -> int:
    if named.context_length is None:
        return arch.default_context_length
    return arch.checked_context_length(named.context_length)


def _read_sidecars(folder: Path, precision: Precision) -> dict[Tower, dict[str, Any]]:
    """The records of a folder's encoders in a precision, each with the name of its file.

    Raises:
        SettingError: there are none, of more than one model, or a record can't be read.
    """
    found: dict[Tower, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"*.{precision}.json")):
        try:
            record = json.loads(path.read_bytes())
            tower = next(tower for tower in TOWERS if tower == record["tower"])
            same = all(other["fingerprint"] == record["fingerprint"] for other in found.values())
            arch_name = record["fingerprint"]["arch"]["name"]
        except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
            raise SettingError(f"{path} is damaged ({error!r}): build the ONNX files again") from error
        if tower in found or not same:
            raise SettingError(f"{folder} holds files of more models than {arch_name}: give the folder of one")
        found[tower] = {**record, "file": path.with_suffix(".onnx").name}
    if not found:
        raise SettingError(
            f"{folder} holds no ONNX files in {precision}, with the .json that cnclip-build writes beside each: give "
            "the folder of a model's artefacts, such as build/artefacts/vit-b-16"
        )
    return found


def _vocabulary(named: Named, folder: Path, fingerprint: Mapping[str, Any]) -> Path | None:
    """The vocabulary that files were made with, None for cn_clip's.

    Raises:
        SettingError: it is another one, and not given.
    """
    wanted = fingerprint.get("vocabulary")
    if wanted is None:
        return None
    if named.vocabulary is None or sha256_of_file(named.vocabulary) != wanted:
        raise SettingError(f"{folder} was built with a vocabulary of its own: give that file with --vocabulary")
    return named.vocabulary


def _encode(arch: Arch, facts: Facts, tower: Tower, values: Iterable[Any], encoder: _Encoder) -> Iterator[Block]:
    """Encodes batch by batch; what can't be read or decoded is a failure of its own."""
    rest, start = iter(values), 0
    while batch := list(islice(rest, _BATCH[tower])):
        failures: dict[int, str] = {}
        prepared: list[npt.NDArray[Any]] = []
        indices: list[int] = []
        for place, value in enumerate(batch, start):
            try:
                if tower == "image":
                    prepared.append(_pixels(value, arch.resolution))
                else:
                    prepared.append(tokenize_as_cn_clip(arch, [value], facts.context_length)[0])
                indices.append(place)
            except (OSError, ValueError, TypeError) as error:
                failures[place] = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        features = np.empty((0, facts.embedding_size), np.float32)
        if prepared:
            stacked = np.stack(prepared)
            features = encoder(normalise(stacked) if tower == "image" else stacked)
        yield Block(start, start + len(batch), np.array(indices, np.int64), features, failures)
        start += len(batch)


def _pixels(value: str | bytes, resolution: int) -> npt.NDArray[np.uint8]:
    """Decodes an image, from its path or its bytes, to what cn_clip's transform gives before `ToTensor`.

    Raises:
        OSError: it can't be read.
        ValueError: it is no image, or a larger file than the client sends.
    """
    from cnclip_pixels import decode_pixels

    if isinstance(value, str):
        path, most = Path(value), Limits().item_bytes
        if (size := path.stat().st_size) > most:
            raise ValueError(f"is larger than {most:,} bytes ({size:,})")
        value = path.read_bytes()
    pixels: npt.NDArray[np.uint8] = decode_pixels(value, resolution)
    return pixels
