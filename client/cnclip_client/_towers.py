"""The two ensembles of a slug: asked of once, and held to what they were then."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from typing import Literal, TypeAlias

from cnclip_client._catalogue import explain_not_found
from cnclip_client._endpoints import Endpoints
from cnclip_client._exceptions import CnclipError, ModelChanged, ModelNotFound
from cnclip_client._info import ModelInfo, combine, parse_info
from cnclip_client._transport import Transport

__all__ = ["Kind", "Towers"]

Kind: TypeAlias = Literal["image", "text"]


class Towers:
    """What the server says of a slug's image and text ensemble. Threads may share one.

    Attributes:
        slug: The slug, such as `vit-b-16`.
    """

    def __init__(self, endpoints: Endpoints, slug: str, version: int | None) -> None:
        self.slug = slug
        self._endpoints = endpoints
        self._version = version
        self._infos: dict[Kind, ModelInfo] = {}
        self._asked_at: dict[tuple[Kind, Transport], float] = {}
        self._lock = threading.Lock()
        endpoints.check = self._check_known

    def name(self, kind: Kind) -> str:
        """Returns an ensemble's full name."""
        return f"{self.slug}-{kind}"

    def one(self, kind: Kind) -> ModelInfo:
        """Returns what the servers say of one ensemble: the first that answers, and the others are held to it.

        Raises:
            ModelChanged: Another one serves another model.
            ModelNotFound: The server does not have it.
            ModelNotReady: It does not serve it at present.
            TransportError: No answer.
            ServerError: It is not a model of this project's.
        """
        with self._lock:
            if kind not in self._infos:
                self._infos[kind] = self._endpoints.ask(lambda transport: self._ask(transport, kind))
                try:
                    self._endpoints.recheck()
                except BaseException:
                    del self._infos[kind]
                    raise
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
        """Asks the servers, once, whether they still serve what they did; before `one` there is nothing to ask.

        One that cannot be had is left out; what it answered before is taken on its last word.

        Args:
            kind: The tower.
            max_age_s: An answer not older than this, in seconds, will do.

        Raises:
            ModelChanged: One serves something else in its place.
            CnclipError: As `one`, where none can be had.
        """
        if kind not in self._infos:
            return
        asked = self._endpoints.inside()
        for endpoint in asked:
            if time.monotonic() - self._asked_at.get((kind, endpoint.transport), -math.inf) < max_age_s:
                continue
            try:
                self._check(endpoint.transport, kind)
            except CnclipError as error:
                self._endpoints.leave_out(endpoint, error)
                if isinstance(error, ModelChanged) or (len(self._endpoints) == 1):
                    raise
        if not self._endpoints.inside():
            self._endpoints.revive()

    def _check_known(self, transport: Transport) -> None:
        for kind in tuple(self._infos):
            self._check(transport, kind)

    def _check(self, transport: Transport, kind: Kind) -> None:
        """Asks a server whether it serves what the first did."""
        known, name, asked_at = self._infos[kind], self.name(kind), time.monotonic()
        try:
            now = self._parse(transport, kind, known.version)
        except ModelNotFound as error:
            try:
                now = self._parse(transport, kind, transport.latest_version(name))
            except ModelNotFound:
                raise explain_not_found(transport, self.slug, error) from error
        same_sizes = {name: getattr(known, name) for name in ("max_batch_size", "preferred_batch_size")}
        if dataclasses.replace(now, **same_sizes) != known:
            raise ModelChanged(model=name, before=known, after=now, url=transport.url, servers=len(self._endpoints))
        self._asked_at[kind, transport] = asked_at

    def _ask(self, transport: Transport, kind: Kind) -> ModelInfo:
        name, asked_at = self.name(kind), time.monotonic()
        try:
            # Pinned: a version that comes up later must not mix its features into this client's.
            version = transport.latest_version(name) if self._version is None else str(self._version)
            info = self._parse(transport, kind, version)
        except ModelNotFound as error:
            raise explain_not_found(transport, self.slug, error) from error
        self._asked_at[kind, transport] = asked_at
        return info

    def _parse(self, transport: Transport, kind: Kind, version: str) -> ModelInfo:
        name = self.name(kind)
        parameters, max_batch_size = transport.config(name, version)
        return parse_info(self.slug, name, version, parameters, max_batch_size)
