"""Tokenisation: the ids that cn_clip gives, for every string."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import cnclip_token_ids
import numpy as np
import pytest
from cn_clip.clip import tokenize
from cnclip_builder.arch import cn_clip_vocabulary
from cnclip_token_ids import VOCABULARY, BadText, TokenIds, decoded
from hypothesis import given, settings
from hypothesis import strategies as st

TOKEN_IDS = TokenIds(cn_clip_vocabulary(), 52)

ODD_TEXTS = [
    "",
    " \t\r\n",
    "\0a\0b\0",
    "a" * 199,
    "a" * 200,
    "a" * 201,
    "我" * 10_000,
    "a b " * 10_000,
    "ΌΔΟΣ ΟΔΟΣ. Σ ΑΣ́",
    "İstanbul ǅ ﬁ ﬀ ß ẞ",
    "naïve café — Ёлки ё̈",
    "全角：ＡＢＣ　１２３！￥",
    "🐼🎋👨‍👩‍👧‍👦 \u200b\ufeff\u00ad",
    "\ue000\uf8ff\U0002b820\U0002ceb0\ufffd",
    "[CLS] [SEP] [PAD] [MASK] [UNK] ##a",
    "\u2028\u2029\x85\x1c\u3000\u180e",
    # Long ones whose marks NFD has to put in order: those that BERT drops, those that it keeps, and both.
    "a" + "\u0301\u0316" * 600 + "b",
    "가\u302e\U0001d165" * 600,
    "é\u302e\u0316\u0900\U0001d165\u0301ﬁΣ" * 300,
]


def cn_clip_ids(text: str, context_length: int) -> list[int]:
    row: list[int] = tokenize([text], context_length=context_length)[0].tolist()
    return row


def check(text: str, token_ids: TokenIds = TOKEN_IDS) -> None:
    ids = token_ids.encode(text)
    assert ids + [0] * (token_ids.context_length - len(ids)) == cn_clip_ids(text, token_ids.context_length)


@pytest.mark.parametrize("text", ODD_TEXTS)
@pytest.mark.parametrize("context_length", [3, 17, 52, 512])
def test_odd_texts(text: str, context_length: int) -> None:
    check(text, TokenIds(cn_clip_vocabulary(), context_length))


def test_real_captions(shared_captions: list[str]) -> None:
    for caption in shared_captions:
        check(caption)


@settings(max_examples=500, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text(text: str) -> None:
    check(text)


def is_alike(code: int) -> bool:
    """Whether a character is one of the many that are letters, or nothing yet, and no more, within their block of 8."""
    character = chr(code)
    alike = unicodedata.category(character) in ("Lo", "Cn", "Co") and not unicodedata.decomposition(character)
    return alike and 0 < code % 8 < 7


@pytest.mark.parametrize(
    "skipped",
    [is_alike, pytest.param(lambda code: False, marks=pytest.mark.slow)],
    ids=["a quarter of those alike", "all"],
)
def test_every_character_of_the_first_three_planes(skipped: Callable[[int], bool]) -> None:
    codes = [code for code in range(0x30000) if not 0xD800 <= code < 0xE000 and not skipped(code)]
    for first in range(0, len(codes), 12):
        check(" ".join(f"a{chr(code)}" for code in codes[first : first + 12]))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("aΣ가é\u0301\u0316\u0345\u0900\u302e\U0001d165\U00016ff0 ."), max_size=30))
def test_long_texts_are_decomposed_as_short_ones(marks: list[str]) -> None:
    text = "".join(marks)
    check(text)
    check("b" * 1000 + " " + text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text", ["我" * 350_000, "a" + "\u0301\u0316" * 250_000, "a" * 1_000_000, "a." * 500_000, "Σ\u0301" * 300_000]
)
def test_a_megabyte_costs_no_more_than_its_length(text: str) -> None:
    ids = TOKEN_IDS.encode(text)
    assert len(ids) <= TOKEN_IDS.context_length


@pytest.mark.parametrize("head", [1, 7, 60, 500])
def test_wherever_the_first_look_ends(head: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnclip_token_ids, "_HEAD", head)
    for text in [
        *ODD_TEXTS,
        "ab é́ " * 300,
        "x Σ" + "." * 600 + "a",
        "Σ." * 300 + "a",
        "한글 " * 300,
        "a" * 600 + " b" * 60,
    ]:
        check(text)


def test_of_a_long_text_no_more_is_read_than_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    words = TokenIds._words
    monkeypatch.setattr(
        TokenIds, "_words", lambda self, text, room: (read.append(len(text)), words(self, text, room))[1]
    )
    assert TOKEN_IDS.encode_and_tell("我" * 1_000_000) == (TOKEN_IDS.encode("我" * 51), True)
    assert max(read) < 10_000


def test_utf8() -> None:
    assert decoded("皮卡丘".encode()) == "皮卡丘"
    with pytest.raises(BadText, match="not UTF-8: invalid start byte at byte 1"):
        decoded(b"a\xff")
    with pytest.raises(BadText, match="not UTF-8"):
        decoded(b"\xed\xa0\x80")  # a surrogate


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("", False),
        ("我" * 50, False),
        ("我" * 50 + " \n\0 ", False),  # nothing of it is a token
        ("我" * 51, True),
        ("a " * 49 + "游隼", True),
        ("a " * 48 + "游隼", False),
        ("a " * 49 + "pikachuraichu", True),  # one word of several tokens, of which some fit
        ("a " * 49 + "b", False),
        ("我" * 10_000, True),
    ],
)
def test_what_is_cut_is_told(text: str, cut: bool) -> None:
    assert TOKEN_IDS.encode_and_tell(text) == (TOKEN_IDS.encode(text), cut)
    # By cn_clip's own tokeniser: of a text that is not cut, more room gives the same ids.
    with_room = [token for token in cn_clip_ids(text, 512) if token]
    assert (len(with_room) > 52) == cut


def test_lone_surrogate() -> None:
    with pytest.raises(BadText, match="lone surrogate"):
        TOKEN_IDS.encode("a \ud800 b")


@pytest.mark.parametrize(("longest", "length"), [(2, 24), (24, 24), (25, 40), (41, 52), (52, 52)])
def test_padding(longest: int, length: int) -> None:
    padded = TokenIds(cn_clip_vocabulary(), 52, [40, 24]).pad([[101, 102], [7] * longest])
    assert (padded.dtype, padded.shape) == (np.int32, (2, length))
    assert padded[0].tolist() == [101, 102] + [0] * (length - 2)
    assert padded[1].tolist() == [7] * longest + [0] * (length - longest)


def test_padding_of_nothing() -> None:
    assert TOKEN_IDS.pad([]).shape == (0, 52)


def test_the_vocabulary_that_travels_with_it_is_cn_clips() -> None:
    assert VOCABULARY.read_bytes() == cn_clip_vocabulary().read_bytes()
