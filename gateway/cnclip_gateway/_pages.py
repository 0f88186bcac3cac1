"""The pages: searching, and what the API takes. All that they load is here; their policy forbids them anything else."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from string import Template
from typing import Any

__all__ = ["ASSETS", "HEADERS", "LANGUAGES", "asset", "docs_page", "language_of", "openapi", "search_page"]

HEADERS = {
    # blob: is a picture that was dropped on the page, shown there.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Sent with every answer."""

ASSETS = {"search.css": "text/css", "search.js": "text/javascript", "docs.css": "text/css"}
LANGUAGES = {"zh": "中文", "en": "English"}

_FOLDER = files("cnclip_gateway") / "pages"


def asset(name: str) -> bytes:
    """Returns a file of the pages."""
    return (_FOLDER / name).read_bytes()


def language_of(asked: str | None, accepted: str) -> str:
    """Returns the language of a page.

    Args:
        asked: The one that was chosen on the page, if it is one.
        accepted: The header Accept-Language.
    """
    if asked in LANGUAGES:
        return str(asked)
    weighed: list[tuple[float, str]] = []
    for one in accepted.split(","):
        name, _, rest = one.strip().partition(";")
        try:
            weight = float(rest.strip().removeprefix("q=") or 1)
        except ValueError:
            weight = 0.0
        if (language := name.partition("-")[0].strip().lower()) in LANGUAGES:
            weighed.append((-weight, language))
    return min(weighed, key=lambda one: one[0])[1] if weighed else "en"


def search_page(language: str, pictures: int) -> str:
    """Returns the page that searches.

    Args:
        language: `zh` or `en`.
        pictures: How many there are to search.
    """
    words: dict[str, str] = json.loads(asset("words.json"))[language]
    other = next(one for one in LANGUAGES if one != language)
    told = {name: html.escape(text) for name, text in words.items()}
    told |= {
        "lang": "zh-CN" if language == "zh" else "en",
        "language": language,
        "other": other,
        "other_name": LANGUAGES[other],
        "count": html.escape(words["count"].format(count=f"{pictures:,}")),
        # For the script: what it says while it runs.
        "words": html.escape(json.dumps(words, ensure_ascii=False)),
    }
    return Template(asset("search.html").decode()).substitute(told)


def openapi() -> dict[str, Any]:
    """Returns the description of the API, of OpenAPI 3.1."""
    found: dict[str, Any] = json.loads(asset("openapi.json"))
    try:
        found["info"]["version"] = version("cn-clip-triton")
    except PackageNotFoundError:
        found["info"]["version"] = "0"
    return found


def docs_page() -> str:
    """Returns that description as a page: swagger-ui's would load 1.5 MB of scripts from elsewhere."""
    described = openapi()
    sections = [
        _operation(method, path, operation)
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    ]
    named = [
        f"<h3 id='{html.escape(name)}'>{html.escape(name)}</h3>{_schema(one)}"
        for name, one in described["components"]["schemas"].items()
    ]
    info = described["info"]
    return Template(asset("docs.html").decode()).substitute(
        title=html.escape(info["title"]),
        version=html.escape(info["version"]),
        description=html.escape(info["description"]),
        operations="".join(sections),
        schemas="".join(named),
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [f"<h3><code>{method.upper()} {html.escape(path)}</code></h3><p>{html.escape(operation['summary'])}</p>"]
    parameters = [(one["name"], one.get("required", False), one) for one in operation.get("parameters", [])]
    if parameters:
        parts.append(_table((name, needed, one["schema"], one["description"]) for name, needed, one in parameters))
    for content, one in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body, <code>{html.escape(content)}</code>: {_type(one['schema'])}</p>")
        if "example" in one:
            parts.append(f"<pre>{html.escape(json.dumps(one['example'], ensure_ascii=False, indent=1))}</pre>")
    for status, answer in operation["responses"].items():
        types = ", ".join(_type(one["schema"]) for one in answer.get("content", {}).values())
        parts.append(f"<p>{html.escape(status)}: {html.escape(answer['description'])} {types}</p>")
    return f"<section>{''.join(parts)}</section>"


def _schema(schema: Mapping[str, Any]) -> str:
    told = f"<p>{html.escape(schema.get('description', ''))}</p>"
    needed = schema.get("required", ())
    fields = schema.get("properties", {})
    return told + (
        _table((name, name in needed, one, one.get("description", "")) for name, one in fields.items())
        if fields
        else f"<p>{_type(schema)}</p>"
    )


def _table(rows: Any) -> str:
    cells = "".join(
        f"<tr><th scope='row'><code>{html.escape(name)}</code></th>"
        f"<td>{_type(schema)}{'' if needed else ', optional'}</td><td>{html.escape(description)}</td></tr>"
        for name, needed, schema, description in rows
    )
    return f"<table>{cells}</table>"


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if "oneOf" in schema:
        return " or ".join(map(_type, schema["oneOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if "enum" in schema:
        return " or ".join(f"<code>{html.escape(json.dumps(one))}</code>" for one in schema["enum"])
    kind = schema.get("type", "any")
    return html.escape(" or ".join(kind) if isinstance(kind, list) else str(kind))
