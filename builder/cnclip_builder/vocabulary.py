"""The vocabulary of a text encoder: a token a line, each line's number being the row of its embedding."""

from __future__ import annotations

from pathlib import Path

from cnclip_builder.errors import SettingError

# cn_clip's model takes row 0 for padding, and its tokeniser writes the others.
_PAD, _NEEDED = "[PAD]", ("[UNK]", "[CLS]", "[SEP]")

# Trainers round the embedding up to a multiple of 64 or 128 rows.
_MOST_SPARE_ROWS = 127


def read_tokens(path: Path) -> list[str]:
    """Reads a vocabulary as cn_clip does.

    Raises:
        SettingError: it can't be read, or lacks what cn_clip's tokeniser and model need.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            tokens = [line.strip() for line in lines]
    except (OSError, ValueError) as error:
        raise SettingError(
            f"{path} can't be read as a vocabulary ({error}): give a file in UTF-8 with a token a line, as cn_clip's "
            "vocab.txt is"
        ) from error
    missing = [token for token in _NEEDED if token not in tokens]
    if missing or tokens[0] != _PAD:
        what = f"lacks {', '.join(missing)}" if missing else f"begins with {tokens[0]!r} and not with {_PAD}"
        raise SettingError(
            f"{path} {what}, which cn_clip's model and tokeniser need: give the vocab.txt that the model was trained "
            "with"
        )
    return tokens


def require_rows(arch: str, rows: int, path: Path, *, is_given: bool) -> None:
    """Compares a text encoder's embedding with a vocabulary.

    Args:
        arch: names the model in the error.
        rows: of the embedding.
        path: the vocabulary.
        is_given: whether a user named it; cn_clip's own has as many tokens as its models have rows, to the row.

    Raises:
        SettingError: the embedding has fewer rows than there are tokens, or more than padding explains.
    """
    tokens = len(read_tokens(path))
    if not 0 <= rows - tokens <= (_MOST_SPARE_ROWS if is_given else 0):
        named = str(path) if is_given else "cn_clip's vocabulary"
        raise SettingError(
            f"{arch} embeds {rows} tokens, and {named} has {tokens}: give the vocab.txt that the model was trained "
            "with, --vocabulary FILE"
        )
