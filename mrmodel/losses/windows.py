"""True windows as padded tensors, for batched losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.spans import aligned_iou, cxw_to_xx
from mrmodel.types import Targets


@dataclass(frozen=True, slots=True)
class PaddedWindows:
    """True windows of a batch, one row per sample.

    Attributes:
        spans_cxw: (B, Gmax, 2) float32, fractions of T; (0.5, 0.5) at padding. Gmax may be 0.
        valid: (B, Gmax) bool; a sample's windows come first.
    """

    spans_cxw: Tensor
    valid: Tensor


def pad_windows(targets: Targets) -> PaddedWindows:
    """The windows of `targets`, sample by sample in their order."""
    device = targets.spans_cxw.device
    counts = torch.tensor(targets.span_counts, dtype=torch.int64)
    longest = max(targets.span_counts, default=0)
    valid = (torch.arange(longest) < counts[:, None]).to(device, non_blocking=True)
    spans = targets.spans_cxw.new_full((len(counts), longest, 2), 0.5)
    # Not `spans[valid] = ...`, which synchronises with the device.
    spans.masked_scatter_(valid.unsqueeze(2), targets.spans_cxw)
    return PaddedWindows(spans, valid)


def own_windows(window: Tensor, windows: PaddedWindows) -> Tensor:
    """Windows (K, B, S, 2) at indices (K, B, S) within the sample; (0.5, 0.5) for index -1."""
    # An extra last row, read by index -1, also if no sample has windows.
    table = F.pad(windows.spans_cxw, (0, 0, 0, 1), value=0.5)
    return table[torch.arange(len(table), device=table.device)[:, None], window]


def best_iou(spans_cxw: Tensor, windows: PaddedWindows) -> Tensor:
    """(K, B, S, 2) -> (K, B, S) IoU with the best true window of the sample; 0 if there is none.

    No gradient.
    """
    true = cxw_to_xx(windows.spans_cxw)[:, None]
    iou = aligned_iou(cxw_to_xx(spans_cxw.detach())[..., None, :], true)
    return F.pad(iou.masked_fill(~windows.valid[:, None], 0.0), (0, 1)).amax(-1)
