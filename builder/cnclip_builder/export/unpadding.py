"""Takes the padding out of a served text encoder: what is multiplied are the texts' own tokens.

Texts of a batch are padded to one length, and products with weights, nearly all of an encoder's work, compute the
padding too, though nothing ever reads it. None of them looks from one token to another; attention alone does. So
the tokens of all texts are put one after another, `[T, width]`, and set apart again, `[N, L, width]`, just for
attention, where padding was masked all along; L is the length of the longest, however long the ids are. Features are
the same to the bit, whatever texts share a batch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnclip_builder.errors import BuildError
from cnclip_builder.export.files import drop_unread, in_order
from cnclip_builder.tensors import TENSORS

_State = Literal["rows", "grid", "first"]
"""How a tensor holds tokens: `rows` `[T, ...]`, `grid` `[N, L, ...]` (also by heads), or the first of each text."""

# Operators that give each row of `[T, ...]` from that row alone; with a second operand that is constant, or rows too.
_ROW_WISE = {
    *("Add", "Div", "Erf", "LayerNormalization", "MatMul", "Mul", "Relu", "Sigmoid", "Tanh"),
    "Cast",  # of an FP16 encoder
    *("Abs", "MatMulIntegerToFloat", "Max", "QuantizeLinear", "ReduceMax"),  # of an INT8 encoder
}


def skip_padding(graph: onnx.GraphProto) -> None:
    """Rewrites a text encoder in place; inputs, outputs and weights stay.

    Each text's first token is kept even if its id is padding, so that a row of zeros has features too.

    Args:
        graph: of an encoder that this builder exported, whose last block computes the class token alone.

    Raises:
        BuildError: the graph is another one.
    """
    _Rewriting(graph).run()


class _Rewriting:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._state: dict[str, _State] = {}
        self._renamed: dict[str, str] = {}
        self._padded: dict[str, str] = {}

    def run(self) -> None:
        graph = self._graph
        given = {graph.input[0].name, *self._constants}
        self._find_tokens()
        for node in in_order(graph.node, given):
            for place, name in enumerate(node.input):
                node.input[place] = self._renamed.get(name, name)
            self._rewrite(node)
        if self._state.get(graph.output[0].name) != "first":
            raise BuildError("the text encoder's features are not those of its class token alone: report it")
        del graph.node[:]
        graph.node.extend(self._nodes)
        drop_unread(graph)

    def _find_tokens(self) -> None:
        """Adds what tells where the tokens are, and cuts the ids to the longest text's.

        `token_places` int64 `[T, 2]`: text and position of each. `token_rows` int64 `[N, L]`: the row of each, and for
        padding that of some token before it: masked, so that any will do. `class_rows` int64 `[N, 1]`.
        """
        ids = TENSORS["text"].served_input
        zero, one = self._constant("zero", 0), self._constant("one", 1)
        self._add("Equal", [ids, self._constant("padding_id", 0, np.int32)], "is_padding")
        self._add("Not", ["is_padding"], "is_no_padding")
        self._add("Shape", [ids], "ids_shape")
        self._add("Gather", ["ids_shape", one], "ids_length", axis=0)
        self._add("Range", [zero, "ids_length", one], "positions")
        self._add("Equal", ["positions", zero], "is_first")
        self._add("Or", ["is_no_padding", "is_first"], "is_token")
        self._add("NonZero", ["is_token"], "token_axes")
        self._add("Transpose", ["token_axes"], "token_places", perm=[1, 0])
        self._add("Cast", ["is_token"], "token_counts", to=TensorProto.INT64)
        self._add("Reshape", ["token_counts", self._constant("flat", [-1])], "token_counts_flat")
        self._add("CumSum", ["token_counts_flat", zero], "tokens_so_far")
        self._add("Sub", ["tokens_so_far", one], "token_rows_flat")
        self._add("Reshape", ["token_rows_flat", "ids_shape"], "all_token_rows")
        self._add("Gather", ["all_token_rows", first := self._constant("first", [0])], "class_rows", axis=1)

        self._add("Gather", ["token_axes", one], "token_positions", axis=0)
        self._add("ReduceMax", ["token_positions"], "last_position", keepdims=0)
        self._add("Add", ["last_position", self._constant("one_in_a_row", [1])], "longest")
        within = [first, "longest", self._constant("length_axis", [1])]
        self._add("Slice", ["all_token_rows", *within], "token_rows")
        self._renamed[ids] = self._add("Slice", [ids, *within], "ids")

    def _rewrite(self, node: onnx.NodeProto) -> None:
        held = {self._state[name] for name in node.input if name in self._state}
        (output,) = node.output
        self._nodes.append(node)
        if not self._state:
            if node.op_type == "LayerNormalization":  # the embeddings': all before it is looked up, not computed
                self._pack(output)
        elif held == {"rows"} and node.op_type == "Reshape":  # into heads
            node.input[0] = self._set_apart(node.input[0])
            self._state[output] = "grid"
        elif held == {"rows"} and self._takes_first_token(node):
            self._nodes[-1] = helper.make_node("Gather", [node.input[0], "class_rows"], [output], node.name, axis=0)
            self._state[output] = "first"
        elif held == {"grid"} and node.op_type == "Reshape":  # heads into tokens
            self._pack(output)
        elif held == {"rows"} and self._is_row_wise(node):
            self._state[output] = "rows"
        elif "first" in held and "rows" not in held:
            self._state[output] = "first"
        elif held == {"grid"}:
            self._state[output] = "grid"
        elif held:
            raise BuildError(f"node {node.name!r}, a {node.op_type}, can't leave out padding: report it")

    def _pack(self, name: str) -> None:
        """Takes a grid's tokens as rows from here on."""
        rows = self._renamed[name] = self._add("GatherND", [name, "token_places"], f"{name}_rows")
        self._state[rows] = "rows"

    def _set_apart(self, name: str) -> str:
        if name not in self._padded:
            self._padded[name] = self._add("Gather", [name, "token_rows"], f"{name}_grid", axis=0)
        return self._padded[name]

    def _is_row_wise(self, node: onnx.NodeProto) -> bool:
        if node.op_type not in _ROW_WISE:
            return False
        # More axes would be aligned with those of a batch that is no more there.
        most = 2 if node.op_type.startswith("MatMul") else 1
        others = [name for name in node.input if name not in self._state]
        return all(name in self._constants and len(self._constants[name].dims) <= most for name in others)

    def _takes_first_token(self, node: onnx.NodeProto) -> bool:
        """Whether it is `[:, :1]`."""
        if node.op_type != "Slice" or any(name not in self._constants for name in node.input[1:]):
            return False
        bounds = [numpy_helper.to_array(self._constants[name]).tolist() for name in node.input[1:]]
        return bounds == [[0], [1], [1]]  # start, end and axis

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], f"unpad_{output}", **attributes))
        return output

    def _constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        name = f"unpad_{name}"
        self._graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name
