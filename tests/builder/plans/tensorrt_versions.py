"""Stand-ins for `tensorrt` that have the attributes of 8.5.3.1, 8.6.1, 10.13.0 and 11.4.0, and nothing more.

The names were read from the modules themselves: the wheels `tensorrt` 8.5.3.1, `tensorrt_bindings` 8.6.1 and
`tensorrt_cu12_bindings` 10.13.0.35 and 11.4.0.106 were imported, and `dir` was taken of these classes.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace
from typing import Any

VERSIONS = ("8.5.3.1", "8.6.1", "10.13.0.35", "11.4.0.106")

_TYPES = ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8"]
_OUTSIDE = ["CUBLAS", "CUBLAS_LT", "CUDNN"]
_INSIDE = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
_PRECISIONS = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"]

_FACTS: dict[str, dict[str, list[str]]] = {
    "8.5.3.1": {
        "BuilderFlag": ["TF32", *_PRECISIONS],
        "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
        "DataType": _TYPES,
        "TacticSource": [*_OUTSIDE, *_INSIDE],
        "IBuilderConfig": [],
        "module": [],
    },
    "8.6.1": {
        "BuilderFlag": ["TF32", "FP8", "VERSION_COMPATIBLE", *_PRECISIONS],
        "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
        "DataType": [*_TYPES, "FP8"],
        "TacticSource": [*_OUTSIDE, *_INSIDE],
        "IBuilderConfig": ["builder_optimization_level", "hardware_compatibility_level"],
        "module": ["INormalizationLayer", "ICastLayer"],
    },
    "10.13.0.35": {
        "BuilderFlag": ["TF32", "FP8", "BF16", "VERSION_COMPATIBLE", *_PRECISIONS],
        "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
        "DataType": [*_TYPES, "FP8", "BF16", "INT64", "INT4", "FP4", "E8M0"],
        "TacticSource": [*_OUTSIDE, *_INSIDE],
        "IBuilderConfig": ["builder_optimization_level", "hardware_compatibility_level"],
        "module": ["INormalizationLayer", "ICastLayer", "IProgressMonitor"],
    },
    "11.4.0.106": {
        "BuilderFlag": ["TF32", "VERSION_COMPATIBLE"],
        "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
        "DataType": [*_TYPES, "FP8", "BF16", "INT64", "INT4", "FP4", "E8M0"],
        "TacticSource": _INSIDE,
        "IBuilderConfig": ["builder_optimization_level", "hardware_compatibility_level"],
        "module": ["INormalizationLayer", "ICastLayer", "IProgressMonitor"],
    },
}


def make_module(version: str) -> Any:
    """A module of one version."""
    facts = _FACTS[version]
    enums = {
        name: enum.Enum(name, facts[name])
        for name in ("BuilderFlag", "NetworkDefinitionCreationFlag", "DataType", "TacticSource")
    }
    return SimpleNamespace(
        __version__=version,
        **enums,
        MemoryPoolType=enum.Enum("MemoryPoolType", ["WORKSPACE"]),
        LayerType=enum.Enum("LayerType", ["ELEMENTWISE", "REDUCE", "UNARY", "IDENTITY", "SHUFFLE", "NORMALIZATION"]),
        IBuilderConfig=type("IBuilderConfig", (), dict.fromkeys(facts["IBuilderConfig"])),
        **{name: type(name, (), {}) for name in facts["module"]},
    )
