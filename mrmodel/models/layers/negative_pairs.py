"""Every sample once more, with the sentence of another one (baselines.md, section 1.5)."""

from __future__ import annotations

import torch
from torch import Tensor


def next_sample(rows: Tensor) -> Tensor:
    """Row i becomes row i + 1, the last one row 0."""
    return rows.roll(-1, 0)


def with_next_sample(rows: Tensor) -> Tensor:
    """(B, ...) -> (2B, ...): each sample's own rows, then the next sample's."""
    return torch.cat((rows, next_sample(rows)))


def with_negatives(rows: Tensor, negative: Tensor | None) -> Tensor:
    """(B, ...) and B row numbers -> (2B, ...): the rows, then those of the negative sentences."""
    return rows if negative is None else torch.cat((rows, rows[negative]))
