"""The file of weights beside an .onnx file, written from front to back: one tensor is in memory at a time."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

_INLINE_BYTES = 1024  # smaller tensors stay in the graph
_PAGE = 4096  # where a weight must begin for ONNX Runtime to map it from the file


class WeightsFile:
    """Takes tensors one after another.

    Args:
        path: the file to write; the .onnx file belongs into its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> WeightsFile:
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, value: npt.NDArray[Any]) -> TensorProto:
        """Writes a tensor.

        Args:
            name: in the graph.
            value: contiguous.

        Returns:
            What goes into the graph: the tensor itself if it is small, or else where in the file it is.
        """
        if value.nbytes < _INLINE_BYTES:
            return numpy_helper.from_array(value, name)
        self._file.write(b"\0" * (-self._file.tell() % _PAGE))
        tensor = TensorProto(
            name=name,
            dims=value.shape,
            data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        for key, entry in (("location", self._path.name), ("offset", self._file.tell()), ("length", value.nbytes)):
            tensor.external_data.add(key=key, value=str(entry))
        self._file.write(np.ascontiguousarray(value).data)
        return tensor
