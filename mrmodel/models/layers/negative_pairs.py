"""Every sample once more, with the sentence of the next one (baselines.md, section 1.5)."""

from __future__ import annotations

import torch
from torch import Tensor


def next_sample(rows: Tensor) -> Tensor:
    """Row i becomes row i + 1, the last one row 0."""
    return rows.roll(-1, 0)


def with_next_sample(rows: Tensor) -> Tensor:
    """(B, ...) -> (2B, ...): each sample's own rows, then the next sample's."""
    return torch.cat((rows, next_sample(rows)))
