"""The two ensembles of a slug: asked of once, and held to what they were then."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Literal, TypeAlias

from cnclip_client._catalogue import explain_not_found
from cnclip_client._exceptions import ModelChanged, ModelNotFound
from cnclip_client._info import ModelInfo, combine, parse_info
from cnclip_client._transport import Transport

__all__ = ["Kind", "Towers"]

Kind: TypeAlias = Literal["image", "text"]


class Towers:
    """What the server says of a slug's image and text ensemble. Threads may share one.

    Attributes:
        slug: The slug, such as `vit-b-16`.
    """

    def __init__(self, transport: Transport, slug: str, version: int | None) -> None:
        self.slug = slug
        self._transport = transport
        self._version = version
        self._infos: dict[Kind, ModelInfo] = {}
        self._asked_at: dict[Kind, float] = {}
        self._lock = threading.Lock()

    def name(self, kind: Kind) -> str:
        """Returns an ensemble's full name."""
        return f"{self.slug}-{kind}"

    def one(self, kind: Kind) -> ModelInfo:
        """Returns what the server says of one ensemble.

        Raises:
            ModelNotFound: The server does not have it.
            ModelNotReady: It does not serve it at present.
            TransportError: No answer.
            ServerError: It is not a model of this project's.
        """
        with self._lock:
            if kind not in self._infos:
                asked_at = time.monotonic()
                self._infos[kind] = self._ask(kind)
                self._asked_at[kind] = asked_at
            return self._infos[kind]

    def pair(self) -> ModelInfo:
        """Returns what holds for both. Raises as `one` does, and CheckpointMismatch."""
        return combine(self.one("image"), self.one("text"))

    def any(self) -> ModelInfo:
        """Returns what holds for both, or for the one that the server has. Raises as `pair` does."""
        try:
            self.one("image")
        except ModelNotFound:
            return self.one("text")
        try:
            return self.pair()
        except ModelNotFound:
            return self.one("image")

    def require_unchanged(self, kind: Kind, max_age_s: float = 0.0) -> None:
        """Asks the server, once, whether it still serves what it said it did; before that there is nothing to ask.

        Args:
            kind: The tower.
            max_age_s: An answer not older than this, in seconds, will do.

        Raises:
            ModelChanged: It serves something else in its place.
            CnclipError: As `one`.
        """
        known = self._infos.get(kind)
        if known is None or time.monotonic() - self._asked_at[kind] < max_age_s:
            return
        name, asked_at = self.name(kind), time.monotonic()
        try:
            now = self._parse(kind, known.version, attempts=1)
        except ModelNotFound as error:
            try:
                now = self._parse(kind, self._transport.latest_version(name), attempts=1)
            except ModelNotFound:
                raise explain_not_found(self._transport, self.slug, error) from error
        if dataclasses.replace(now, max_batch_size=known.max_batch_size) != known:
            raise ModelChanged(model=name, before=known, after=now)
        self._asked_at[kind] = asked_at

    def _ask(self, kind: Kind) -> ModelInfo:
        name = self.name(kind)
        try:
            # Pinned: a version that comes up later must not mix its features into this client's.
            version = self._transport.latest_version(name) if self._version is None else str(self._version)
            return self._parse(kind, version)
        except ModelNotFound as error:
            raise explain_not_found(self._transport, self.slug, error) from error

    def _parse(self, kind: Kind, version: str, attempts: int | None = None) -> ModelInfo:
        name = self.name(kind)
        parameters, max_batch_size = self._transport.config(name, version, attempts)
        return parse_info(self.slug, name, version, parameters, max_batch_size)
