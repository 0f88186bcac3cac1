"""What Triton serves: for every served model its `config.pbtxt.j2` and `model.py`, laid out as they are served.

The modules named `cnclip_*` hold the work of the Python models. They are copied beside each `model.py`, so they
import only what a server has: the standard library and numpy. So are the packages `cnclip_pixels`, `cnclip_machine` and
`cnclip_token_ids`.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path


def templates_folder() -> Path:
    """The folder of templates, as they lie in the installed package."""
    return Path(str(importlib.resources.files("cnclip_templates")))
