"""What cn_clip's evaluation does to a text before it is tokenised."""

from __future__ import annotations

__all__ = ["preprocess_text"]

# BERT's Chinese vocabulary has only the straight quotation mark.
_STRAIGHT_QUOTES = str.maketrans("“”", '""')


def preprocess_text(text: str) -> str:
    """Returns a text as cn_clip's `eval/extract_features.py` and `eval/data.py` have it (`_preprocess_text`)."""
    return text.lower().translate(_STRAIGHT_QUOTES)
