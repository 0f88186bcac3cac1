"""The documentation site: `make docs` builds it twice, in English and, with `-D language=zh_CN`, in Chinese.

The pages are those of docs/, as they are read on GitHub too. What makes a site of them is here: which page stands
where, and in modules of their own how the two languages (`languages`), links (`links`), Chinese search (`search`) and
docstrings (`docstrings`) are dealt with.
"""

from __future__ import annotations

import sys
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

_about = metadata("cn-clip-triton")
_addresses = dict(entry.split(", ") for entry in _about.get_all("Project-URL") or ())

project = "cn-clip-triton"
version = release = _about["Version"]
copyright = "the authors of cn-clip-triton, Apache-2.0"
repository_url = _addresses["Homepage"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "languages",
    "links",
    "search",
    "docstrings",
]
# What is no page of its own: translations take their original's place in the Chinese site.
exclude_patterns = ["_site", "**/*.zh.md", "*.zh.md"]

# Captions in both languages, and the pages below them. A page that is missing here is a warning, and so an error.
sections = [
    ("Use it", "使用", ["building", "serving", "client", "gateway", "batch-jobs", "retrieval", "distributed"]),
    ("Make it faster", "性能", ["gpu", "tensorrt", "int8", "scaling", "benchmarks"]),
    ("Run it for others", "生产运维", ["security", "observability", "faults", "comparing"]),
    ("Look inside", "架构", ["architecture"]),
    ("Python", "Python 接口", ["api/client", "api/jobs", "api/retrieval", "api/clusters", "api/server", "api/builder"]),
]

myst_heading_anchors = 4

default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "all"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = project
html_favicon = "static/icon.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {"**": ["pages.html"]}
html_theme_options = {
    "logo": {"text": project},
    "navbar_start": ["navbar-logo"],
    "navbar_center": [],
    "navbar_end": ["language.html", "theme-switcher", "navbar-icon-links"],
    "navbar_persistent": ["search-button"],
    "icon_links": [{"name": "Source", "url": repository_url, "icon": "fa-brands fa-github"}],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "show_prev_next": True,
    "search_bar_text": "",
}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
