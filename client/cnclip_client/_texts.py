"""What cn_clip's evaluation does to a text before it is tokenised, and what is said of bytes that are no text."""

from __future__ import annotations

__all__ = ["NO_UTF8", "preprocess_text"]

NO_UTF8 = "is not UTF-8 (GBK?); convert the file (iconv -f GB18030 -t UTF-8)"
"""Of a file, or of a line."""


def preprocess_text(text: str) -> str:
    """Returns a text as cn_clip's scripts encode it: in lower case, and with “ and ” made straight.

    Its `eval/extract_features.py` and its training do so (`_preprocess_text`); its `tokenize` by itself does not, and
    keeps “ as a token that its vocabulary lacks. So the same text may have two features, and what is compared should be
    prepared alike: `extract` and `Classifier` do it by default, as those scripts, `encode_texts`, `iter_texts` and
    `similarity` don't, as `tokenize`. Each but the last has `preprocess` to choose.
    """
    # BERT's Chinese vocabulary has only the straight quotation mark. `str.translate` takes ten times as long, except of
    # ASCII.
    return text.lower().replace("“", '"').replace("”", '"')
