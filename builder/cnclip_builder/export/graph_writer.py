"""Writes an ONNX graph node by node, and its weights straight to a file beside it: one is in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from cnclip_builder.arch import Arch
from cnclip_builder.export.files import FUSED_OPSET, OPSET, external_data_of
from cnclip_builder.export.weights_file import WeightsFile
from cnclip_builder.tensors import BATCH, TENSORS, InputSpec, Precision, Tower

if TYPE_CHECKING:
    import torch

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

Weight = npt.NDArray[np.floating[Any]]

_IR_VERSION = 9  # the oldest that has all that is written here


def exact(tensor: torch.Tensor) -> npt.NDArray[np.float64]:
    """A weight in float64, in which folding loses nothing that FP16 or FP32 keeps."""
    return tensor.detach().double().numpy()


class GraphWriter:
    """Nodes and weights of one encoder.

    Args:
        path: the .onnx file to write; weights go beside it.
        precision: of weights and inner values, "fp16" or "fp32".
    """

    def __init__(self, path: Path, precision: Precision) -> None:
        self._path = path
        self._data = WeightsFile(external_data_of(path))
        self._dtype = np.dtype(np.float16 if precision == "fp16" else np.float32)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._part = ""

    def __enter__(self) -> GraphWriter:
        self._data.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.__exit__(kind, error, trace)

    def enter(self, part: str) -> None:
        """Names the part of the encoder that is written next, for who reads the graph: "layer.3"."""
        self._part = f"{part}."

    def floats(self, value: Weight) -> str:
        """Adds a weight, rounded once to the graph's precision; gives its name."""
        return self._add(np.ascontiguousarray(value, dtype=self._dtype))

    def integers(self, *values: int) -> str:
        """Adds an int64 constant `[len(values)]`; gives its name."""
        return self._add(np.array(values, dtype=np.int64))

    def int32(self, value: int, *shape: int) -> str:
        """Adds an int32 constant of one element; gives its name."""
        return self._add(np.full(shape, value, dtype=np.int32))

    def op(self, kind: str, *inputs: str, outputs: Sequence[int] = (0,), **attributes: Any) -> tuple[str, ...]:
        """Adds a node.

        Args:
            kind: the operator, of ONNX's own domain unless `domain` is among the attributes.
            inputs: names; "" leaves an optional one out.
            outputs: places of the outputs that are wanted.
            attributes: of the operator.

        Returns:
            The names of those outputs.
        """
        name = f"{self._part}{kind}_{len(self._nodes)}"
        places = [f"{name}:{place}" if place in outputs else "" for place in range(max(outputs) + 1)]
        self._nodes.append(helper.make_node(kind, list(inputs), places, name, **attributes))
        return tuple(places[place] for place in outputs)

    def one(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output; gives that output's name."""
        return self.op(kind, *inputs, **attributes)[0]

    def to_floats(self, x: str) -> str:
        """Casts to the graph's precision."""
        return self.one("Cast", x, to=helper.np_dtype_to_tensor_dtype(self._dtype))

    def product(self, x: str, weight: Weight) -> str:
        """`[..., in]` times `[in, out]`."""
        return self.one("MatMul", x, self.floats(weight))

    def linear(self, x: str, weight: torch.Tensor, bias: torch.Tensor) -> str:
        """`[..., in]` times the transposed `[out, in]`, plus `[out]`: what `torch.nn.Linear` computes."""
        product = self.product(x, weight.detach().numpy().T)
        return self.one("Add", product, self.floats(bias.detach().numpy()))

    def norm(self, x: str, layer: torch.nn.LayerNorm) -> str:
        """LayerNormalization over the last axis, its sums in FP32 whatever the precision."""
        inputs = (x, *self._scale_and_shift(layer))
        return self.one("LayerNormalization", *inputs, axis=-1, epsilon=layer.eps, stash_type=TensorProto.FLOAT)

    def add_and_norm(self, x: str, skip: str, layer: torch.nn.LayerNorm, bias: Weight | None = None) -> tuple[str, str]:
        """The norm of `x + skip + bias`, and that sum itself, in one kernel.

        Args:
            x: `[N, T, D]`.
            skip: `[N, T, D]` or `[1, T, D]`.
            layer: the LayerNormalization.
            bias: `[D]`.
        """
        inputs = [x, skip, *self._scale_and_shift(layer)]
        if bias is not None:
            inputs.append(self.floats(bias))
        normalised, total = self.op(
            "SkipLayerNormalization", *inputs, outputs=(0, 3), domain=MICROSOFT, epsilon=layer.eps
        )
        return normalised, total

    def first_token(self, x: str) -> str:
        """`[N, T, D]` -> `[N, 1, D]`."""
        return self.one("Slice", x, self.integers(0), self.integers(1), self.integers(1))

    def finish(self, arch: Arch, tower: Tower, spec: InputSpec, features: str) -> None:
        """Adds the outputs of a served encoder, un-normalised and L2-normalised features in FP32, and writes the file.

        Args:
            arch: the architecture.
            tower: which encoder.
            spec: its input.
            features: name of the tensor `[N, D]` that holds the features.
        """
        names = TENSORS[tower]
        self._nodes.append(helper.make_node("Cast", [features], [names.unnormalised], "features", to=TensorProto.FLOAT))
        norm = self.one("ReduceL2", names.unnormalised, axes=[1])
        self._nodes.append(helper.make_node("Div", [names.unnormalised, norm], [names.normalised], "normalised"))
        self._drop_unread()
        opsets = (helper.make_opsetid("", FUSED_OPSET), helper.make_opsetid(MICROSOFT, 1))
        self._save(arch, tower, spec, (names.normalised, names.unnormalised), opsets)

    def finish_plain(self, arch: Arch, tower: Tower, spec: InputSpec) -> None:
        """Gives the last node's output, features `[N, D]`, cn_clip's name, and writes the file.

        Args:
            arch: the architecture.
            tower: which encoder.
            spec: its input.
        """
        self._nodes[-1].output[0] = TENSORS[tower].unnormalised
        self._save(arch, tower, spec, (TENSORS[tower].unnormalised,), (helper.make_opsetid("", OPSET),))

    def _save(
        self,
        arch: Arch,
        tower: Tower,
        spec: InputSpec,
        outputs: Sequence[str],
        opsets: Sequence[onnx.OperatorSetIdProto],
    ) -> None:
        graph = helper.make_graph(
            self._nodes,
            f"{arch.slug}.{tower}",
            [
                helper.make_tensor_value_info(
                    spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), list(spec.axes)
                )
            ],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, arch.embedding_size]) for name in outputs],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="cn-clip-triton")
        onnx.save_model(model, self._path)

    def _scale_and_shift(self, layer: torch.nn.LayerNorm) -> tuple[str, str]:
        return self.floats(exact(layer.weight)), self.floats(exact(layer.bias))

    def _drop_unread(self) -> None:
        """A sum that nobody reads is not to be written to memory."""
        read = {name for node in self._nodes for name in node.input}
        for node in self._nodes:
            while len(node.output) > 1 and node.output[-1] not in read:
                node.output.pop()

    def _add(self, value: npt.NDArray[Any]) -> str:
        name = f"{self._part}weight_{len(self._weights)}"
        self._weights.append(self._data.add(name, value))
        return name
