"""The two towers of a slug, ensembles or encoders alone: asked of once, and held to what they were then."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal, TypeAlias

from cnclip_client._connection.catalogue import explain_not_found
from cnclip_client._connection.endpoint import Endpoint
from cnclip_client._connection.endpoints import PASSING, Endpoints
from cnclip_client._connection.transport import Transport
from cnclip_client._exceptions import (
    CheckpointMismatch,
    CnclipError,
    ModelChanged,
    ModelNotFound,
    ModelNotReady,
    ServerError,
)
from cnclip_client._info import ModelInfo
from cnclip_client._threads import Waiters
from cnclip_client._vocabulary import Kind

__all__ = ["Part", "Towers", "combine", "parse_info"]

Part: TypeAlias = Literal["ensemble", "encoder"]
"""What is asked of a tower: the ensemble, which prepares items, or the encoder, for which they are prepared here."""

_log = logging.getLogger(__name__)

# What two servers of the same model may say differently: none of it is seen in a feature.
_MAY_DIFFER = ("max_batch_size", "preferred_batch_size", "max_image_pixels", "image_formats", "text_lengths")

# How often an address is asked what it serves, since a proxy there may share requests among several servers: of two
# that are chosen at random, the one that serves another model is missed once in 128 times.
_TIMES = 8
# Questions at one time: one after the other they would hold each call up, by as many times the way there and back.
_AT_ONCE = 32


class Towers:
    """What the server says of a slug's image and text models. Threads may share one.

    Attributes:
        slug: The slug, such as `vit-b-16`.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        slug: str,
        version: int | None,
        wanted: Mapping[Kind, Sequence[Part]],
    ) -> None:
        """Asks nothing yet.

        Args:
            endpoints: The servers.
            slug: The slug.
            version: The version to use; None for the highest, or that of which an encoder's config tells.
            wanted: What is asked of each tower: the first of these that a server has.
        """
        self.slug = slug
        self._wanted = wanted
        self._parts: dict[Kind, Part] = {kind: parts[0] for kind, parts in wanted.items()}
        self._endpoints = endpoints
        self._version = version
        self._infos: dict[Kind, ModelInfo] = {}
        self._asked_at: dict[tuple[Kind, Transport], float] = {}
        self._told_of_gpu = False
        self._lock = threading.Lock()
        endpoints.check = self._check_known

    def name(self, kind: Kind) -> str:
        """Returns a tower's full name: its ensemble's, or its encoder's."""
        return f"{self.slug}-{kind}-encoder" if self._parts[kind] == "encoder" else f"{self.slug}-{kind}"

    def is_encoder(self, kind: Kind) -> bool:
        """Tells whether it is the encoder alone that is asked of a tower. Raises as `one` does."""
        self.one(kind)
        return self._parts[kind] == "encoder"

    def one(self, kind: Kind) -> ModelInfo:
        """Returns what the servers say of one tower: the first that answers, and the others are held to it.

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
                    for _, problem in self._problems(kind, self._endpoints.inside() * (_TIMES - 1)):
                        if not isinstance(problem, PASSING):  # they have just answered
                            raise problem
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

    def require_unchanged(self, kind: Kind, max_age_s: float = 0.0, requests: int = _TIMES) -> None:
        """Asks the servers whether they still serve what they did; before `one` there is nothing to ask.

        One that cannot be had is left out; what it answered before is taken on its last word.

        Args:
            kind: The tower.
            max_age_s: An answer not older than this, in seconds, will do.
            requests: How many have gone out: each is asked no more often than that.

        Raises:
            ModelChanged: One serves something else in its place.
            CnclipError: As `one`, where none can be had.
        """
        if kind not in self._infos:
            return
        now = time.monotonic()
        asked = [
            endpoint
            for endpoint in self._endpoints.inside()
            if now - self._asked_at.get((kind, endpoint.transport), -math.inf) >= max_age_s
        ]
        problems = self._problems(kind, asked)
        silent = {endpoint for endpoint, _ in problems}
        again = [endpoint for endpoint in asked if endpoint not in silent] * (min(requests, _TIMES) - 1)
        # Now they need not answer: they just have.
        problems += [one for one in self._problems(kind, again) if not isinstance(one[1], PASSING)]
        for endpoint, problem in problems:
            self._endpoints.leave_out(endpoint, problem)
            if isinstance(problem, ModelChanged) or len(self._endpoints) == 1:
                raise problem
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
        except (ModelNotFound, ModelNotReady) as error:
            # Of a version that it has unloaded Triton says what it says of one that loads: that it is not ready.
            try:
                now = self._parse(transport, kind, transport.latest_version(name))
            except (ModelNotFound, ModelNotReady):
                raise explain_not_found(transport, self.slug, error) from error
        same_sizes = {name: getattr(known, name) for name in _MAY_DIFFER}
        if dataclasses.replace(now, **same_sizes) != known:
            raise ModelChanged(model=name, before=known, after=now, url=transport.url, servers=len(self._endpoints))
        self._asked_at[kind, transport] = asked_at

    def _problems(self, kind: Kind, asked: Sequence[Endpoint]) -> list[tuple[Endpoint, CnclipError]]:
        """Puts `_check` to all of these at once, and returns what was wrong with which."""
        waiters, problems = Waiters(_AT_ONCE, "question"), []
        try:
            check = [waiters.submit(partial(self._check, endpoint.transport, kind)) for endpoint in asked]
            for endpoint, answer in zip(asked, check, strict=True):
                try:
                    answer.result()
                except CnclipError as error:
                    problems.append((endpoint, error))
        finally:
            waiters.close()
        waiters.join()  # else a client that was used and closed leaves some behind for a moment
        return problems

    def _ask(self, transport: Transport, kind: Kind) -> ModelInfo:
        problem: ModelNotFound | None = None
        for part in self._wanted[kind]:
            self._parts[kind] = part
            try:
                return self._ask_part(transport, kind)
            except ModelNotFound as error:
                problem = problem or error
        self._parts[kind] = self._wanted[kind][0]
        raise problem or AssertionError("a tower of which nothing is wanted")

    def _ask_part(self, transport: Transport, kind: Kind) -> ModelInfo:
        name, asked_at = self.name(kind), time.monotonic()
        try:
            # Pinned: a version that comes up later must not mix its features into this client's.
            version = transport.latest_version(name) if self._version is None else str(self._version)
            info = self._parse(transport, kind, version)
        except (ModelNotFound, ModelNotReady) as error:
            raise explain_not_found(transport, self.slug, error) from error
        self._asked_at[kind, transport] = asked_at
        return info

    def _parse(self, transport: Transport, kind: Kind, version: str) -> ModelInfo:
        name = self.name(kind)
        parameters, max_batch_size = transport.config(name, version)
        told = parameters.get("version", version)
        if told != version and self._version is None:
            # All versions of an encoder share a config, which tells of the one that was published last.
            with contextlib.suppress(ModelNotFound):
                parameters, max_batch_size = transport.config(name, told)
                version = told
        info = parse_info(self.slug, kind, name, version, parameters, max_batch_size)
        if self._parts[kind] != "encoder" or info.decoding != "gpu":
            return info
        if not self._told_of_gpu:
            self._told_of_gpu = True
            _log.warning(
                "%s-%s at %s decodes JPEGs on its GPU, this client decodes exactly: features of images that it "
                "prepares are near to those of images that are sent as they are, not equal; prepare all images that "
                "are compared in one way",
                self.slug,
                kind,
                transport.url,
            )
        # Whoever asks an encoder alone has prepared pixels without its server.
        return dataclasses.replace(info, decoding="exact")


def parse_info(
    slug: str, kind: Kind, name: str, version: str, parameters: Mapping[str, str], max_batch_size: int
) -> ModelInfo:
    """Reads the parameters of an ensemble's config, or of an encoder's, which has the same.

    Args:
        slug: The slug, such as `vit-b-16`.
        kind: The tower.
        name: The model's full name, for the message.
        version: The version that the config is of.
        parameters: The config's parameters.
        max_batch_size: The config's `max_batch_size`.

    Raises:
        ServerError: A parameter is missing or is not what its name says.
    """

    def refuse(what: str, fix: str = "it was not built by cnclip-build; build its repository anew") -> ServerError:
        message = f"{name} is served, but {what}: {fix}"
        return ServerError(message, model=name, status="OK", detail=str(dict(parameters)))

    told = parameters.get("version", version)
    if told != version:  # an encoder's older versions share its config
        fix = f"ask for version {told}, or build version {version} again"
        raise refuse(f"its config tells of version {told}, not of {version}", fix)
    try:
        info = ModelInfo(
            model=slug,
            version=version,
            arch=parameters["arch"],
            checkpoint_sha256=parameters["checkpoint_sha256"],
            logit_scale=float(parameters["logit_scale"]),
            embedding_size=int(parameters["embedding_size"]),
            context_length=int(parameters["context_length"]),
            max_batch_size=max_batch_size,
            precision=parameters["precision"],
            preferred_batch_size=int(parameters["preferred_batch_size"]),
        )
        if kind == "image":
            info = dataclasses.replace(
                info,
                decoding=parameters["decoding"],
                resolution=int(parameters["resolution"]),
                max_image_pixels=int(parameters["max_image_pixels"]),
                image_formats=parameters.get("image_formats", ""),
            )
        else:
            info = dataclasses.replace(
                info,
                vocabulary_sha256=parameters["vocabulary_sha256"],
                text_lengths=tuple(map(int, parameters["text_lengths"].split(","))),
            )
    except KeyError as error:
        raise refuse(f"its config has no parameter {error.args[0]}") from error
    except ValueError as error:
        raise refuse(f"a parameter of its config is no number ({error})") from error
    if info.max_batch_size < 1:
        raise refuse("it takes no batches (max_batch_size is 0)")
    if info.preferred_batch_size < 1:
        raise refuse(f"its preferred_batch_size is {info.preferred_batch_size}")
    if info.embedding_size < 1:
        raise refuse(f"its embedding_size is {info.embedding_size}")
    if not math.isfinite(info.logit_scale):
        raise refuse(f"its logit_scale is {info.logit_scale}")
    return info


def combine(image: ModelInfo, text: ModelInfo) -> ModelInfo:
    """Returns what holds for both towers of a slug.

    Raises:
        CheckpointMismatch: They come of different checkpoints.
    """
    if image.checkpoint_sha256 != text.checkpoint_sha256:
        raise CheckpointMismatch(
            model=text.model,
            image_sha256=image.checkpoint_sha256,
            text_sha256=text.checkpoint_sha256,
        )
    return dataclasses.replace(
        text,
        version=_of_both(image.version, text.version),
        max_batch_size=min(image.max_batch_size, text.max_batch_size),
        precision=_of_both(image.precision, text.precision),
        decoding=image.decoding,
        preferred_batch_size=min(image.preferred_batch_size, text.preferred_batch_size),
        resolution=image.resolution,
        max_image_pixels=image.max_image_pixels,
        image_formats=image.image_formats,
    )


def _of_both(image: str, text: str) -> str:
    return text if image == text else f"image {image}, text {text}"
