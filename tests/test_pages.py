"""The HTML pages that commands write hold English and Chinese: neither lacks a word, and a browser runs their script."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest
from jinja2 import Environment, nodes

from tests.conftest import ROOT

TEMPLATES = ("client/cnclip_client/report/report.html.j2", "builder/cnclip_builder/comparison/page.html.j2")


@pytest.fixture(params=TEMPLATES)
def template(request: pytest.FixtureRequest) -> Path:
    return ROOT / request.param


def chinese(template: Path) -> dict[str, str]:
    words: dict[str, str] = json.loads((template.parent / "words.json").read_text(encoding="utf-8"))
    return words


def expressions(template: Path) -> nodes.Template:
    return Environment(autoescape=True).parse(template.read_text(encoding="utf-8"))


def code(template: Path) -> Iterator[ast.AST]:
    """All of the modules beside a template."""
    for module in template.parent.glob("*.py"):
        yield from ast.walk(ast.parse(module.read_text(encoding="utf-8")))


def literals(node: nodes.Node | None) -> Iterator[str]:
    """What an expression of a template may be; nothing of a variable."""
    if isinstance(node, nodes.Const):
        yield str(node.value)
    elif isinstance(node, nodes.CondExpr):
        yield from (*literals(node.expr1), *literals(node.expr2))


def places(words: str) -> set[tuple[str, str | None]]:
    return {(name, spec) for _, name, spec, _ in Formatter().parse(words) if name is not None}


def test_all_that_a_page_says_is_there_in_chinese(template: Path) -> None:
    said = {
        words
        for call in expressions(template).find_all(nodes.Call)
        if isinstance(call.node, nodes.Name) and call.node.name == "say"
        for words in literals(call.args[0])
    }
    for call in code(template):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("Note", "Thumbnail"):
            given = [*call.args, *(word.value for word in call.keywords if word.arg == "reason")]
            said |= {str(one.value) for one in given if isinstance(one, ast.Constant)}
    assert len(said) > 10
    assert said - chinese(template).keys() == set()


def test_nothing_is_there_in_chinese_that_no_page_says(template: Path) -> None:
    """As of a sentence that was worded anew in English alone."""
    said = {one.value for one in expressions(template).find_all(nodes.Const)}
    said |= {one.value for one in code(template) if isinstance(one, ast.Constant)}
    assert chinese(template).keys() - said == set()


def test_both_languages_have_the_same_numbers_and_markup(template: Path) -> None:
    for english, translated in chinese(template).items():
        assert places(translated) == places(english), english
        assert re.findall("<[^>]*>", translated) == re.findall("<[^>]*>", english), english
        assert re.search("[\u4e00-\u9fff]", translated) or translated == english == "checkpoint"


def test_the_policy_allows_the_one_script_and_nothing_else(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert not re.search(r"\{[{%#]", script)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', text)
    assert "default-src 'none'" in policy
    assert re.findall("script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
