"""Docstrings are written as they read in an editor; what means something else to Sphinx is mended here.

An indented block is an example, and no quotation. Tables are drawn as in Markdown. A property's docstring has Google's
sections as any other has, and what stands before its first colon is no type. A short name is one of the same package.
"""

from __future__ import annotations

from typing import Any

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.transforms.post_transforms import SphinxPostTransform


def mark_examples(lines: list[str]) -> list[str]:
    """Returns a docstring's lines with a `code-block` before each block that is indented by itself."""
    marked: list[str] = []
    indent, inside = 0, False
    for number, line in enumerate(lines):
        width = len(line) - len(line.lstrip())
        if line.strip():
            inside = inside and width > indent
            begins = number > 0 and not lines[number - 1].strip() and width >= indent + 4
            if not inside and begins and not _belongs_to_an_item(lines[:number]):
                marked += [" " * indent + ".. code-block:: python", ""]
                inside = True
            if not inside:
                indent = width
        marked.append(line)
    return marked


def _belongs_to_an_item(before: list[str]) -> bool:
    """Tells whether what comes is more of an item or a field, which is indented without being an example."""
    last = next((line.strip() for line in reversed(before) if line.strip()), "")
    return last.startswith(("- ", "* ", ":", "..")) or last.endswith("::")


def draw_tables(lines: list[str]) -> list[str]:
    """Returns a docstring's lines with each Markdown table as a `list-table`."""
    drawn: list[str] = []
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            drawn.append(line)
        elif not line.startswith("|---"):
            if not (number and lines[number - 1].startswith("|")):
                drawn += [".. list-table::", "   :header-rows: 1", ""]
            for column, cell in enumerate(line.strip("|").split("|")):
                drawn.append(f"   {' ' if column else '*'} - {cell.strip()}")
            if number + 1 == len(lines) or not lines[number + 1].startswith("|"):
                drawn.append("")
    return drawn


class Docstrings:
    """Mends each docstring before napoleon makes fields of its sections; of properties, in napoleon's place."""

    def __init__(self) -> None:
        self._of_properties: dict[str, list[str]] = {}

    def before(self, app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
        """Mends a docstring in place, as autodoc asks for it."""
        lines[:] = draw_tables(mark_examples(lines))
        if what in ("property", "attribute"):
            # Napoleon would take what stands before the first colon for a type, and the sections for text.
            self._of_properties[name] = GoogleDocstring(lines, app.config, app, "method", name, thing, options).lines()

    def after(self, _app: Sphinx, _what: str, name: str, _thing: object, _options: Any, lines: list[str]) -> None:
        """Puts a property's docstring in the place of what napoleon made of it."""
        lines[:] = self._of_properties.pop(name, lines)


class OwnPackageFirst(SphinxPostTransform):
    """Of several objects of one name, such as `SettingError`, the one of the package that speaks of it is meant."""

    default_priority = 5  # before references are resolved

    def run(self, **_: Any) -> None:
        """Writes out in full which object is meant, wherever a short name leaves it open."""
        known = self.env.domains.python_domain.objects
        for node in self.document.findall(addnodes.pending_xref):
            package = str(node.get("py:module") or "").partition(".")[0]
            if node.get("refdomain") == "py" and package:
                ending = f".{node['reftarget'].lstrip('.')}"
                found = [name for name in known if name.endswith(ending) and name.startswith(f"{package}.")]
                public = [name for name in found if "._" not in name]
                if node.hasattr("refspecific") and len(public) == 1:
                    node["reftarget"] = public[0]


def setup(app: Sphinx) -> dict[str, bool]:
    """Has Sphinx take this module as an extension."""
    docstrings = Docstrings()
    app.connect("autodoc-process-docstring", docstrings.before, priority=100)
    app.connect("autodoc-process-docstring", docstrings.after, priority=900)
    app.add_post_transform(OwnPackageFirst)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
