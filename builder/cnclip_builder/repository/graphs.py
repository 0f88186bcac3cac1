"""Which graph of an encoder is served: what runs it decides."""

from __future__ import annotations

from cnclip_builder.arch import Arch
from cnclip_builder.export.graphs import Graph, has_fused_form
from cnclip_builder.repository.serving import ServingConfig
from cnclip_builder.tensors import Tower


def served_graph(serving: ServingConfig, arch: Arch, tower: Tower) -> Graph:
    """Gives the graph of an encoder.

    TensorRT's parser knows none of ONNX Runtime's operators, as a plan's builder or as its accelerator. On CPUs fused
    texts took 3 times as long as those without padding, and fused images as long as plain ones.
    """
    if serving.target == "cpu":
        return "unpadded" if tower == "text" else "plain"
    runs_on_cuda = serving.platform == "onnxruntime" and serving.accelerator != "tensorrt"
    return "fused" if runs_on_cuda and has_fused_form(arch, tower) else "plain"
