"""What is used of cn_clip, imported without torch's compiler, which would take as long as all the rest, and 145 MiB.

torchvision, whose transforms cn_clip prepares images by, imports the compiler for a layer of its detectors.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = [
    "CLIP",
    "FullTokenizer",
    "ModifiedResNet",
    "convert_weights",
    "image_transform",
    "tokenize",
]

_COMPILER = "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands for the compiler's module: imported when that layer asks it, or when anything else of it is wanted."""

    def is_compile_supported(self, device: str) -> Any:
        return import_module(_COMPILER).is_compile_supported(device)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        return getattr(import_module(_COMPILER), name)


sys.modules.setdefault(_COMPILER, _Later(_COMPILER))
try:
    from cn_clip.clip import image_transform, tokenize
    from cn_clip.clip.bert_tokenizer import FullTokenizer
    from cn_clip.clip.model import CLIP, ModifiedResNet, convert_weights
finally:
    if isinstance(sys.modules.get(_COMPILER), _Later):
        del sys.modules[_COMPILER]
