"""Dropout of units and of whole branches, optimised for CPU training.

torch draws one Mersenne-Twister number per element, which costs up to a fifth of a training step.
Here 64 elements are decided at once: for each binary digit of the drop probability a 64-bit random
word is or-ed (digit 1) or and-ed (digit 0) into a word of decisions. Each of its bits is then 1
with exactly that probability, independently of the others. The probability is rounded to a
multiple of 2**-13, that is by at most 6.2e-5.

The words come from numpy's SFC64, seeded from torch's global generator, so ``torch.manual_seed``
still fixes every bit. Other devices use torch's own dropout.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

BITS = 13

Bytes = NDArray[np.uint8]
Drop = Literal["path", "unit"] | float

# Row b holds the keep mask of the eight elements whose drop bits are the bits of byte b.
_KEEP = 1.0 - np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)


class Dropout(nn.Module):
    """Zero each element with probability `p` in training; scale the rest by 1 / (1 - p)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return dropout(values, self.p if self.training else 0.0)


class DropPath(nn.Module):
    """Skip a residual branch for a whole sample with probability `p` in training.

    Stochastic depth (Huang et al. 2016): the remaining branches are scaled by 1 / (1 - p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        if not self.training or self.p == 0.0:
            return values
        scale = kept_paths(len(values), self.p) / (1.0 - self.p)
        scale = scale.view(-1, *[1] * (values.dim() - 1))
        return values * scale.to(values.device, values.dtype, non_blocking=True)


BranchDropout = Dropout | DropPath


def branch_dropout(p: float, drop: Drop) -> BranchDropout:
    """Dropout of a residual branch: ``unit`` drops its elements, ``path`` whole samples.

    A number drops whole samples with that probability instead of `p`.
    """
    if isinstance(drop, float):
        return DropPath(drop)
    return DropPath(p) if drop == "path" else Dropout(p)


def kept_paths(samples: int, p: float) -> Tensor:
    """(samples,) 1 for a kept branch, 0 for a dropped one.

    Drawn on the CPU, so that a seed gives the same result on every device.
    """
    return (torch.rand(samples) >= p).float()


def dropout(values: Tensor, p: float) -> Tensor:
    """`values` with each element dropped with probability `p`."""
    if p == 0.0:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, p)
    dropped: Tensor = _CpuDropout.apply(  # type: ignore[no-untyped-call]
        values, DropSource(p).draw(values.numel()), p
    )
    return dropped


class DropSource:
    """Stream of drop decisions, one bit per element, seeded from torch's global generator."""

    def __init__(self, p: float) -> None:
        self._generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
        numerator = min(round(p * 2**BITS), 2**BITS - 1)
        # Start at the lowest set bit: before it every word would be and-ed to zero.
        digits = bin(numerator)[2:].rjust(BITS, "0").rstrip("0")
        self._digits = [digit == "1" for digit in reversed(digits)]

    def draw(self, count: int) -> Bytes:
        """Decisions for the next `count` elements, eight per byte, 1 = drop."""
        words = -(-count // 64)
        decided = np.zeros(words, dtype=np.uint64)
        for digit in self._digits:
            random = self._generator.random_raw(words)
            (np.bitwise_or if digit else np.bitwise_and)(decided, random, out=decided)
        return decided.view(np.uint8)


def keep_mask(dropped: Bytes, count: int, buffer: Tensor) -> Tensor:
    """Write the first `count` decisions as 1 (keep) or 0 into `buffer`.

    The buffer is float32, contiguous, and at least as long as the whole words of `dropped`.
    """
    rows = buffer[: 8 * len(dropped)].numpy().reshape(-1, 8)
    np.take(_KEEP, dropped, axis=0, out=rows, mode="clip")
    return buffer[:count]


class _CpuDropout(torch.autograd.Function):
    """Saves one bit per element for the backward pass instead of a float mask."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dropped: Bytes, p: float) -> Tensor:
        ctx.dropped, ctx.p = dropped, p
        return _masked(values, dropped, p)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _masked(gradients[0], ctx.dropped, ctx.p), None, None


def _masked(values: Tensor, dropped: Bytes, p: float) -> Tensor:
    mask = keep_mask(dropped, values.numel(), torch.empty(8 * len(dropped)))
    return values * mask.view(values.shape).mul_(1.0 / (1.0 - p)).to(values.dtype)
