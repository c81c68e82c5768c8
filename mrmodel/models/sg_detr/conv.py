"""Convolutions over three clips, written as matrix products of rows.

A table of rows holds stretches of time, each parted from the next by rows of zeros; neighbours in
time are neighbours in the table. The three taps of a convolution are then three shifted views of
one table: nothing is copied, and all stretches of all samples go through one product together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers import cpu_kernels

TAPS = 3
PIECE = 1 << 18  # elements: 1 MiB, so that a piece stays in the cache between its steps


class ConvNorm(nn.Module):
    """Convolution -> LayerNorm over channels -> PReLU (if `active`) -> zeros where nothing is.

    Args:
        hidden: channels d.
        stride: rows from one output to the next.
        active: with PReLU.
    """

    def __init__(self, hidden: int, stride: int, active: bool) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(TAPS * hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.activation = nn.PReLU() if active else None

    def forward(self, rows: Tensor, keep: Tensor) -> Tensor:
        """Rows (R, d), of which the first and the last are zeros, to rows of the same kind.

        Args:
            rows: (R, d).
            keep: (R', 1), R' = (R - 3) // stride + 1, 1 where the output exists and 0 elsewhere.

        Returns:
            (R' + 2, d); row 1 + j was made from the rows from ``stride * j`` on.
        """
        slope = None if self.activation is None else self.activation.weight
        norm = self.norm
        # No dropout in here: the fused form is the same function in eval mode.
        if cpu_kernels.usable(rows, training=True):
            output: Tensor = _ConvNorm.apply(  # type: ignore[no-untyped-call]
                rows, keep, self.linear.weight, self.linear.bias, norm.weight, norm.bias,
                norm.eps, slope, self.stride,
            )  # fmt: skip
            return output
        taps = torch.cat(_taps(rows, slice(0, len(keep)), self.stride), dim=1)
        normed = norm(self.linear(taps))
        active = normed if self.activation is None else self.activation(normed)
        return F.pad(active * keep, (0, 0, 1, 1))


class NarrowConv(nn.Module):
    """Convolution to a few channels: (R, d) -> (R - 2, `outputs`)."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(TAPS * hidden, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        """Row j is made from the rows j, j + 1 and j + 2.

        The product comes first and the shift after it, since the outputs are smaller to add up.
        """
        products = F.linear(rows, self.linear.weight.view(-1, rows.shape[1]))
        first, second, third = products.view(len(rows), -1, TAPS).unbind(2)
        output: Tensor = first[:-2] + second[1:-1] + third[2:] + self.linear.bias
        return output


class _ConvNorm(torch.autograd.Function):
    """`ConvNorm` piece by piece, with its gradients written out."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor,
        beta: Tensor, eps: float, slope: Tensor | None, stride: int,
    ) -> Tensor:  # fmt: skip
        hidden = rows.new_empty(len(keep), len(bias))
        output = rows.new_empty(len(keep) + 2, len(bias))
        output[0], output[-1] = 0.0, 0.0
        kernels = weight.t().chunk(TAPS)
        for piece in _pieces(hidden):
            taps = _taps(rows, piece, stride)
            torch.addmm(bias, taps[0], kernels[0], out=hidden[piece])
            for tap, kernel in zip(taps[1:], kernels[1:], strict=True):
                hidden[piece].addmm_(tap, kernel)
            normed = torch.native_layer_norm(hidden[piece], gamma.shape, gamma, beta, eps)[0]
            if slope is not None:
                torch.ops.aten.leaky_relu_(normed, float(slope.detach()))
            torch.mul(normed, keep[piece], out=output[1:-1][piece])
        ctx.save_for_backward(rows, keep, weight, gamma, beta, slope, hidden)
        ctx.eps, ctx.stride = eps, stride
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, keep, weight, gamma, beta, slope, hidden = ctx.saved_tensors
        incoming = gradients[0][1:-1]
        d_rows, d_weight = torch.zeros_like(rows), torch.zeros_like(weight)
        d_bias, d_gamma, d_beta = (torch.zeros_like(gamma) for _ in range(3))
        d_slope = None if slope is None else torch.zeros_like(slope)
        for piece in _pieces(hidden):
            source, gradient = hidden[piece], incoming[piece] * keep[piece]
            normed, mean, rstd = torch.native_layer_norm(source, gamma.shape, gamma, beta, ctx.eps)
            if d_slope is not None:
                d_slope += torch.dot(gradient.view(-1), normed.clamp(max=0.0).view(-1))
                gradient = torch.ops.aten.leaky_relu_backward(
                    gradient, normed, float(slope.detach()), False
                )
            d_hidden, d_gain, d_offset = torch.ops.aten.native_layer_norm_backward(
                gradient, source, gamma.shape, mean, rstd, gamma, beta, [True, True, True]
            )
            d_gamma += d_gain
            d_beta += d_offset
            d_bias += d_hidden.sum(0)
            parts = zip(
                _taps(rows, piece, ctx.stride), _taps(d_rows, piece, ctx.stride),
                weight.chunk(TAPS, 1), d_weight.chunk(TAPS, 1), strict=True,
            )  # fmt: skip
            for tap, d_tap, kernel, d_kernel in parts:
                d_kernel.addmm_(d_hidden.t(), tap)
                d_tap.addmm_(d_hidden, kernel)
        return d_rows, None, d_weight, d_bias, d_gamma, d_beta, None, d_slope, None


def _taps(rows: Tensor, outputs: slice, stride: int) -> list[Tensor]:
    """The views of `rows` that the three taps of these outputs read."""
    first, last = stride * outputs.start, stride * (outputs.stop - 1)
    return [rows[first + tap : last + tap + 1 : stride] for tap in range(TAPS)]


def _pieces(table: Tensor) -> Iterator[slice]:
    size = max(PIECE // table.shape[1], 1)
    for start in range(0, len(table), size):
        yield slice(start, min(start + size, len(table)))
