"""The pages in Chinese say what the English ones say: the same commands and code, headings, figures and links."""

from __future__ import annotations

import calendar
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import ROOT

CHINESE = sorted([ROOT / "README.zh.md", ROOT / "deploy/README.zh.md", *(ROOT / "docs").glob("*.zh.md")])
HAN = "[\u3400-\u9fff]"


def english(page: Path) -> Path:
    return page.with_name(page.name.replace(".zh.md", ".md"))


def fenced(text: str) -> list[tuple[str, str]]:
    """The language and the lines of each block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code(language: str, block: str) -> list[str]:
    """The lines of a block, without what may be translated: a comment after `#`, spaces before it, empty lines."""
    if language in ("sh", "python"):
        block = re.sub(r"(^|\s+)# ?.*", "", block, flags=re.MULTILINE)
    return [line.rstrip() for line in block.splitlines() if line.strip()]


def numbers(text: str) -> Counter[str]:
    """The numbers of a text: `1,000` as `1000`, months as dates in Chinese have them, `1.84 million` as `184 万`."""
    for number, month in enumerate(calendar.month_name[1:], start=1):
        text = re.sub(rf"\b{month}\b(?= \d{{4}})", str(number), text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    for word, factor in (("million", 10**6), ("megapixels", 10**6), ("万", 10**4)):
        text = re.sub(rf"(\d+(?:\.\d+)?) {word}", lambda found, times=factor: f"{float(found[1]) * times:.0f}", text)
    return Counter(re.findall(r"\d+(?:\.\d+)*(?:e-?\d+)?", text))


def rows(text: str) -> list[str]:
    return [line for line in without_code(text).splitlines() if line.startswith("|")]


def spans(text: str) -> Counter[str]:
    """What stands in backticks: options, names, messages."""
    return Counter(re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", without_code(text))))


def targets(text: str) -> list[str]:
    """Where links and pictures lead, without the one to the other language."""
    pages = re.sub(r"^.*\[(?:中文|English)\]\(.*$", "", without_code(text), flags=re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", pages)


def anchors(page: Path) -> set[str]:
    """What `#...` may name: headings, as GitHub and Python-Markdown make them, and `<a id>`."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.fixture(params=CHINESE, ids=lambda page: str(page.relative_to(ROOT)))
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    page: Path = request.param
    return english(page).read_text(encoding="utf-8"), page.read_text(encoding="utf-8")


def test_what_a_user_needs_first_is_there_in_chinese() -> None:
    needed = {
        "README",
        "building",
        "serving",
        "client",
        "batch-jobs",
        "retrieval",
        "gateway",
        "tensorrt",
        "gpu",
        "distributed",
        "security",
        "observability",
        "faults",
        "comparing",
        "int8",
        "benchmarks",
        "scaling",
    }
    assert needed <= {page.name.removesuffix(".zh.md") for page in CHINESE}


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_page_leads_to_the_other_at_its_top(page: Path) -> None:
    """In one form, below the heading, so that a site that has a switch of its own can leave the line out."""
    other = english(page)
    assert other.read_text(encoding="utf-8").splitlines()[2] == f"**English** · [中文]({page.name})"
    assert page.read_text(encoding="utf-8").splitlines()[2] == f"[English]({other.name}) · **中文**"


def test_code_is_the_same(pair: tuple[str, str]) -> None:
    """Comments may be translated; commands, Python, messages and outputs are those of the English page."""
    theirs, ours = (fenced(text) for text in pair)
    assert [language for language, _ in ours] == [language for language, _ in theirs]
    for (language, block), (_, translated) in zip(theirs, ours, strict=True):
        assert code(language, translated) == code(language, block)


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_paragraph_in_chinese_is_one_line(page: Path) -> None:
    """A browser shows the end of a line as a space, which does not belong between Chinese characters."""
    lines = without_code(page.read_text(encoding="utf-8")).splitlines()
    begin = ("|", "- ", "#", "!", "<")
    assert not [after for before, after in pairwise(lines) if before and after and not after.startswith(begin)]


def test_headings_are_as_many_and_as_deep(pair: tuple[str, str]) -> None:
    theirs, ours = (re.findall(r"^(#+) (.+)$", without_code(text), re.MULTILINE) for text in pair)
    assert [depth for depth, _ in ours] == [depth for depth, _ in theirs]
    assert all(re.search(HAN, heading) for _, heading in ours[1:])


def test_sections_have_as_many_paragraphs_and_points(pair: tuple[str, str]) -> None:
    """By heading, for each paragraph, table and block of code how many points of a list are in it."""

    def shape(text: str) -> list[list[int]]:
        text = re.sub(
            r'<a id="[^"]+"></a>\n\n', "", re.sub(r"^```.*?^```", "code", text, flags=re.MULTILINE | re.DOTALL)
        )
        sections = re.split(r"^(?=#+ )", text, flags=re.MULTILINE)
        return [[len(re.findall(r"^- ", part, re.MULTILINE)) for part in one.strip().split("\n\n")] for one in sections]

    theirs, ours = (shape(text) for text in pair)
    assert ours == theirs


def test_tables_have_the_same_rows_and_numbers(pair: tuple[str, str]) -> None:
    theirs, ours = (rows(text) for text in pair)
    assert len(ours) == len(theirs)
    for row, translated in zip(theirs, ours, strict=True):
        assert numbers(translated) == numbers(row), translated
        assert translated.replace("\\|", "").count("|") == row.replace("\\|", "").count("|"), translated


def test_numbers_in_the_text_are_the_same(pair: tuple[str, str]) -> None:
    theirs, ours = (numbers(without_code(text)) for text in pair)
    assert ours == theirs


def test_names_of_code_in_the_text_are_the_same(pair: tuple[str, str]) -> None:
    theirs, ours = (spans(text) for text in pair)
    assert set(ours) == set(theirs)


def test_links_lead_to_the_same_pages_in_chinese_where_there_are_some(pair: tuple[str, str]) -> None:
    theirs, ours = (targets(text) for text in pair)
    in_english = [re.sub(r"\.zh\.(md|svg|png)\b", r".\1", target) for target in ours]
    assert Counter(in_english) == Counter(theirs)


@pytest.mark.parametrize("page", [*CHINESE, *map(english, CHINESE)], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in targets(page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        if ".zh" in page.suffixes and place.suffix == ".md" and place.with_suffix(".zh.md").exists():
            pytest.fail(f"{target}: there is a Chinese page")
        if anchor:
            assert anchor in anchors(place), target
