"""From texts to the token ids of the text encoder, equal to `cn_clip.clip.tokenize` for every string.

cn_clip's tokeniser is BERT's: clean, set CJK characters apart, lower, strip accents, split at punctuation, then
WordPiece. All but the last are a function of single characters and of two whole-string functions of Python's own
(`str.lower`, NFD), so two translation tables that ask the same `unicodedata` questions give the same words by
construction, whatever the Unicode version. WordPiece is the `tokenizers` library's.

The server's tokenising and clients that tokenise by themselves work with this code. It is copied beside the `model.py`
of the tokenising, as one file: so it imports the standard library, numpy and tokenizers alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers.models import WordPiece

__all__ = ["VOCABULARY", "BadText", "TokenIds", "decoded", "lengths_in_steps"]

VOCABULARY = Path(__file__).with_name("vocab.txt")
"""The vocabulary beside this file: cn_clip's, which is Google's of BERT for Chinese (Apache-2.0); or what is served."""

_PAD_ID = 0
_MAX_CHARACTERS_PER_WORD = 200  # cn_clip's limit; a longer word is [UNK]
_CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


# So many characters of a text are looked at before all of it is: far more than fill a context.
_HEAD = 4096

# Python's NFD takes a time quadratic in a run of combining marks: a minute for some 300,000 of them.
_LONG_FOR_NFD = 1000


class BadText(ValueError):
    """The bytes are no UTF-8 text; the message says why."""


def decoded(text: bytes) -> str:
    """Reads UTF-8.

    Raises:
        BadText: the bytes are something else.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadText(f"not UTF-8: {error.reason} at byte {error.start}") from error


class _CleanTable(dict[int, str]):
    """Drops control characters, turns white space into spaces and sets CJK characters apart; filled on demand."""

    def __missing__(self, code_point: int) -> str:
        character = chr(code_point)
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            cleaned = " "
        elif code_point in (0, 0xFFFD) or category in ("Cc", "Cf"):
            cleaned = ""
        elif any(first <= code_point <= last for first, last in _CJK_RANGES):
            cleaned = f" {character} "
        else:
            cleaned = character
        self[code_point] = cleaned
        return cleaned


class _DecomposeTable(dict[int, str]):
    """Decomposes single characters; filled on demand."""

    def __missing__(self, code_point: int) -> str:
        decomposed = self[code_point] = unicodedata.normalize("NFD", chr(code_point))
        return decomposed


class _SplitTable(dict[int, str]):
    """Drops combining marks and sets punctuation apart; filled on demand."""

    def __missing__(self, code_point: int) -> str:
        character = chr(code_point)
        category = unicodedata.category(character)
        # BERT takes every printable ASCII sign that is no letter or digit for punctuation, "$" and "^" too.
        is_ascii_sign = 33 <= code_point <= 126 and not character.isalnum()
        if category == "Mn":
            split = ""
        elif is_ascii_sign or category.startswith("P"):
            split = f" {character} "
        else:
            split = character
        self[code_point] = split
        return split


def lengths_in_steps(step: int, context_length: int) -> tuple[int, ...]:
    """Every multiple of a step below the context length, and that."""
    return (*range(step, context_length, step), context_length)


class TokenIds:
    """Turns texts into token ids.

    Args:
        vocabulary: cn_clip's `vocab.txt`, a token a line.
        context_length: most tokens of a text, `[CLS]` and `[SEP]` included; longer texts are cut.
        lengths: texts are padded to the shortest of these that holds the longest of their batch, or to
            `context_length`; all steps of 8 tokens if there are none. The fewer they are, the fewer shapes reach the
            encoder, which batches texts of one shape alone; the more, the less padding.
    """

    def __init__(self, vocabulary: Path, context_length: int, lengths: Sequence[int] = ()) -> None:
        with vocabulary.open(encoding="utf-8") as lines:
            self._ids = {token.strip(): index for index, token in enumerate(lines)}
        self._word_piece = WordPiece(
            vocab=self._ids,
            unk_token="[UNK]",  # noqa: S106
            max_input_chars_per_word=_MAX_CHARACTERS_PER_WORD,
        )
        self._cls, self._sep = self._ids["[CLS]"], self._ids["[SEP]"]
        self._clean, self._decompose, self._split = _CleanTable(), _DecomposeTable(), _SplitTable()
        self.context_length = context_length
        self._lengths = sorted(lengths or lengths_in_steps(8, context_length))

    def encode(self, text: str) -> list[int]:
        """Gives a text's token ids, `[CLS]` and `[SEP]` included, at most `context_length` of them.

        Raises:
            BadText: the text holds a lone surrogate, which no UTF-8 text can.
        """
        return self.encode_and_tell(text)[0]

    def encode_and_tell(self, text: str) -> tuple[list[int], bool]:
        """Gives a text's token ids, as `encode`, and whether something of it was cut off.

        Raises:
            BadText: as `encode`.
        """
        room = self.context_length - 2
        words = self._words(text[:_HEAD], room)
        # Words before others are what they are, whatever comes later, but for a sigma: its lower case depends on it.
        if len(text) > _HEAD and (len(words) <= room or "\N{GREEK CAPITAL LETTER SIGMA}" in text[:_HEAD]):
            words = self._words(text, room)
        cut = len(words) > room
        ids = [self._cls]
        for word in words[:room]:
            whole = self._ids.get(word)
            if whole is not None and len(word) <= _MAX_CHARACTERS_PER_WORD:
                ids.append(whole)
            else:
                ids.extend(self._pieces(word))
        cut = cut or len(ids) > room + 1
        del ids[room + 1 :]
        ids.append(self._sep)
        return ids, cut

    def _words(self, text: str, room: int) -> list[str]:
        """Gives so many words, and behind them, if there is more, all the rest as one."""
        # Every word is a token at least, so that what comes after `room` words is cut in any case.
        return self._nfd(text.translate(self._clean).lower()).translate(self._split).split(None, room)

    def pad(self, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
        """Pads token ids to the shortest of the lengths that holds them all, else to `context_length`.

        Args:
            rows: token ids of each text.

        Returns:
            int32 ids of shape `[len(rows), length]`.
        """
        longest = max((len(row) for row in rows), default=1)
        length = next((length for length in self._lengths if length >= longest), self.context_length)
        padded = np.full((len(rows), length), _PAD_ID, dtype=np.int32)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return padded

    def _nfd(self, text: str) -> str:
        """Gives the canonical decomposition; of a long text in linear time, however hostile."""
        if len(text) <= _LONG_FOR_NFD:
            return unicodedata.normalize("NFD", text)
        runs = groupby(text.translate(self._decompose), key=lambda character: unicodedata.combining(character) > 0)
        return "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)

    def _pieces(self, word: str) -> list[int]:
        try:
            return [token.id for token in self._word_piece.tokenize(word)]
        except (TypeError, UnicodeEncodeError) as error:
            raise BadText("a lone surrogate, which is no Unicode text") from error
