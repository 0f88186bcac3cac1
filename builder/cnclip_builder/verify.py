"""Compares a live server with PyTorch: from encoded images and texts to features, through all that is served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cnclip_builder.arch import Arch
from cnclip_builder.checkpoint.load import Checkpoint
from cnclip_builder.errors import BuildError, MissingRequirementError, ParityError, SettingError
from cnclip_builder.parity.distance import TOLERANCES, Parity, Tolerance, measure_parity
from cnclip_builder.prepared import Preparation, compare_preparation
from cnclip_builder.reference import Reference
from cnclip_builder.tensors import ALL_PRECISIONS, TOWERS, Precision, Tower

if TYPE_CHECKING:
    from cnclip_client import Client

_LOGIT_SCALE_TOLERANCE = 1e-6

# Of features of pixels that a GPU decoded, against those of exact pixels by the same encoder.
CARD_TOLERANCE = Tolerance(cosine_distance=1e-3, centred_distance=1e-3)


@dataclass(frozen=True)
class Verification:
    """What a comparison of a live server with PyTorch found.

    Attributes:
        model: the name that the models are served under.
        tolerances: what each row of the images and of the texts had to hold.
        parity: measured, of the images and of the texts.
        reduced_decoding: where images are decoded at a reduced scale, which their parity is that of: how far that alone
            takes PyTorch's features from those of exact decoding.
        card_decoding: where a GPU decodes images: how far its features are from those of exact pixels, both by the
            served encoder; `parity` is then that of exact pixels.
        preparation: whether pixels and token ids are cn_clip's: the server's, or a client's for encoders alone; None
            where that was not looked at.
    """

    model: str
    tolerances: dict[Tower, Tolerance]
    parity: dict[Tower, Parity]
    reduced_decoding: Parity | None = None
    card_decoding: Parity | None = None
    preparation: Preparation | None = None

    def as_dict(self) -> dict[str, Any]:
        """The distances for a manifest."""
        beside = (("reduced_decoding", self.reduced_decoding), ("card_decoding", self.card_decoding))
        found = (*self.parity.items(), *beside)
        return {name: parity.as_dict() for name, parity in found if parity is not None}

    def require(self) -> None:
        """Raises ParityError if a row is beyond its encoder's tolerance, or what it is made of is not cn_clip's."""
        if self.preparation is not None:
            self.preparation.require(self.model)
        card = self.card_decoding
        if card is not None and not card.within(CARD_TOLERANCE):
            raise ParityError(
                f"the image features that {self.model} serves are too far from those of exact pixels: its GPU's "
                f"decoding takes them off by 1 - cosine = {card.cosine_distance:.2e} in row {card.worst_row} (at most "
                f"{CARD_TOLERANCE.cosine_distance:.0e} passes), {card.centred_distance:.2e} after centring (at most "
                f"{CARD_TOLERANCE.centred_distance:.0e}): build the repository with --preprocess exact"
            )
        for tower, parity in self.parity.items():
            tolerance = self.tolerances[tower]
            if not parity.within(tolerance):
                raise ParityError(
                    f"the {tower} features that {self.model} serves are not PyTorch's: 1 - cosine reaches "
                    f"{parity.cosine_distance:.2e} in row {parity.worst_row} (at most "
                    f"{tolerance.cosine_distance:.0e} passes), {parity.centred_distance:.2e} after centring (at "
                    f"most {tolerance.centred_distance:.0e}): build the repository again, and check that the "
                    "server runs the libraries of constraints.txt"
                )


def verify_server(url: str, model: str, reference: Reference) -> Verification:
    """Sends images and texts to a server, and compares its features with those of cn_clip in PyTorch.

    Args:
        url: the server's gRPC address.
        model: the name that the models are served under.
        reference: the checkpoint that they were built from, and the images and texts.

    Raises:
        SettingError: the address is none, or the arch's vocabulary is not the model's.
        BuildError: the server does not answer, or serves another checkpoint.
    """
    from cnclip_client import Client, CnclipError
    from tritonclient.utils import InferenceServerException

    arch, images = reference.arch, reference.images
    arch.require_vocabulary()
    checkpoint = reference.checkpoint
    try:
        with connected(url, model, arch.vocabulary_file) as client:
            info = client.info
            _require_same_checkpoint(model, info, checkpoint)
            texts = reference.texts(info.context_length)
            served: dict[Tower, npt.NDArray[np.float32]] = {
                "image": client.encode_images(list(images.values()), normalize=False),
                "text": client.encode_texts(texts, normalize=False),
            }
            preparation = compare_preparation(url, client, arch, images, texts)
        card_decoding = None
        if info.decoding == "gpu":
            # The same encoder, and pixels that were prepared here, exactly.
            with Client(url, model=model, prepare="client", vocabulary=arch.vocabulary_file) as preparing:
                exact = preparing.encode_images(list(images.values()), normalize=False)
            card_decoding = measure_parity(served["image"], exact)
            served["image"] = exact
    except (CnclipError, InferenceServerException) as error:
        raise _not_verified(url, model, error) from error
    precisions = served_precisions(info.precision)
    reduced = info.decoding == "reduced"
    expected = {
        "image": reference.image_features(reduced=reduced),
        "text": reference.text_features(info.context_length),
    }
    return Verification(
        model,
        {tower: TOLERANCES[precision] for tower, precision in precisions.items()},
        {tower: measure_parity(served[tower], expected[tower]) for tower in served},
        measure_parity(expected["image"], reference.image_features()) if reduced else None,
        card_decoding,
        preparation,
    )


def require_server() -> None:
    """Refuses to serve where nothing can.

    Raises:
        MissingRequirementError: there is no tritonserver here, or it can't run.
    """
    from cnclip_server import ServerError, require_tritonserver

    try:
        require_tritonserver()
    except ServerError as error:
        raise MissingRequirementError(f"a repository can't be served here: {error}") from error


@contextlib.contextmanager
def serving(repository: Path, named: str) -> Iterator[str]:
    """Starts a tritonserver on a repository; gives its gRPC address.

    Args:
        repository: its folder.
        named: what errors call it.

    Raises:
        MissingRequirementError: as `require_server`.
        BuildError: it could not be served.
    """
    require_server()
    from cnclip_server import ServerError, TritonServer

    try:
        with TritonServer(repository, grpc_port=0, http_port=0, metrics_port=0) as server:
            yield server.grpc_url
    except ServerError as error:
        raise BuildError(f"{named} could not be served: {error}") from error


def addresses_of(url: str, model: str) -> list[str]:
    """Parts what names several servers with commas between them, each once; nothing is sent.

    Raises:
        SettingError: one of them is no address.
    """
    from cnclip_client import Client

    with addressed(), Client(url, model=model):
        return list(dict.fromkeys(one.strip() for one in url.split(",") if one.strip()))


def require_served(url: str, model: str, arch: Arch) -> None:
    """Sees that a server answers and has a model: before a checkpoint is fetched and read to be compared with it.

    Raises:
        SettingError: the arch's vocabulary is not the model's.
        BuildError: it does not answer, serves no such model, or is no address.
    """
    from cnclip_client import CnclipError

    arch.require_vocabulary()
    try:
        with connected(url, model, arch.vocabulary_file):
            pass
    except (CnclipError, ValueError) as error:  # ValueError: what is no address
        raise _not_verified(url, model, error) from error


def _not_verified(url: str, model: str, error: Exception) -> BuildError:
    return BuildError(f"{model} at {url} can't be verified: {error}")


@contextlib.contextmanager
def connected(url: str, model: str, vocabulary: Path | None = None) -> Iterator[Client]:
    """Connects to a server, which prepares images and texts; one of encoders alone has this process do it.

    Args:
        url: the server's gRPC address.
        model: the name that the models are served under.
        vocabulary: the file of the text encoder's tokens, for token ids that are made here; None for cn_clip's.

    Raises:
        SettingError: the address is none.
        CnclipError: it does not answer.
    """
    from cnclip_client import Client, ModelNotFound

    with contextlib.ExitStack() as opened:
        with addressed():
            client = opened.enter_context(Client(url, model=model))
        try:
            _ = client.info
        except ModelNotFound:
            client = opened.enter_context(Client(url, model=model, prepare="client", vocabulary=vocabulary))
        yield client


@contextlib.contextmanager
def addressed() -> Iterator[None]:
    """Turns what the client says of an address that is none into an error of the builder's.

    Raises:
        SettingError: it is none.
    """
    try:
        yield
    except ValueError as error:
        raise SettingError(str(error)) from error


def served_precisions(served: str) -> dict[Tower, Precision]:
    """Reads what a server says of its encoders: "int8", or "image fp32, text int8" if they differ.

    Raises:
        BuildError: it says something that this builder does not know, so that nothing tells what they have to hold.
    """
    parts = dict(part.split(" ", 1) for part in served.split(", ") if " " in part) or dict.fromkeys(TOWERS, served)
    known = {tower: precision for tower in TOWERS for precision in ALL_PRECISIONS if parts.get(tower) == precision}
    if set(known) != set(TOWERS):
        raise BuildError(
            f"the server says {served!r} of its encoders' precision, and this builder knows "
            f"{', '.join(ALL_PRECISIONS)}: build the repository with this builder, or use the one that built it"
        )
    return known


def _require_same_checkpoint(model: str, info: Any, checkpoint: Checkpoint) -> None:
    if info.checkpoint_sha256 != checkpoint.sha256:
        raise BuildError(
            f"{model} is served from a checkpoint with sha256 {info.checkpoint_sha256[:12]}…, but {checkpoint.path} "
            f"has {checkpoint.sha256[:12]}…: name the one that the repository was built from (see its manifest.json)"
        )
    if abs(info.logit_scale / checkpoint.logit_scale - 1) > _LOGIT_SCALE_TOLERANCE:
        raise ParityError(f"{model} serves logit_scale {info.logit_scale}, the checkpoint has {checkpoint.logit_scale}")
