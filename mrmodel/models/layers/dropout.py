"""Dropout for CPU training.

torch draws one Mersenne-Twister number for each element, which costs as much as a fifth of a
training step. Here one 64-bit number of numpy's SFC64 decides four elements. The stream is seeded
from torch's global generator, so ``torch.manual_seed`` still fixes every bit.

An element is kept when its 16 random bits are below ``round(65536 * (1 - p))``: the probability is
off by at most 2**-17 = 7.6e-6 (2**-16 for p below 2**-17). Other devices use torch's own dropout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16


class Dropout(nn.Module):
    """Zero each element with probability `p` in training; the rest is scaled by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return dropout(values, self.p if self.training else 0.0)


def dropout(values: Tensor, p: float) -> Tensor:
    """`values` with each element dropped with probability `p`."""
    if p == 0.0:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, p)
    dropped: Tensor = _CpuDropout.apply(  # type: ignore[no-untyped-call]
        values, LevelSource().draw(values.numel()), p
    )
    return dropped


class LevelSource:
    """A stream of uniform int16 numbers, seeded from torch's global generator."""

    def __init__(self) -> None:
        self._generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))

    def draw(self, count: int) -> Tensor:
        """The next `count` numbers."""
        words = self._generator.random_raw((count + 3) // 4)
        return torch.from_numpy(words.view(np.int16))[:count]


def keep_threshold(p: float) -> int:
    """An element is kept when its int16 number is below this one, itself an int16."""
    return min(round(LEVELS * (1.0 - p)), LEVELS - 1) - LEVELS // 2


class _CpuDropout(torch.autograd.Function):
    """Keeps the 16 random bits of an element for the backward pass rather than a float mask."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, levels: Tensor, p: float) -> Tensor:
        ctx.save_for_backward(levels)
        ctx.p = p
        return _masked(values, levels, p)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (levels,) = ctx.saved_tensors
        return _masked(gradients[0], levels, ctx.p), None, None


def _masked(values: Tensor, levels: Tensor, p: float) -> Tensor:
    mask = torch.lt(levels, keep_threshold(p), out=torch.empty(levels.shape, dtype=values.dtype))
    return mask.view(values.shape).mul_(values).mul_(1.0 / (1.0 - p))
