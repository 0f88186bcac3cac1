"""Runs cn_clip's own `deploy/pytorch_to_onnx.py` with libraries of today; it was written for those of 2022.

The script is not changed. What it calls is: torch's exporter is the one that it was written for (`dynamo=False`) and
writes opset 14, the first that has an operator for torch's attention; and its FP16 converter comes from where
onnxmltools has moved it.
"""

from __future__ import annotations

import functools
import runpy
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_LEAST_OPSET = 14


def main() -> None:
    """Runs the script with this command's arguments."""
    import torch
    from onnxconverter_common.float16 import convert_float_to_float16

    utilities: Any = types.ModuleType("onnxmltools.utils")
    utilities.convert_float_to_float16 = convert_float_to_float16
    sys.modules |= {"onnxmltools": types.ModuleType("onnxmltools"), "onnxmltools.utils": utilities}

    export = torch.onnx.export

    @functools.wraps(export)
    def export_as_then(*arguments: Any, **options: Any) -> Any:
        newer = {"dynamo": False, "verbose": False, "opset_version": max(options["opset_version"], _LEAST_OPSET)}
        return export(*arguments, **{**options, **newer})

    torch.onnx.export = export_as_then
    package = find_spec("cn_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("cn_clip is not installed: pip install 'cn-clip-triton[builder]'")
    folder = Path(package.origin).parent
    sys.path.append(str(folder))  # the script imports `clip.utils`
    runpy.run_path(str(folder / "deploy" / "pytorch_to_onnx.py"), run_name="__main__")


if __name__ == "__main__":
    main()
