"""Two languages: a translation lies beside its page as `NAME.zh.md`; where there is none the English page stands in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

CHINESE = "zh_CN"
ENDING = ".zh.md"
_ANCHOR = re.compile(r'^<a id="([\w-]+)"></a>$', re.MULTILINE)


def is_chinese(app: Sphinx) -> bool:
    """Tells which of the two sites is being built."""
    return bool(app.config.language == CHINESE)


def translation_of(page: Path) -> Path:
    """Returns where the translation of a page, such as `docs/serving.md`, lies if there is one."""
    return page.with_name(page.name.removesuffix(".md") + ENDING)


def other_site(docname: str, target: str, chinese: bool) -> str:
    """Returns the address, seen from the page `docname`, of the page `target` in the other language.

    The English site is at the root, the Chinese one in `zh/` below it. Relative, so that any host and any folder does.
    """
    up = "../" * docname.count("/")
    return f"{up}../{target}.html" if chinese else f"{up}zh/{target}.html"


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    page = Path(app.srcdir, f"{docname}.md")
    if docname == app.config.root_doc:
        source[0] = _first_page(app, page.parent.parent / "README.md")
    elif is_chinese(app) and translation_of(page).exists():
        source[0] = translation_of(page).read_text(encoding="utf-8")
        app.env.note_dependency(translation_of(page))
    # A translated heading keeps the name that others link to, by an anchor of HTML: for MyST a target of its own.
    source[0] = _ANCHOR.sub(r"(\1)=", source[0])


def _first_page(app: Sphinx, readme: Path) -> str:
    """The README, in the site's language if it is there, and the list of all pages, which the sidebar shows."""
    if is_chinese(app) and translation_of(readme).exists():
        readme = translation_of(readme)
    blocks = [f"```{{include}} ../{readme.name}\n:relative-docs: docs/\n:relative-images:\n```"]
    for english, chinese, pages in app.config.sections:
        caption = chinese if is_chinese(app) else english
        blocks.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    return "\n\n".join(blocks) + "\n"


def _switch(app: Sphinx, pagename: str, _template: str, context: dict[str, Any], _doctree: object) -> None:
    chinese = is_chinese(app)
    context["other_language"] = "English" if chinese else "中文"
    context["other_language_code"] = "en" if chinese else "zh-CN"
    context["other_language_url"] = other_site(pagename, pagename, chinese)


def setup(app: Sphinx) -> dict[str, bool]:
    """Has Sphinx take this module as an extension."""
    app.add_config_value("sections", [], "env")
    app.connect("source-read", _read)
    app.connect("html-page-context", _switch)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
