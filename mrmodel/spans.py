"""Spans on a line: conversion, IoU, generalised IoU. Pure functions on tensors.

All arithmetic is float32 whatever the autocast type (sg_detr.md, section 1.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-8


def cxw_to_xx(spans_cxw: Tensor) -> Tensor:
    """(..., 2) (centre, width) -> (start, end)."""
    centre, width = spans_cxw.float().unbind(-1)
    return torch.stack((centre - 0.5 * width, centre + 0.5 * width), dim=-1)


def xx_to_cxw(spans_xx: Tensor) -> Tensor:
    """(..., 2) (start, end) -> (centre, width)."""
    start, end = spans_xx.float().unbind(-1)
    return torch.stack((0.5 * (start + end), end - start), dim=-1)


def aligned_iou(first_xx: Tensor, second_xx: Tensor) -> Tensor:
    """IoU of span i with span i: (..., 2) and (..., 2) -> (...); two empty spans give 0."""
    intersection, union, _ = _overlap(first_xx, second_xx)
    return intersection / union.clamp(min=EPS)


def aligned_giou(first_xx: Tensor, second_xx: Tensor) -> Tensor:
    """Generalised IoU of span i with span i, in [-1, 1] (Rezatofighi et al. 2019, on a line)."""
    intersection, union, hull = _overlap(first_xx, second_xx)
    return intersection / union.clamp(min=EPS) - (hull - union) / hull.clamp(min=EPS)


def pairwise_iou(first_xx: Tensor, second_xx: Tensor) -> Tensor:
    """IoU of every pair: (n, 2) and (m, 2) -> (n, m)."""
    return aligned_iou(first_xx[:, None], second_xx[None, :])


def pairwise_giou(first_xx: Tensor, second_xx: Tensor) -> Tensor:
    """Generalised IoU of every pair: (n, 2) and (m, 2) -> (n, m)."""
    return aligned_giou(first_xx[:, None], second_xx[None, :])


def inverse_sigmoid(values: Tensor, eps: float = 1e-3) -> Tensor:
    """log(x / (1 - x)) with both parts held above `eps`, so that references stay within +-6.91."""
    values = values.float().clamp(0.0, 1.0)
    return (values.clamp(min=eps) / (1.0 - values).clamp(min=eps)).log()


def _overlap(first_xx: Tensor, second_xx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first_start, first_end = first_xx.float().unbind(-1)
    second_start, second_end = second_xx.float().unbind(-1)
    intersection = (first_end.minimum(second_end) - first_start.maximum(second_start)).clamp(min=0)
    union = (first_end - first_start) + (second_end - second_start) - intersection
    hull = first_end.maximum(second_end) - first_start.minimum(second_start)
    return intersection, union, hull
