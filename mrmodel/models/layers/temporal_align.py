"""Temporal align: clips read at evenly spaced points of a span (G-TAD; Xu et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from mrmodel.spans import cxw_to_xx


def sample_points(spans_cxw: Tensor, clips: Tensor, samples: int, expand: float = 0.0) -> Tensor:
    """Where a span is sampled, in units of clips; clip i has its middle at i.

    Point j is at the fraction (j + 1/2) / samples of the span, held between the middles of the
    sample's first and last clip.

    Args:
        spans_cxw: (B, P, 2).
        clips: (B,) valid clips.
        samples: points of a span.
        expand: share of its width by which a span is widened at each end first.

    Returns:
        (B, P, samples) float32.
    """
    centre, width = spans_cxw.float().unbind(-1)
    start, end = cxw_to_xx(torch.stack((centre, (1.0 + 2.0 * expand) * width), -1)).unbind(-1)
    fraction = (torch.arange(samples, device=spans_cxw.device) + 0.5) / samples
    points = start.unsqueeze(-1) + fraction * (end - start).unsqueeze(-1)
    clips = clips.float()[:, None, None]
    return (points * clips - 0.5).clamp(min=0.0).minimum(clips - 1.0)


def hat_weights(points: Tensor, length: int) -> Tensor:
    """Linear interpolation as a matrix: row j weighs the two clips around point j.

    Args:
        points: (B, P, S) in units of clips, inside the valid clips.
        length: clips L, padding included.

    Returns:
        (B, P, S, L) float32, rows with sum 1; padding has weight 0.
    """
    middles = torch.arange(length, device=points.device, dtype=torch.float32)
    return (1.0 - (points.unsqueeze(-1) - middles).abs()).relu()
