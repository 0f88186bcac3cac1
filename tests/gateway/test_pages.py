"""What a browser loads, and what the API says of itself. A real browser drives it in `test_browser.py`."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

import pytest
from cnclip_gateway import _pages as pages

from tests.client.conftest import FakeTriton
from tests.gateway.conftest import Running, require_schema


class Nothing:
    """What could be searched."""

    origin = None

    def __len__(self) -> int:
        return 1234

    def nearest(self, feature: Any, k: int) -> list[Any]:
        return []

    def id_of(self, row: int) -> str:
        return str(row)


@pytest.fixture
def searching(run: Callable[..., Running], triton: FakeTriton) -> Running:
    return run(triton.url, searched=Nothing())


@pytest.mark.parametrize(
    ("asked", "accepted", "language"),
    [
        (None, "", "en"),
        (None, "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        (None, "en-US,en;q=0.9,zh;q=0.8", "en"),
        (None, "fr,zh;q=0.5,en;q=0.6", "en"),
        (None, "de, fr;q=0.7", "en"),
        (None, "zh;q=x, en;q=0.1", "en"),
        (None, ",;q=,;;", "en"),
        ("zh", "en", "zh"),
        ("en", "zh", "en"),
        ("xx", "zh", "zh"),
    ],
)
def test_the_language_that_is_asked_for(searching: Running, asked: str | None, accepted: str, language: str) -> None:
    path = "/" if asked is None else f"/?lang={asked}"
    answer = searching.ask("GET", path, **{"Accept-Language": accepted})
    words = json.loads(pages.asset("words.json"))[language]
    text = answer.body.decode()
    assert f"<title>{words['title']}</title>" in text
    assert ('lang="zh-CN"' if language == "zh" else 'lang="en"') in text.partition("<head>")[0]
    assert html.escape(words["count"].format(count="1,234")) in text
    assert json.loads(html.unescape(re.findall(r'data-words="([^"]*)"', text)[0])) == words


def test_both_languages_have_the_same_words() -> None:
    words = json.loads(pages.asset("words.json"))
    assert set(words) == set(pages.LANGUAGES)
    assert list(words["en"]) == list(words["zh"])
    for name in words["en"]:
        assert re.findall(r"{\w+}", words["en"][name]) == re.findall(r"{\w+}", words["zh"][name]), name
    used = set(re.findall(r"words\.(\w+)", pages.asset("search.js").decode()))
    used |= set(re.findall(r"\$(\w+)", pages.asset("search.html").decode()))
    assert set(words["en"]) == used - {"lang", "language", "other", "other_name", "words"}


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_what_is_here_and_nothing_else(searching: Running, path: str) -> None:
    text = searching.ask("GET", path).body.decode()
    loaded = set(re.findall(r'(?:src|href|action)=["\']([^"\']+)', text))
    for address in loaded:
        # None from the root: a proxy may have put all of it under a prefix.
        assert re.match("[a-z]+[/.]|search$|#|[?]|data:,", address), address
        if not address.startswith(("#", "?", "data:,", "search")):
            answer = searching.ask("GET", urljoin(path, address))
            assert answer.status == 200
            if address.startswith("pages/"):
                assert answer.headers["Content-Type"].partition(";")[0] in pages.ASSETS.values()
    # What the policy would not let run.
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|style=|<style|javascript:", text)
    for name in pages.ASSETS:
        assert b"http" not in pages.asset(name).replace(b"https://www.w3.org", b"")
        assert b"innerHTML" not in pages.asset(name)
        assert not re.search(rb"""["'`(]/\w""", pages.asset(name))


def test_the_description_is_of_the_paths_that_are_there(searching: Running) -> None:
    described = searching.ask("GET", "/openapi.json").json
    assert described["openapi"] == "3.1.0"
    assert [urljoin("/clip/openapi.json", server["url"]) for server in described["servers"]] == ["/clip/"]
    for path, operations in described["paths"].items():
        assert searching.ask("PATCH", re.sub(r"{row}", "0", path)).status == 405, path
        allowed = set(searching.ask("PATCH", re.sub(r"{row}", "0", path)).headers["Allow"].split(", ")) - {"HEAD"}
        assert allowed <= {method.upper() for method in operations}, path
        for operation in operations.values():
            assert operation["responses"].keys() & {"200"}
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
    assert references == set(described["components"]["schemas"]) - {"EmbeddingsRequest"} | {"EmbeddingsRequest"}
    example = described["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["example"]
    require_schema("EmbeddingsRequest", example)


def test_the_description_is_openapi() -> None:
    """By OpenAPI's own schema, where a package that carries it is at hand."""
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    validator.validate(pages.openapi())


def test_the_docs_tell_of_every_path_field_and_type(searching: Running) -> None:
    text = searching.ask("GET", "/docs").body.decode()
    described = pages.openapi()
    for path in described["paths"]:
        assert html.escape(path) in text
    for name, schema in described["components"]["schemas"].items():
        assert f"id='{name}'" in text
        for field in schema.get("properties", {}):
            assert f"<code>{field}</code>" in text
    anchors = set(re.findall(r"href='#(\w+)'", text))
    assert anchors <= set(re.findall(r"id='(\w+)'", text))


def test_openapi_default_bounds_are_the_settings() -> None:
    from cnclip_gateway._settings import Settings

    assert f"up to {Settings().max_items:,} unless" in json.dumps(pages.openapi(), ensure_ascii=False)
