"""Convolutions over neighbouring clips (UVCOM; docs/models/sa_detr.md, section 2.7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

TAPS = 3


class LocalBlock(nn.Module):
    """Residual block of three convolutions with kernel sizes 1, 3 and 1, without activation.

    Implemented as matrix products; the middle one uses three shifted views.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, hidden)
        self.middle = nn.Linear(TAPS * hidden, hidden)
        self.last = nn.Linear(hidden, hidden)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, L, d), (B, L) -> (B, L, d); neighbours outside the valid rows are zeros."""
        length, hidden = rows.shape[1:]
        first = self.first(rows).masked_fill(~mask.unsqueeze(-1), 0.0)
        # All samples in one table, each with a row of zeros before and after it: no copies.
        table = F.pad(first, (0, 0, 1, 1)).flatten(0, 1)
        count = len(table) - TAPS + 1
        kernels = self.middle.weight.chunk(TAPS, dim=1)
        middle: Tensor = self.middle.bias
        for tap, kernel in enumerate(kernels):
            middle = middle + F.linear(table[tap : tap + count], kernel)
        # The two outputs between samples mix neighbouring samples and are cut off.
        changed = F.pad(self.last(middle), (0, 0, 0, TAPS - 1)).view(len(rows), -1, hidden)
        return rows + changed[:, :length]
