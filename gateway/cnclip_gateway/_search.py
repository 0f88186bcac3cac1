"""Pictures found by a sentence or by a picture, in an index or among all features of a file."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from cnclip_client import BadFile, Client
from cnclip_client.features import Features, Origin, origin_of, read_features
from cnclip_client.index import Index
from cnclip_client.retrieval import Gallery, Id, search
from numpy.typing import NDArray

from cnclip_gateway._errors import BadRequest, GatewayError
from cnclip_gateway._models import Models

__all__ = ["Hit", "Searched", "Searcher", "open_searched"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hit:
    """A picture that was found.

    Attributes:
        row: Its place among what is searched, by which its thumbnail is asked for.
        id: Its id.
        score: Its cosine with what was looked for.
    """

    row: int
    id: Id
    score: float


class Searched(Protocol):
    """What is searched. Threads may share it."""

    @property
    def origin(self) -> Origin | None:
        """What made the features, where that is known."""

    def __len__(self) -> int:
        """How many pictures there are."""

    def nearest(self, feature: NDArray[np.float32], k: int) -> list[Hit]:
        """Returns the k nearest of a feature, float32 [D], the best first. Raises ValueError of another D."""

    def id_of(self, row: int) -> Id:
        """Returns the id of a row."""


class _Approximate:
    """What `cnclip index` made."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.origin = index.record.origin

    def __len__(self) -> int:
        return len(self._index)

    def nearest(self, feature: NDArray[np.float32], k: int) -> list[Hit]:
        if len(feature) != self._index.record.size:
            raise ValueError(f"the index is of {self._index.record.size} numbers a picture")
        scores, rows = self._index.neighbours(feature[None], min(k, len(self)))
        found = [row for row in rows[0].tolist() if row >= 0]
        return [Hit(*one) for one in zip(found, self._index.ids_of(found), scores[0].tolist(), strict=False)]

    def id_of(self, row: int) -> Id:
        return self._index.ids_of([row])[0]


class _Exact:
    """All features of a file, one by one."""

    def __init__(self, gallery: Gallery, origin: Origin | None) -> None:
        self._gallery = gallery
        self._rows = {one: row for row, one in enumerate(gallery.ids.tolist())}
        self._lock = threading.Lock()
        self.origin = origin

    def __len__(self) -> int:
        return len(self._gallery)

    def nearest(self, feature: NDArray[np.float32], k: int) -> list[Hit]:
        asked = Features(np.zeros(1, np.int64), feature[None])
        with self._lock:
            (hits,) = search([asked], self._gallery, k=k)
        return [Hit(self._rows[one], one, score) for one, score in zip(hits.ids, hits.scores.tolist(), strict=True)]

    def id_of(self, row: int) -> Id:
        found: Id = self._gallery.ids[row : row + 1].tolist()[0]
        return found


def open_searched(path: Path, stack: ExitStack) -> Searched:
    """Opens what is to be searched.

    Args:
        path: A folder that `cnclip index` made, or image features in a form that `cnclip extract` writes.
        stack: Closes it.

    Raises:
        BadFile: It is neither, or damaged, or of texts.
        MissingExtra: faiss, or what reads the file, is not installed.
        OSError: It cannot be read.
    """
    if (path / "index.json").is_file():
        index = stack.enter_context(Index.open(path))
        if index.record.kind != "image":
            raise BadFile("an index of texts, and the page shows pictures; give one of images", path=str(path))
        return _Approximate(index)
    origin = origin_of(path)
    try:
        return _Exact(stack.enter_context(Gallery(read_features(path, "image"))), origin)
    except ValueError as error:
        raise BadFile(str(error), path=str(path)) from error


class Searcher:
    """Looks for pictures with what a model makes of a sentence or of a picture. Threads may share it.

    Args:
        searched: What is searched.
        models: What encodes.
        preprocess: Whether sentences are prepared as `cnclip extract texts` does.
    """

    def __init__(self, searched: Searched, models: Models, preprocess: bool) -> None:
        self._searched = searched
        self._models = models
        self._preprocess = preprocess
        self._warned = searched.origin is not None

    def __len__(self) -> int:
        return len(self._searched)

    def find(self, item: str | bytes, k: int) -> tuple[str, list[Hit]]:
        """Returns the slug of the model that was asked, and the k pictures nearest to a sentence or a picture.

        Raises:
            BadRequest: It cannot be encoded.
            GatewayError: No model could be had, or none of the checkpoint that the features are of.
            CnclipError: The models could not be listed.
        """
        slug = self._slug()
        feature = self._models.run(slug, lambda client: self._encoded(client, item))
        try:
            return slug, self._searched.nearest(feature, k)
        except ValueError as error:
            raise _another_checkpoint() from error

    def id_of(self, row: int) -> Id:
        """Returns the id of a row.

        Raises:
            BadRequest: There is none.
        """
        if not 0 <= row < len(self._searched):
            raise BadRequest("there is no such picture", status=404, code="not_found")
        return self._searched.id_of(row)

    def _slug(self) -> str:
        """Returns the only model there is, or that which the features are of by their own word."""
        names, origin = self._models.names(), self._searched.origin
        if len(names) > 1 and origin is not None and origin.model in names:
            return origin.model
        return self._models.chosen(None)

    def _encoded(self, client: Client, item: str | bytes) -> NDArray[np.float32]:
        known = client.info_of("text" if isinstance(item, str) else "image").checkpoint_sha256
        origin = self._searched.origin
        if origin is not None and origin.checkpoint_sha256 != known:
            raise _another_checkpoint()
        if not self._warned:
            self._warned = True
            _log.warning("no telling which checkpoint the features are of; see that the served model is of the same")
        if isinstance(item, str):
            found = client.encode_texts([item], preprocess=self._preprocess, errors="collect")
        else:
            found = client.encode_images([item], errors="collect")
        for reason in found.failures.values():
            raise BadRequest(f"what was sent cannot be encoded: {reason}; send another", code="bad_input")
        feature: NDArray[np.float32] = found.features[0]
        return feature


def _another_checkpoint() -> GatewayError:
    return GatewayError(
        "the pictures' features are of another checkpoint than the model that is served; whoever runs the gateway has "
        "to serve that one, or extract the features with this one",
        status=503,
        code="checkpoint_mismatch",
    )
