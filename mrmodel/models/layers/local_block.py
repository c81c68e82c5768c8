"""Convolutions over neighbouring clips (UVCOM; sa_detr.md, section 2.7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 3


class LocalBlock(nn.Module):
    """Three convolutions with kernels of 1, 3 and 1 clips, no activation, added to their input.

    They are written as matrix products of rows; the middle one reads three shifted views.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, hidden)
        self.middle = nn.Linear(TAPS * hidden, hidden)
        self.last = nn.Linear(hidden, hidden)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, L, d), (B, L) -> (B, L, d); neighbours beyond the valid rows count as zeros."""
        keep = mask.unsqueeze(-1)
        first = F.pad(self.first(rows).masked_fill(~keep, 0.0), (0, 0, 1, 1))
        taps = torch.cat((first[:, :-2], first[:, 1:-1], first[:, 2:]), dim=-1)
        changed: Tensor = rows + self.last(self.middle(taps))
        return changed
