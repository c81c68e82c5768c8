"""Convolutions over neighbouring clips (UVCOM; sa_detr.md, section 2.7)."""

from __future__ import annotations

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
        length, hidden = rows.shape[1:]
        first = self.first(rows).masked_fill(~mask.unsqueeze(-1), 0.0)
        # One table of all samples with a row of zeros before and after each: nothing is copied.
        table = F.pad(first, (0, 0, 1, 1)).flatten(0, 1)
        count = len(table) - TAPS + 1
        kernels = self.middle.weight.chunk(TAPS, dim=1)
        middle: Tensor = self.middle.bias
        for tap, kernel in enumerate(kernels):
            middle = middle + F.linear(table[tap : tap + count], kernel)
        # The two outputs between samples mix their ends, and are cut off.
        changed = F.pad(self.last(middle), (0, 0, 0, TAPS - 1)).view(len(rows), -1, hidden)
        return rows + changed[:, :length]
