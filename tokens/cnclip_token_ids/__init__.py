"""From texts to the token ids of the text encoder, equal to `cn_clip.clip.tokenize` for every string.

cn_clip's tokeniser is BERT's: clean, set CJK characters apart, lower, strip accents, split at punctuation, then
WordPiece. All but the last are functions of single characters and two of Python's own on strings (`str.lower`, NFD), so
that the same questions to the same `unicodedata` give the same words, whatever the Unicode version. Nearly all texts
hold nothing but characters on which those two act one by one: for them it is one translation table. WordPiece is the
`tokenizers` library's.

The server's tokenising and clients that tokenise by themselves work with this code. It is copied beside the `model.py`
of the tokenising, as one file: so it imports the standard library, numpy and tokenizers alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers.models import WordPiece

__all__ = ["VOCABULARY", "BadText", "TokenIds", "decoded"]

VOCABULARY = Path(__file__).with_name("vocab.txt")
"""The vocabulary beside this file: cn_clip's, which is Google's of BERT for Chinese (Apache-2.0); or what is served."""

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

_SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"
_NOT_ALONE = "\0"  # in no text that was cleaned

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


class _Table(dict[int, str]):
    """What a function makes of each character, for `str.translate`; filled on demand."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function

    def __missing__(self, code_point: int) -> str:
        made = self[code_point] = self._function(chr(code_point))
        return made


def _clean(character: str) -> str:
    """Drops a control character, makes white space a space, and sets a CJK character apart."""
    category = unicodedata.category(character)
    if character in "\t\n\r" or category == "Zs":
        return " "
    if character in "\0\ufffd" or category in ("Cc", "Cf"):
        return ""
    return f" {character} " if any(first <= ord(character) <= last for first, last in _CJK_RANGES) else character


def _decompose(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _split(character: str) -> str:
    """Drops a combining mark, and sets punctuation apart."""
    category = unicodedata.category(character)
    # BERT takes every printable ASCII sign that is no letter or digit for punctuation, "$" and "^" too.
    is_ascii_sign = "!" <= character <= "~" and not character.isalnum()
    if category == "Mn":
        return ""
    return f" {character} " if is_ascii_sign or category.startswith("P") else character


def _alone(character: str) -> str:
    """All of that, for a character to which those around it do not matter; `_NOT_ALONE` for others.

    They matter to a sigma, whose lower case is another one at the end of a word, and to what begins with a combining
    mark, which NFD puts in order among those before it.
    """
    decomposed = _decompose(_clean(character).lower())
    if character == _SIGMA or (decomposed and unicodedata.combining(decomposed[0])):
        return _NOT_ALONE
    return "".join(map(_split, decomposed))


class TokenIds:
    """Turns texts into token ids.

    Args:
        vocabulary: cn_clip's `vocab.txt`, a token a line.
        context_length: most tokens of a text, `[CLS]` and `[SEP]` included; longer texts are cut.
        lengths: texts are padded to the shortest of these that holds the longest of their batch, or to
            `context_length`. The fewer they are, the fewer shapes reach the encoder, which batches texts of one shape
            alone; the more, the less padding.
    """

    def __init__(self, vocabulary: Path, context_length: int, lengths: Sequence[int] = ()) -> None:
        with vocabulary.open(encoding="utf-8") as lines:
            ids = {token.strip(): index for index, token in enumerate(lines)}
        self._word_piece = WordPiece(
            vocab=ids,
            unk_token="[UNK]",  # noqa: S106
            max_input_chars_per_word=_MAX_CHARACTERS_PER_WORD,
        )
        self._cls, self._sep = ids["[CLS]"], ids["[SEP]"]
        self._whole = {token: index for token, index in ids.items() if len(token) <= _MAX_CHARACTERS_PER_WORD}
        self._alone = _Table(_alone)
        self._clean, self._decompose, self._split = _Table(_clean), _Table(_decompose), _Table(_split)
        self.context_length = context_length
        self._lengths = sorted(lengths)

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
        if len(text) > _HEAD and (len(words) <= room or _SIGMA in text[:_HEAD]):
            words = self._words(text, room)
        try:
            ids = [self._cls, *map(self._whole.__getitem__, words[:room])]
        except KeyError:
            ids = [self._cls, *chain.from_iterable(map(self._pieces, words[:room]))]
        cut = len(words) > room or len(ids) > room + 1
        del ids[room + 1 :]
        ids.append(self._sep)
        return ids, cut

    def _words(self, text: str, room: int) -> list[str]:
        """Gives so many words, and behind them, if there is more, all the rest as one."""
        # Every word is a token at least, so that what comes after `room` words is cut in any case.
        words = text.translate(self._alone)
        if _NOT_ALONE in words:
            words = self._nfd(text.translate(self._clean).lower()).translate(self._split)
        return words.split(None, room)

    def _pieces(self, word: str) -> list[int]:
        if (whole := self._whole.get(word)) is not None:
            return [whole]
        try:
            return [token.id for token in self._word_piece.tokenize(word)]
        except (TypeError, UnicodeEncodeError) as error:
            raise BadText("a lone surrogate, which is no Unicode text") from error

    def pad(self, rows: Sequence[Sequence[int] | npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
        """Pads token ids to the shortest of the lengths that holds them all, else to `context_length`.

        Args:
            rows: token ids of each text.

        Returns:
            int32 ids of shape `[len(rows), length]`.
        """
        longest = max((len(row) for row in rows), default=1)
        length = next((length for length in self._lengths if length >= longest), self.context_length)
        padded = np.zeros((len(rows), length), dtype=np.int32)  # the id of [PAD]
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return padded

    def _nfd(self, text: str) -> str:
        """Gives the canonical decomposition; of a long text in linear time, however hostile."""
        if len(text) <= _LONG_FOR_NFD:
            return _decompose(text)
        runs = groupby(text.translate(self._decompose), key=lambda character: unicodedata.combining(character) > 0)
        return "".join("".join(sorted(run, key=unicodedata.combining) if marks else run) for marks, run in runs)
