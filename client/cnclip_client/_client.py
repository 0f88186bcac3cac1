"""The client: images and texts in, features out."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Literal, NoReturn, get_args, overload

import numpy as np
from numpy.typing import NDArray

from cnclip_client._blocks import Block, join, put_back
from cnclip_client._connection.endpoint import Urls
from cnclip_client._connection.endpoints import Endpoints
from cnclip_client._connection.towers import Towers
from cnclip_client._connection.wire import Tensors
from cnclip_client._credentials import Credentials
from cnclip_client._exceptions import BadInput, CnclipError
from cnclip_client._flow.batches import batches
from cnclip_client._flow.concurrency import Found
from cnclip_client._flow.items import (
    ImageItem,
    Unsendable,
    harmless_image,
    harmless_text,
    image_bytes,
    require_many,
    text_bytes,
)
from cnclip_client._flow.parts import Timed, moved
from cnclip_client._flow.pillow_versions import what_differs
from cnclip_client._flow.pipeline import Pipeline
from cnclip_client._flow.prefetch import Prefetch
from cnclip_client._flow.preparation import Preparation
from cnclip_client._flow.read_ahead import reading_ahead, ready_or_raise
from cnclip_client._info import ModelInfo
from cnclip_client._settings import Limits, Retry, Timeout
from cnclip_client._similarity import logits_per_image, softmax
from cnclip_client._texts import preprocess_text
from cnclip_client._vocabulary import Kind

__all__ = ["Client", "Prepare"]

_log = logging.getLogger(__name__)

Prepare = Literal["server", "client", "auto"]
"""Who decodes and resizes images."""

# How many images `auto` measures each way with, and what the client has to be faster by: its cores may have other work.
_TRIAL_ITEMS = 128
_CLEARLY = 1.1

# Rows a request, where neither the caller nor the server says.
_BATCH_SIZES: dict[Kind, int] = {"image": 8, "text": 32}
_PREPARE: dict[Kind, Callable[[object, int], bytes]] = {"image": image_bytes, "text": text_bytes}
_HARMLESS: dict[Kind, Callable[[], bytes]] = {"image": harmless_image, "text": harmless_text}


class Client:
    """Reads features out of a served Chinese-CLIP model.

        with Client("localhost:8001", model="vit-b-16") as client:
            features = client.encode_images(["a.jpg", "b.jpg"])

    Making one is cheap and does not connect: the first call does, and the version and checkpoint that it
    finds hold for this client's life. Threads may share a client; the limits hold for each call by itself.

    Args:
        url: The server's gRPC address, `host:port`; or several, in a sequence or with commas, that all serve the same
            model: requests go to the least busy, and one that fails is left out until it is back.
        model: The slug of the served model, such as `vit-b-16`; `served_models(url)` lists a server's.
        version: The version to use; without one the highest that is served when first called.
        timeout: Deadlines; the defaults are those of `Timeout`.
        retry: When to send again; the defaults are those of `Retry`.
        limits: What one call may hold at once; the defaults are those of `Limits`.
        credentials: What the server asks for; without them it is plaintext.
        prepare: Who decodes and resizes images: the server; or this client, in processes of its own, which sends pixels
            straight to the encoder; or whoever was faster with the first images (`auto`, which logs its choice). The
            features are the same.

    Raises:
        ValueError: The address is not `host:port`, the model's name is empty, secrets would go to another machine
            in plaintext, or `prepare` is none of the three.
        BadFile: A file of the credentials cannot be used.
    """

    def __init__(
        self,
        url: Urls = "localhost:8001",
        *,
        model: str,
        version: int | None = None,
        timeout: Timeout | None = None,
        retry: Retry | None = None,
        limits: Limits | None = None,
        credentials: Credentials | None = None,
        prepare: Prepare = "server",
    ) -> None:
        if not model:
            raise ValueError("model is empty; served_models(url) lists what a server has")
        if prepare not in get_args(Prepare):
            raise ValueError(f"prepare must be one of {', '.join(get_args(Prepare))}, got {prepare!r}")
        self._limits = limits or Limits()
        self._endpoints = Endpoints(url, timeout, retry, credentials)
        self._towers = Towers(self._endpoints, model, version, {"image"} if prepare == "client" else set())
        self._found = Found()
        self._prepare = prepare
        self._preparation: Preparation | None = None
        self._preparing = threading.Lock()
        self._measuring = threading.Lock()
        self._is_measured = self._is_faster_here = False
        # Of the same server, and one that prepares: what `auto` measures, and where it sends images if that is faster.
        self._other: Client | None = None
        if prepare == "auto":
            self._other = Client(
                url,
                model=model,
                version=version,
                timeout=timeout,
                retry=retry,
                limits=limits,
                credentials=credentials,
                prepare="client",
            )

    def __repr__(self) -> str:
        return f"Client({str(self._endpoints)!r}, model={self._towers.slug!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client is a connection and is not pickled; make one in each process")

    def __enter__(self) -> Client:
        self._endpoints.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way in other threads end with RuntimeError."""
        self._endpoints.close()
        with self._preparing:
            if self._preparation is not None:
                self._preparation.close()
        if self._other is not None:
            self._other.close()

    @property
    def limits(self) -> Limits:
        """What one call may hold at once."""
        return self._limits

    @property
    def prepares_itself(self) -> bool | None:
        """What `prepare="auto"` has found: whether this client prepares images; None where nothing was measured."""
        return self._is_faster_here if self._is_measured else None

    @property
    def retry(self) -> Retry:
        """When it sends again, and how long it waits for a server that is away."""
        return self._endpoints.retry

    @property
    def info(self) -> ModelInfo:
        """What the server says of the model, asked once; where it has only one of the towers, of that one.

        Raises:
            CheckpointMismatch: The two towers come of different checkpoints.
            ModelNotFound: The server has neither tower.
            ModelNotReady: It has one that it does not serve at present.
            TransportError: No answer.
        """
        return self._towers.any()

    def info_of(self, kind: Kind) -> ModelInfo:
        """Returns what the server says of one of the model's towers, asked once; the other need not be there.

        Args:
            kind: Which of the two.

        Raises:
            ModelNotFound: The server does not have it.
            ModelNotReady: It does not serve it at present.
            TransportError: No answer.
        """
        return self._towers.one(kind)

    def require_unchanged(self) -> None:
        """Asks whether the server still serves what this client's features came of.

        Every call of `encode_*` and every `iter_*` that came to its end has asked already. A job that keeps features
        while it runs asks before it does, so that a model that was replaced meanwhile leaves nothing in them.

        Raises:
            ModelChanged: Another checkpoint, version or option is served in its place.
            CnclipError: The server could not be had.
        """
        self._towers.require_unchanged("image")
        self._towers.require_unchanged("text")

    @overload
    def encode_images(
        self,
        images: Iterable[ImageItem],
        *,
        normalize: bool = ...,
        batch_size: int | None = ...,
        errors: Literal["raise"] = ...,
    ) -> NDArray[np.float32]: ...

    @overload
    def encode_images(
        self,
        images: Iterable[ImageItem],
        *,
        normalize: bool = ...,
        batch_size: int | None = ...,
        errors: Literal["collect"],
    ) -> Block: ...

    def encode_images(
        self,
        images: Iterable[ImageItem],
        *,
        normalize: bool = True,
        batch_size: int | None = None,
        errors: Literal["raise", "collect"] = "raise",
    ) -> NDArray[np.float32] | Block:
        """Returns the features of images, float32 [N, D], in their order.

        Args:
            images: Paths, encoded files' bytes or PIL images, any number of them.
            normalize: Whether each feature is divided by its length.
            batch_size: Images a request; by default what suits the server, never more than it takes.
            errors: `raise` raises `BadInput` at the end if there are bad items, naming them all; `collect`
                returns a `Block` of the good items' features and the bad ones' reasons instead.

        Raises:
            TypeError: `images` is a single image.
            BadInput: Some items are bad; the others' features are in its `encoded`.
            CnclipError: The server could not be had; see the tree in the package's docstring.
        """
        return self._encode("image", images, normalize, batch_size, errors)

    @overload
    def encode_texts(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = ...,
        preprocess: bool = ...,
        batch_size: int | None = ...,
        errors: Literal["raise"] = ...,
    ) -> NDArray[np.float32]: ...

    @overload
    def encode_texts(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = ...,
        preprocess: bool = ...,
        batch_size: int | None = ...,
        errors: Literal["collect"],
    ) -> Block: ...

    def encode_texts(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        preprocess: bool = False,
        batch_size: int | None = None,
        errors: Literal["raise", "collect"] = "raise",
    ) -> NDArray[np.float32] | Block:
        """Returns the features of texts, float32 [N, D], in their order; as `encode_images` otherwise.

        Args:
            texts: Strings, any number of them.
            normalize: Whether each feature is divided by its length.
            preprocess: Whether texts are prepared with `preprocess_text` first, as cn_clip's scripts do and its
                `tokenize` does not; `cnclip_client.extraction` does by default.
            batch_size: Texts a request; by default what suits the server, never more than it takes.
            errors: As for `encode_images`.

        Raises:
            TypeError: `texts` is a single string.
            BadInput: Some items are bad; the others' features are in its `encoded`.
            CnclipError: The server could not be had; see the tree in the package's docstring.
        """
        require_many("text", texts)
        return self._encode("text", _prepared(texts, preprocess), normalize, batch_size, errors)

    def iter_images(
        self, images: Iterable[ImageItem], *, normalize: bool = True, batch_size: int | None = None
    ) -> Iterator[Block]:
        """Yields the features of images block by block, in their order.

        `images` may be endless: it is read only as far as `Limits` lets requests be under way, and memory
        stays bounded by them. Files are read ahead by up to `Limits.readers` threads: well ahead of a list; of an
        iterator, which may be slow, no more is asked for than a request's worth. Bad items are in the blocks'
        `failures`. A block comes out once `batch_size` items have gone in; for a source that trickles, choose it
        small. When an error is raised, every block before it has come out.

        Args:
            images: Paths, encoded files' bytes or PIL images.
            normalize: Whether each feature is divided by its length.
            batch_size: Images a request; by default what suits the server, never more than it takes.

        Raises:
            TypeError: `images` is a single image.
            CnclipError: The server could not be had.
        """
        return self._iterate("image", images, normalize, batch_size)

    def iter_texts(
        self,
        texts: Iterable[str],
        *,
        normalize: bool = True,
        preprocess: bool = False,
        batch_size: int | None = None,
    ) -> Iterator[Block]:
        """Yields the features of texts block by block, in their order; as `iter_images` otherwise.

        Args:
            texts: Strings.
            normalize: Whether each feature is divided by its length.
            preprocess: As for `encode_texts`.
            batch_size: Texts a request; by default what suits the server, never more than it takes.

        Raises:
            TypeError: `texts` is a single string.
            CnclipError: The server could not be had.
        """
        require_many("text", texts)
        return self._iterate("text", _prepared(texts, preprocess), normalize, batch_size)

    def similarity(
        self, images: Iterable[ImageItem], texts: Iterable[str], *, logits: bool = False
    ) -> NDArray[np.float32]:
        """Returns how well each text fits each image, float32 [n_images, n_texts].

        A row is the softmax over the texts of `logit_scale` times the cosine, so it sums to 1: which text
        fits best among these, not whether any fits. With `logits` it is that product itself, as cn_clip's
        `get_similarity` gives.

        Args:
            images: Paths, encoded files' bytes or PIL images.
            texts: Strings.
            logits: Whether to leave out the softmax.

        Raises:
            CheckpointMismatch: The two towers come of different checkpoints; nothing was sent.
            BadInput: Some items are bad; its `kind` tells whether they are the images or the texts.
            CnclipError: The server could not be had.
        """
        require_many("image", images)
        require_many("text", texts)
        scale = self._towers.pair().logit_scale
        images, texts = list(images), list(texts)
        if not images or not texts:
            return np.zeros((len(images), len(texts)), dtype=np.float32)  # and nothing to send
        product = logits_per_image(self.encode_images(images), self.encode_texts(texts), scale)
        return product if logits else softmax(product)

    def _encode(
        self, kind: Kind, items: Iterable[object], normalize: bool, batch_size: int | None, errors: str
    ) -> NDArray[np.float32] | Block:
        if errors not in ("raise", "collect"):
            raise ValueError(f"errors must be 'raise' or 'collect', got {errors!r}")
        require_many(kind, items)
        known = list(items)
        # The encoder pads a batch's texts to the longest of them: those of like length cost least together.
        order = sorted(range(len(known)), key=lambda row: _length(known[row])) if kind == "text" else None
        sent = known if order is None else [known[row] for row in order]
        whole = join(list(self._iterate(kind, sent, normalize, batch_size)), self._towers.one(kind).embedding_size)
        if order is not None:
            whole = put_back(whole, order)
        if errors == "collect":
            return whole
        if whole.failures:
            raise BadInput(kind=kind, rows=whole.failures, encoded=whole)
        return whole.features

    def _iterate(self, kind: Kind, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Checks the arguments at once, and leaves the rest to the first `next`."""
        self._endpoints.require_open()
        require_many(kind, items)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        return self._blocks(kind, items, normalize, batch_size)

    def _blocks(self, kind: Kind, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        if kind == "text" or self._prepare == "server":
            yield from self._sent(kind, items, normalize, batch_size)
        elif self._prepare == "client":
            yield from self._prepared_here(items, normalize, batch_size)
        else:
            yield from self._faster(items, normalize, batch_size)

    def _sent(self, kind: Kind, items: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Sends items as they are to the ensemble, which prepares them."""
        info = self._towers.one(kind)
        pipeline = self._pipeline(kind, info, Tensors(kind.upper(), _output(kind, normalize)), _HARMLESS[kind])

        def prepare(item: object) -> bytes:
            return _PREPARE[kind](item, self._limits.item_bytes)

        rows = _rows(kind, info, batch_size)
        if kind == "image":
            ahead = reading_ahead(items, prepare, rows, self._limits.readers)
            made = batches(ahead, ready_or_raise, rows, self._limits.request_bytes)
        else:
            made = batches(items, prepare, rows, self._limits.request_bytes)
        yield from pipeline.run(made)

    def _prepared_here(self, images: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Sends images' pixels to the encoder, prepared ahead by as many threads as there are processes for it."""
        info, preparation = self._towers.one("image"), self._have_prepared()
        side = info.resolution or 0
        dims = (side, side, 3)
        pipeline = self._pipeline(
            "image",
            info,
            Tensors("pixels", _output("image", normalize), dims),
            lambda: random.randbytes(side * side * 3),  # noqa: S311 - pixels, not a secret
        )

        def prepared(item: object) -> object:
            try:
                return preparation.prepare(image_bytes(item, self._limits.item_bytes))
            except Unsendable as reason:
                return reason

        ahead = Prefetch(iter(images), prepared, lambda _: side * side * 3, threads=preparation.processes)
        with ahead as pixels:
            rows = _rows("image", info, batch_size)
            yield from pipeline.run(batches(pixels, ready_or_raise, rows, self._limits.request_bytes))

    def _faster(self, images: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        """Has the server prepare the first images, and this client the next, and all others by whoever was faster.

        What was found holds for this client's life. Where another call measures at the moment, the server prepares.
        """
        other, start, source = self._other, 0, iter(images)
        if other is not None and not self._is_measured and self._measuring.acquire(blocking=False):
            try:
                self._is_measured = not _can_prepare(other)
                rates: list[float] = []
                for run in (self._sent_images, other._prepared_here) if not self._is_measured else ():
                    trial = Timed(run(itertools.islice(source, _TRIAL_ITEMS), normalize, batch_size))
                    yield from moved(trial, start)
                    start += trial.items
                    rates.append(trial.items / max(trial.seconds, 1e-9))
                    if trial.items < _TRIAL_ITEMS:
                        return
                if rates:
                    self._is_measured, self._is_faster_here = True, rates[1] > _CLEARLY * rates[0]
                    _log.info(
                        "%s: %.0f images a second prepared by the server, %.0f here: %s",
                        self._towers.name("image"),
                        *rates,
                        "prepared here from now on" if self._is_faster_here else "left to the server",
                    )
            finally:
                self._measuring.release()
        run = other._prepared_here if other is not None and self._is_faster_here else self._sent_images
        yield from moved(run(source, normalize, batch_size), start)

    def _sent_images(self, images: Iterable[object], normalize: bool, batch_size: int | None) -> Iterator[Block]:
        return self._sent("image", images, normalize, batch_size)

    def _have_prepared(self) -> Preparation:
        """Returns the processes that prepare for this client, started at the first call."""
        with self._preparing:
            if self._preparation is None:
                info = self._towers.one("image")
                self._preparation = Preparation(self._towers.name("image"), info, self._limits.preparers)
                self._warn_of_other_pillows(info.version, self._preparation.pillow)
            return self._preparation

    def _warn_of_other_pillows(self, version: str, ours: str) -> None:
        """Asks each server which Pillow it decodes with; older ones do not tell, nor those that have encoders alone."""
        name, told = f"{self._towers.slug}-image-preprocess", set()
        for endpoint in self._endpoints.inside():
            try:
                pillow = Tensors("IMAGE", "pillow")
                theirs = endpoint.transport.ask_text(name, version, pillow, harmless_image())
            except CnclipError as error:
                _log.info("which Pillow %s decodes with is not known: %s", endpoint.transport.url, error)
                continue
            pictures = what_differs(ours, theirs)
            if pictures and theirs not in told:
                told.add(theirs)
                _log.warning(
                    "%s at %s decodes with Pillow %s, this client with %s: pixels of %s may differ in their last bits "
                    "from those that the server prepares; pip install 'pillow==%s' makes them equal",
                    name,
                    endpoint.transport.url,
                    theirs,
                    ours,
                    pictures,
                    theirs,
                )

    def _pipeline(self, kind: Kind, info: ModelInfo, tensors: Tensors, harmless: Callable[[], bytes]) -> Pipeline:
        return Pipeline(
            self._endpoints,
            model=self._towers.name(kind),
            version=info.version,
            tensors=tensors,
            embedding_size=info.embedding_size,
            limits=self._limits,
            found=self._found,
            harmless=harmless,
            verify=lambda max_age_s: self._towers.require_unchanged(kind, max_age_s),
        )


def _can_prepare(client: Client) -> bool:
    try:
        client._have_prepared()
    except CnclipError as error:
        _log.info("images are left to the server: %s", error)
        return False
    return True


def _output(kind: Kind, normalize: bool) -> str:
    return f"{kind}_features" if normalize else f"unnorm_{kind}_features"


def _rows(kind: Kind, info: ModelInfo, batch_size: int | None) -> int:
    """How many rows a request has."""
    return min(batch_size or info.preferred_batch_size or _BATCH_SIZES[kind], info.max_batch_size)


def _prepared(texts: Iterable[str], preprocess: bool) -> Iterable[str]:
    if not preprocess:
        return texts
    return (preprocess_text(text) if isinstance(text, str) else text for text in texts)


def _length(text: object) -> int:
    """Characters of a text; what is no text fails without being sent."""
    return len(text) if isinstance(text, str) else 0
