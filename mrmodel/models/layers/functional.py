"""Helpers shared by the models: attention masks, float32 arithmetic, initial weights, stacks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn


def key_mask(mask: Tensor) -> Tensor | None:
    """(B, T) valid keys -> (B, 1, 1, T) for `attend`; None when nothing is padded.

    The shortcut is taken on CPU only: on a GPU reading the mask would force a synchronisation.
    """
    if mask.device.type == "cpu" and bool(mask.all()):
        return None
    return mask[:, None, None, :]


def cross_mask(readers: Tensor, keys: Tensor, heads: int, legacy_samples: int) -> Tensor | None:
    """Cross-attention mask.

    Args:
        readers: (B, S) bool.
        keys: (B, T) bool.
        heads: attention heads.
        legacy_samples: batch size for `legacy_tiled_mask`; B may be a multiple of it (several
            batches stacked). 0 = mask padding only.

    Returns:
        As `key_mask`, or (B, heads, S, T).
    """
    if not legacy_samples:
        return key_mask(keys)
    batches = zip(
        torch.split(readers, legacy_samples), torch.split(keys, legacy_samples), strict=True
    )
    return torch.cat([legacy_tiled_mask(reader, key, heads) for reader, key in batches])


def legacy_tiled_mask(readers: Tensor, keys: Tensor, heads: int) -> Tensor:
    """The published cross-modal mask, in which the padding of other samples hides tokens.

    The extra mask (reader and key both padding) is laid out head by head but read sample by
    sample: row ``b * heads + h`` gets the mask of sample ``(b * heads + h) mod B``. For parity with
    published numbers only.

    Args:
        readers: (B, S) bool.
        keys: (B, T) bool.
        heads: attention heads.

    Returns:
        (B, heads, S, T) bool, True = may be read.
    """
    hidden = ~readers[:, :, None] & ~keys[:, None, :]
    misread = hidden.repeat(heads, 1, 1).view(len(hidden), heads, *hidden.shape[1:])
    return keys[:, None, None, :] & ~misread


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which autocast is off, so float32 products stay float32."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def xavier_matrices(*modules: nn.Module) -> None:
    """Xavier-uniform for every parameter of `modules` with more than one axis.

    As published this includes the last layer of the span refinement, which DAB-DETR sets to zero.
    Biases, norms and slopes keep what their constructors gave them.
    """
    for module in modules:
        for parameter in module.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)


LayerType = TypeVar("LayerType", bound=nn.Module)


class Stack(nn.ModuleList, Generic[LayerType]):
    """`nn.ModuleList` that is typed by the class of its layers."""

    def __iter__(self) -> Iterator[LayerType]:
        return cast("Iterator[LayerType]", super().__iter__())


def copies_of(layer: LayerType, count: int) -> Stack[LayerType]:
    """A stack of `count` layers that start with equal weights."""
    return Stack([layer, *(copy.deepcopy(layer) for _ in range(count - 1))])


def next_sample(rows: Tensor) -> Tensor:
    """Row i becomes row i + 1, the last one row 0."""
    return rows.roll(-1, 0)


def with_next_sample(rows: Tensor) -> Tensor:
    """(B, ...) -> (2B, ...): each sample's own rows, then the next sample's."""
    return torch.cat((rows, next_sample(rows)))


def with_negatives(rows: Tensor, negative: Tensor | None) -> Tensor:
    """(B, ...) and B indices -> (2B, ...): the rows, then those of the negative sentences."""
    return rows if negative is None else torch.cat((rows, rows[negative]))
