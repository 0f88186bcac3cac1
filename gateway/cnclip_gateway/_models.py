"""The served models: a client for each, made when it is first asked for, and anew when the model was replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from cnclip_client import Client, CnclipError, ModelChanged, ModelNotFound, ServerError

from cnclip_gateway._errors import BadRequest, not_found, told

__all__ = ["Models"]

_T = TypeVar("_T")
# How old a list of the server's models may be.
_LISTED_S = 5.0


@dataclass(slots=True, eq=False)
class _Held:
    """A client, and by how many threads it is used."""

    client: Client
    users: int = 0


class Models:
    """What a server serves. Threads may share it.

    Args:
        connect: Makes the client of a slug.
        listed: Lists the server's slugs.
        only: The one slug that is to be served; None for all that there are.
    """

    def __init__(
        self, connect: Callable[[str], Client], listed: Callable[[], tuple[str, ...]], only: str | None = None
    ) -> None:
        self._connect = connect
        self._listed = listed
        self._only = only
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._names: tuple[str, ...] = ()
        self._names_at = -_LISTED_S
        self._closed = False

    def names(self) -> tuple[str, ...]:
        """Returns the slugs that are served, asked a few seconds ago at most.

        Raises:
            CnclipError: The server could not be had.
        """
        if self._only:
            return (self._only,)
        if time.monotonic() - self._names_at > _LISTED_S:
            names, at = self._listed(), time.monotonic()
            self._names, self._names_at = names, at
        return self._names

    def is_known(self, slug: str | None) -> bool:
        """Tells whether a slug is one that was asked before, so that `chosen` need not ask the server for it."""
        return slug in self._held

    def chosen(self, slug: str | None) -> str:
        """Returns the slug that a caller means: the one that is named, or the only one.

        Raises:
            BadRequest: There is no such model, or several to choose from.
            CnclipError: The server could not be had.
        """
        if slug is not None and self.is_known(slug):
            return slug
        names = self.names()
        if slug is None and len(names) == 1:
            return names[0]
        if slug is None and names:
            raise BadRequest(f"name a model: this serves {', '.join(names)}", param="model", code="model_missing")
        if slug is None or slug not in names:
            raise not_found(slug or "", names)
        return slug

    def run(self, slug: str, call: Callable[[Client], _T]) -> _T:
        """Returns what a call of a model's client returns; once more, with a new client, if the model was replaced.

        Raises:
            GatewayError: The client could not answer.
        """
        try:
            try:
                return self._run(slug, call)
            except ModelChanged:
                return self._run(slug, call)
        except CnclipError as error:
            raise told(error) from error

    def require_one(self) -> None:
        """Sees that a model can be had now: asks the server.

        Raises:
            CnclipError: None can.
        """
        for slug in self.names():
            return self.run(slug, _ask)
        raise not_found("", ())

    def close(self) -> None:
        """Closes all clients; calls under way end with RuntimeError."""
        with self._lock:
            self._closed = True
            held, self._held = list(self._held.values()), {}
        for one in held:
            one.client.close()

    def _run(self, slug: str, call: Callable[[Client], _T]) -> _T:
        with self._client(slug) as client:
            try:
                return call(client)
            except ServerError:
                client.require_unchanged()  # a model of another size under the name answers what is no answer
                raise

    @contextmanager
    def _client(self, slug: str) -> Iterator[Client]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the gateway is closed")
            held = self._held.get(slug)
            if held is None:
                held = self._held[slug] = _Held(self._connect(slug))
            held.users += 1
        try:
            yield held.client
        except (ModelChanged, ModelNotFound):
            with self._lock:
                if self._held.get(slug) is held:
                    del self._held[slug]
            raise
        finally:
            with self._lock:
                held.users -= 1
                unused = held.users == 0 and self._held.get(slug) is not held
            if unused:
                held.client.close()


def _ask(client: Client) -> None:
    """Has the server say that it serves the model, or one of its towers; the first time that is what `info_of` does."""
    try:
        client.info_of("text")
    except ModelNotFound:
        client.info_of("image")
    client.require_unchanged()
