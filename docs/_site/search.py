"""Search that finds Chinese, which is written without spaces, without a dictionary of its words.

A run of Chinese characters is indexed as its pairs of neighbours, and each character. What is asked for is taken apart
into pairs as well, in the browser, and a page is found if it has them all: so any phrase of a page finds it, whether a
dictionary knows it or not. English words are stemmed as Sphinx does it.
"""

from __future__ import annotations

import re

import sphinx.search
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

_RUN = re.compile(r"[\u3400-\u9fff]+|[^\W\u3400-\u9fff]+")


def is_han(word: str) -> bool:
    """Tells runs of Chinese characters from other words."""
    return "\u3400" <= word[0] <= "\u9fff"


def pairs(run: str) -> list[str]:
    """Returns each two neighbours of a run of characters."""
    return [run[start : start + 2] for start in range(len(run) - 1)]


class Search(SearchEnglish):
    """English words, and pairs of Chinese characters."""

    # As `split` does, less the single characters unless one is all that was asked for.
    js_splitter_code = r"""
var splitQuery = (query) => {
  const run = /[\u3400-\u9fff]+|[\p{Letter}\p{Number}_]+?(?=[\u3400-\u9fff]|[^\p{Letter}\p{Number}_]|$)/gu;
  return (query.match(run) || []).flatMap((run) =>
    /^[\u3400-\u9fff]{2,}$/.test(run)
      ? Array.from({ length: run.length - 1 }, (_, start) => run.slice(start, start + 2))
      : [run],
  );
};
"""

    def split(self, text: str) -> list[str]:
        """Takes a text apart into what is indexed of it."""
        words: list[str] = []
        for run in _RUN.findall(text):
            words += [*run, *pairs(run)] if is_han(run) else [run]
        return words


def setup(app: Sphinx) -> dict[str, bool]:
    """Has Sphinx take this module as an extension."""
    # Both sites hold English pages, and both may hold Chinese words.
    for language in ("en", "zh"):
        sphinx.search.languages[language] = Search
    return {"parallel_read_safe": True, "parallel_write_safe": True}
