"""Tensors that are made of a file's when they are asked for: each process of a build needs one encoder's alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Maker = tuple[tuple[int, ...], Callable[[], torch.Tensor]]


class LazyTensors(Mapping[str, "torch.Tensor"]):
    """A state dict whose tensors are made anew each time.

    Args:
        makers: by name, the shape and what makes it.
    """

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._makers[name][1]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without making it."""
        return self._makers[name][0]


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, by name."""
    if isinstance(tensors, LazyTensors):
        return {name: tensors.shape(name) for name in tensors}
    return {name: tuple(value.shape) for name, value in tensors.items()}
