"""Gaussian masks of spans, and attention modulated by them (SA-DETR eqs 5, 6; CNM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mrmodel.models.sa_detr.settings import GaussMode

FLOOR = 1e-10  # the mask of a span far outside the clips underflows to 0
LOWEST_EXPONENT = -80.0


def gaussian_mask(
    spans_cxw: Tensor, clips: Tensor, length: int, alpha: float, offset: float = 0.5
) -> Tensor:
    """exp(-alpha (x_i - c)^2 / max(w, 1 / Lv)^2) with x_i = (i + offset) / Lv.

    Args:
        spans_cxw: (B, P, 2).
        clips: (B,) valid clips Lv.
        length: clips L, padding included.
        alpha: rate of decay; the mask is exp(-alpha / 4) at the ends of the span.
        offset: 1/2 for the middles of the clips, 1 for their ends.

    Returns:
        (B, P, L) float32 in (0, 1].
    """
    centre, width = spans_cxw.float().unsqueeze(2).unbind(-1)
    clips = clips.float()[:, None, None]
    place = (torch.arange(length, device=spans_cxw.device) + offset) / clips
    distance = (place - centre) / width.maximum(1.0 / clips)
    return (-alpha * distance.square()).clamp(min=LOWEST_EXPONENT).exp()


def gaussian_weights(
    mode: GaussMode, gauss: Tensor | None, allowed: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """The function from attention scores to weights, for `attend_by`.

    ``mul_logits`` is softmax(score x mask), as in the paper: scores outside the span become 0, so
    those clips outweigh clips inside with negative scores. ``add_log`` is softmax(score + log
    mask): the weights times the mask, renormalised.

    Args:
        mode: how the mask is applied; ``none``: not at all.
        gauss: (B, P, L), see `gaussian_mask`; ignored with ``none``.
        allowed: as in `attend`; padding is masked after the modulation.
    """

    def weigh(scores: Tensor) -> Tensor:
        if gauss is not None and mode == "mul_logits":
            scores = scores * gauss.unsqueeze(1)
        elif gauss is not None and mode == "add_log":
            scores = scores + (gauss + FLOOR).log().unsqueeze(1)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        return scores.softmax(-1)

    return weigh
