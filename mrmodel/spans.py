"""1-D spans: conversion, IoU, generalised IoU. Pure functions on tensors.

All arithmetic is float32, regardless of autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-8


def cxw_to_xx(spans_cxw: Tensor) -> Tensor:
    """(..., 2) (centre, width) -> (start, end)."""
    centre, width = spans_cxw.float().unbind(-1)
    half = 0.5 * width
    return torch.stack((centre - half, centre + half), dim=-1)


def xx_to_cxw(spans_xx: Tensor) -> Tensor:
    """(..., 2) (start, end) -> (centre, width)."""
    start, end = spans_xx.float().unbind(-1)
    return torch.stack((0.5 * (start + end), end - start), dim=-1)


def aligned_iou(first_xx: Tensor, second_xx: Tensor) -> Tensor:
    """IoU of span i with span i: (..., 2) and (..., 2) -> (...); two empty spans give 0."""
    shared, total = _shared_and_total(first_xx, second_xx)
    intersection = shared.clamp(min=0)
    return intersection / (total - intersection).clamp(min=EPS)


def aligned_giou(first_xx: Tensor, second_xx: Tensor) -> Tensor:
    """Generalised IoU of span i with span i, in [-1, 1] (Rezatofighi et al. 2019, in 1-D)."""
    return aligned_iou_and_giou(first_xx, second_xx)[1]


def aligned_iou_and_giou(first_xx: Tensor, second_xx: Tensor) -> tuple[Tensor, Tensor]:
    """`aligned_iou` and `aligned_giou` of the same spans.

    gIoU is IoU minus the fraction of the convex hull (first start to last end) that is the gap
    between the two spans.
    """
    shared, total = _shared_and_total(first_xx, second_xx)
    intersection = shared.clamp(min=0)
    iou = intersection / (total - intersection).clamp(min=EPS)
    gap, stretch = intersection - shared, total - shared
    return iou, iou - gap / stretch.clamp(min=EPS)


def inverse_sigmoid(values: Tensor) -> Tensor:
    """log(x / (1 - x)) with both parts clamped to at least 0.001, so it stays within +-6.91."""
    values = values.float().clamp(0.0, 1.0)
    return (values.clamp(min=1e-3) / (1.0 - values).clamp(min=1e-3)).log()


def _shared_and_total(first_xx: Tensor, second_xx: Tensor) -> tuple[Tensor, Tensor]:
    """Overlap of two spans (minus the gap if they do not overlap), and the sum of both widths."""
    first_start, first_end = first_xx.float().unbind(-1)
    second_start, second_end = second_xx.float().unbind(-1)
    shared = first_end.minimum(second_end) - first_start.maximum(second_start)
    return shared, (first_end - first_start) + (second_end - second_start)
