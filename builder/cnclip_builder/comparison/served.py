"""A side that a tritonserver serves: one that runs, or one that is started on a repository."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cnclip_client import Block, Client, served_models

from cnclip_builder.comparison.inputs import clients_errors
from cnclip_builder.comparison.sides import Facts, Named
from cnclip_builder.errors import SettingError
from cnclip_builder.repository.manifest import load_manifest
from cnclip_builder.tensors import Tower
from cnclip_builder.verify import addressed, connected, serving

logger = logging.getLogger(__name__)


class ServedSide:
    """Features of a running server.

    Args:
        named: what it was named.
        client: asks it.
        kind: "server" or "repository".
    """

    def __init__(self, named: Named, client: Client, kind: str) -> None:
        self._client = client
        info = client.info
        self.facts = Facts(
            name=named.name,
            kind=kind,
            arch=info.arch,
            checkpoint_sha256=info.checkpoint_sha256,
            precision=info.precision,
            embedding_size=info.embedding_size,
            context_length=info.context_length,
        )

    def encode(self, tower: Tower, values: Iterable[Any]) -> Iterator[Block]:
        """See `Side`."""
        return self._client.iter_images(values) if tower == "image" else self._client.iter_texts(values)


@contextlib.contextmanager
def asking_server(named: Named, address: str, model: str | None, kind: str) -> Iterator[ServedSide]:
    """Asks a running server.

    Args:
        named: what it was named.
        address: `HOST:PORT`, of gRPC.
        model: the name that the models are served under; None if there is but one.
        kind: "server" or "repository".

    Raises:
        SettingError: the address is none, or it serves several models, or none.
        BuildError: it does not answer.
    """
    with clients_errors():
        with addressed():
            chosen = model or _only(named.name, served_models(address))
        with connected(address, chosen) as client:
            yield ServedSide(named, client, kind)


@contextlib.contextmanager
def serving_repository(named: Named, repository: Path, model: str | None) -> Iterator[ServedSide]:
    """Starts a server on a repository, for as long as it is compared.

    Raises:
        SettingError: the repository serves several models, or not this one.
        MissingRequirementError: there is no tritonserver here.
        BuildError: it could not be served.
    """
    models = tuple(load_manifest(repository).models)
    if model is not None and model not in models:
        raise SettingError(f"{repository} serves no {model}: it has {', '.join(models) or 'nothing'}")
    chosen = model or _only(named.name, models)
    logger.info("Serving %s", repository)
    with serving(repository, str(repository)) as url, asking_server(named, url, chosen, "repository") as side:
        yield side


def _only(name: str, models: tuple[str, ...]) -> str:
    if len(models) == 1:
        return models[0]
    if not models:
        raise SettingError(f"{name} serves no Chinese-CLIP models: build some with cnclip-build repository")
    separator = "/" if ":" in name else "#"
    raise SettingError(f"{name} serves {', '.join(models)}: say which, {name}{separator}{models[0]}")
