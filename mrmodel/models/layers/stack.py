"""A list of equal layers that keeps their type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from torch import nn

LayerType = TypeVar("LayerType", bound=nn.Module)


class Stack(nn.ModuleList, Generic[LayerType]):
    """`nn.ModuleList` whose iteration gives the layer's own class."""

    def __iter__(self) -> Iterator[LayerType]:
        return cast("Iterator[LayerType]", super().__iter__())
