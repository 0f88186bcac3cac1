"""Links as they are written for readers of the repository, made right for the site.

To a page of docs/ they stay. To any other file of the repository they lead to the repository's own pages; to the other
language's version of a page they lead to the other site. A link to what is not there stays as it is, and Sphinx warns.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from languages import ENDING, is_chinese, other_site
from sphinx import addnodes
from sphinx.application import Sphinx


def _mend(app: Sphinx, doctree: nodes.document) -> None:
    for node in [*doctree.findall(addnodes.pending_xref), *doctree.findall(addnodes.download_reference)]:
        if node.get("reftype") == "myst" and (file := _file(app, node)):
            uri = _uri(app, node, file)
            if uri:
                node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=False))


def _file(app: Sphinx, node: addnodes.pending_xref | addnodes.download_reference) -> Path | None:
    """What a link means: seen from its page's folder or, in the README, from the repository's root."""
    target = node["reftarget"].partition("#")[0]
    if node.get("refdomain") == "doc":
        target = f"/{target}.md" if not target.startswith("/") else f"{target}.md"
        candidates = [Path(app.srcdir, target.lstrip("/")), Path(target)]
    else:
        folder = Path(app.srcdir, app.env.docname).parent
        candidates = [folder / target, Path(app.srcdir).parent / target]
    return next((path.resolve() for path in candidates if target and path.exists()), None)


def _uri(app: Sphinx, node: nodes.Element, file: Path) -> str | None:
    """Where a link leads if not to a page of this site."""
    docs, root = Path(app.srcdir), Path(app.srcdir).parent
    here = app.env.docname
    fragment = node.get("reftargetid") or node["reftarget"].partition("#")[2]
    ending = f"#{fragment}" if fragment else ""
    original = file.with_name(file.name.removesuffix(ENDING) + ".md") if file.name.endswith(ENDING) else file
    name = "index" if original == root / "README.md" else None
    if original.is_relative_to(docs) and original.suffix == ".md":
        name = original.relative_to(docs).with_suffix("").as_posix()
    if name is None or name not in app.env.found_docs:
        kind = "tree" if file.is_dir() else "blob"
        return f"{app.config.repository_url}/{kind}/main/{file.relative_to(root).as_posix()}{ending}"
    # Links stay in their site, but those that name a translation, and a translation's to its own original.
    wanted_chinese = file != original or (is_chinese(app) and name != here)
    if wanted_chinese != is_chinese(app):
        return other_site(here, name, is_chinese(app)) + ending
    if node.get("refdomain") == "doc" and node["reftarget"] == name:
        return None
    up = "../" * here.count("/")
    return f"{up}{name}.html{ending}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Has Sphinx take this module as an extension."""
    app.add_config_value("repository_url", "", "env")
    # Before Sphinx collects what is to be downloaded.
    app.connect("doctree-read", _mend, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
