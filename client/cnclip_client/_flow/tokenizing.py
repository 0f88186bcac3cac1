"""Texts made into a text encoder's token ids here, with the vocabulary that it was built with."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnclip_client._exceptions import BadFile, CnclipError
from cnclip_client._extras import require
from cnclip_client._flow.items import Unsendable, text_bytes
from cnclip_client._info import ModelInfo

__all__ = ["Tokenizing"]


class Tokenizing:
    """Makes token ids of texts, as the server's tokenising does. Threads may share one."""

    def __init__(self, model: str, info: ModelInfo, vocabulary: str | os.PathLike[str] | None = None) -> None:
        """Reads the vocabulary.

        Args:
            model: The encoder's full name, for messages.
            info: What its server says of it.
            vocabulary: A file with a token a line; by default cn_clip's.

        Raises:
            MissingExtra: The tokenizers library is not installed.
            BadFile: The vocabulary cannot be read, or is not the one that the encoder was built with.
            CnclipError: That is not cn_clip's, and none was given.
        """
        require("tokenizers", extra="prepare")
        from cnclip_token_ids import VOCABULARY, BadText, TokenIds

        path = VOCABULARY if vocabulary is None else Path(vocabulary)
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise BadFile(f"cannot be read ({error.strerror}); it is to hold a token a line", path=str(path)) from error
        if digest != info.vocabulary_sha256:
            wanted = f"{info.vocabulary_sha256[:12]}…"
            if vocabulary is None:
                raise CnclipError(
                    f"{model} was built with another vocabulary than cn_clip's: name its file, whose sha256 begins "
                    f"with {wanted} (vocabulary=, --vocabulary), or leave texts to a server that tokenises them"
                )
            raise BadFile(
                f"is not the vocabulary that {model} was built with: its sha256 begins with {digest[:12]}…, and "
                f"{wanted} is wanted; name that one",
                path=str(path),
            )
        self._token_ids = TokenIds(path, info.context_length, info.text_lengths)
        self._bad_text = BadText

    def ids(self, item: object, item_bytes: int) -> tuple[bytes, bool]:
        """Returns a text's token ids as int32, unpadded, and whether something of it was cut off.

        Args:
            item: What the caller handed over.
            item_bytes: The longest text allowed, in bytes of UTF-8.

        Raises:
            Unsendable: It is no text, or too long.
        """
        try:
            row, is_cut = self._token_ids.encode_and_tell(text_bytes(item, item_bytes).decode())
        except self._bad_text as reason:
            raise Unsendable(str(reason)) from reason
        return np.array(row, np.int32).tobytes(), is_cut

    def padded(self, payloads: Sequence[bytes]) -> NDArray[Any]:
        """Returns what `ids` gave as int32 [N, length], as the server's tokenising pads them."""
        return self._token_ids.pad([np.frombuffer(payload, np.int32) for payload in payloads])
