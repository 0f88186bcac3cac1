"""The client: images and texts in, features out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Literal, NoReturn, get_args, overload

import numpy as np
from numpy.typing import NDArray

from cnclip_client._blocks import Block, join, put_back
from cnclip_client._connection.endpoint import Urls
from cnclip_client._connection.endpoints import Endpoints
from cnclip_client._connection.towers import Part, Towers
from cnclip_client._credentials import Credentials
from cnclip_client._exceptions import BadInput
from cnclip_client._flow.items import ImageItem, require_many
from cnclip_client._info import ModelInfo
from cnclip_client._settings import Limits, Retry, Timeout
from cnclip_client._similarity import logits_per_image, softmax
from cnclip_client._texts import preprocess_text
from cnclip_client._vocabulary import Kind
from cnclip_client._ways.faster import Faster
from cnclip_client._ways.images import Preparing
from cnclip_client._ways.sending import Sending
from cnclip_client._ways.served import Served, Way
from cnclip_client._ways.texts import Texts

__all__ = ["Client", "Prepare"]

Prepare = Literal["server", "client", "auto"]
"""Who decodes and resizes images, and makes token ids of texts."""

# What is asked of each tower: the first of these that the server has.
_WANTED: dict[Prepare, dict[Kind, tuple[Part, ...]]] = {
    "server": {"image": ("ensemble",), "text": ("ensemble",)},
    "client": {"image": ("encoder",), "text": ("encoder", "ensemble")},
    "auto": {"image": ("ensemble", "encoder"), "text": ("ensemble", "encoder")},
}


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
        prepare: Who decodes and resizes images, and makes token ids of texts: the server; or this client, images in
            processes of its own, which sends pixels and ids straight to the encoders; or whoever was faster with the
            first images, and texts the server (`auto`, which logs its choice; of a server of encoders alone, this
            client). The features are the same.
        vocabulary: The file of the text encoder's tokens, where this client makes ids and they are not cn_clip's.

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
        vocabulary: str | os.PathLike[str] | None = None,
    ) -> None:
        if not model:
            raise ValueError("model is empty; served_models(url) lists what a server has")
        if prepare not in get_args(Prepare):
            raise ValueError(f"prepare must be one of {', '.join(get_args(Prepare))}, got {prepare!r}")
        self._limits = limits or Limits()
        self._endpoints = Endpoints(url, timeout, retry, credentials)
        self._towers = Towers(self._endpoints, model, version, _WANTED[prepare])
        served = Served(self._endpoints, self._towers, self._limits)
        self._faster: Faster | None = None
        images: Way = Preparing(served) if prepare == "client" else Sending("image", served)
        if prepare == "auto":
            # A connection of its own: what one says of the model is held to what it said itself.
            endpoints = Endpoints(url, timeout, retry, credentials)
            encoder = Served(endpoints, Towers(endpoints, model, version, _WANTED["client"]), self._limits)
            images = self._faster = Faster(served, Preparing(encoder))
        self._ways: dict[Kind, Way] = {"image": images, "text": Texts(served, vocabulary)}

    def __repr__(self) -> str:
        return f"Client({str(self._endpoints)!r}, model={self._towers.slug!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client is a connection and is not pickled; make one in each process")

    def __enter__(self) -> Client:
        self._endpoints.require_open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way in other threads end with RuntimeError."""
        self._endpoints.close()
        for way in self._ways.values():
            way.close()

    @property
    def limits(self) -> Limits:
        """What one call may hold at once."""
        return self._limits

    @property
    def prepares_itself(self) -> bool | None:
        """What `prepare="auto"` has found: whether this client prepares images; None where nothing was found yet."""
        return None if self._faster is None else self._faster.prepares_itself

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
            OSError: Nothing can be read at present, such as for want of open files.
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
        iterator, which may be slow, no more is asked for than a request's worth. (A client that prepares asks an
        iterator, too, for up to 64 items ahead, from threads of its own, one at a time.) Bad items are in the blocks'
        `failures`. A block comes out once `batch_size` items have gone in; for a source that trickles, choose it
        small. When an error is raised, every block before it has come out.

        Args:
            images: Paths, encoded files' bytes or PIL images.
            normalize: Whether each feature is divided by its length.
            batch_size: Images a request; by default what suits the server, never more than it takes.

        Raises:
            TypeError: `images` is a single image.
            CnclipError: The server could not be had.
            OSError: Nothing can be read at present, such as for want of open files.
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
        return self._ways[kind].run(items, normalize, batch_size)


def _prepared(texts: Iterable[str], preprocess: bool) -> Iterable[str]:
    if not preprocess:
        return texts
    return (preprocess_text(text) if isinstance(text, str) else text for text in texts)


def _length(text: object) -> int:
    """Characters of a text; what is no text fails without being sent."""
    return len(text) if isinstance(text, str) else 0
