"""Convolutions over three positions, written as matrix products of rows.

A table of rows holds stretches of time, each parted from the next by rows of zeros; neighbours in
time are neighbours in the table. The three taps of a convolution are then three shifted views of
one table: nothing is copied, and all stretches of all samples go through one product together.

Without gradients two neighbouring outputs share four products instead of six: the minimal filtering
F(2, 3) of Winograd, "Arithmetic complexity of computations", 1980.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from mrmodel.models.layers import cpu_kernels

TAPS = 3
CHUNK = 1 << 18  # elements: 1 MiB, so that a chunk stays in the cache between its steps
FIRST_WEIGHTS = 0.01  # standard deviation


class ConvNorm(nn.Module):
    """Convolution without bias -> LayerNorm over channels -> ReLU -> zeros where nothing is."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = first_weights(hidden, hidden, TAPS)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, rows: Tensor, keep: Tensor) -> Tensor:
        """Rows (R, d), of which the first and the last are zeros, to rows of the same kind.

        Args:
            rows: (R, d).
            keep: (R - 2, 1), 1 where the output exists and 0 elsewhere.

        Returns:
            (R, d); row 1 + j was made from the rows j, j + 1 and j + 2.
        """
        norm = self.norm
        if cpu_kernels.usable_for_inference(rows, self.training):
            return _at_rest(rows, keep, _kernels_at_rest(self.weight), norm)
        weight = _by_tap(self.weight)
        # No dropout in here: the fused form is the same function in eval mode.
        if cpu_kernels.usable(rows, training=True):
            output: Tensor = _ConvNorm.apply(  # type: ignore[no-untyped-call]
                rows, keep, weight, norm.weight, norm.bias, norm.eps
            )
            return output
        taps = torch.cat(_taps(rows, slice(0, len(keep))), dim=1)
        return F.pad(norm(F.linear(taps, weight)).relu() * keep, (0, 0, 1, 1))


class NarrowConv(nn.Module):
    """Convolution to a few channels: (R, d) -> (R - 2, `outputs`)."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__()
        self.weight = first_weights(outputs, hidden, TAPS)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, rows: Tensor) -> Tensor:
        """Row j is made from the rows j, j + 1 and j + 2.

        The product comes first and the shift after it, since the outputs are smaller to add up.
        """
        products = F.linear(rows, self.weight.permute(2, 0, 1).flatten(0, 1))
        first, second, third = products.chunk(TAPS, dim=1)
        return first[:-2] + second[1:-1] + third[2:] + self.bias


def first_weights(*shape: int) -> nn.Parameter:
    """Weights of a convolution (outputs, inputs, taps) before training."""
    return nn.Parameter(torch.randn(shape) * FIRST_WEIGHTS)


def _by_tap(weight: Tensor) -> Tensor:
    """(outputs, inputs, taps) -> (outputs, taps inputs)."""
    return weight.transpose(1, 2).flatten(1)


class _ConvNorm(torch.autograd.Function):
    """`ConvNorm` in chunks, with its gradients written out."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, keep: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor,
        eps: float,
    ) -> Tensor:  # fmt: skip
        hidden = rows.new_empty(len(keep), len(weight))
        output = rows.new_empty(len(rows), len(weight))
        output[0], output[-1] = 0.0, 0.0
        kernels = weight.t().chunk(TAPS)
        for chunk in _chunks(hidden):
            taps = _taps(rows, chunk)
            torch.mm(taps[0], kernels[0], out=hidden[chunk])
            for tap, kernel in zip(taps[1:], kernels[1:], strict=True):
                hidden[chunk].addmm_(tap, kernel)
            normed = torch.native_layer_norm(hidden[chunk], gamma.shape, gamma, beta, eps)[0]
            torch.mul(normed.relu_(), keep[chunk], out=output[1:-1][chunk])
        ctx.save_for_backward(rows, keep, weight, gamma, beta, hidden)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, keep, weight, gamma, beta, hidden = ctx.saved_tensors
        incoming = gradients[0][1:-1]
        d_rows, d_weight = torch.zeros_like(rows), torch.zeros_like(weight)
        d_gamma, d_beta = torch.zeros_like(gamma), torch.zeros_like(beta)
        for chunk in _chunks(hidden):
            source, gradient = hidden[chunk], incoming[chunk] * keep[chunk]
            normed, mean, rstd = torch.native_layer_norm(source, gamma.shape, gamma, beta, ctx.eps)
            gradient = torch.ops.aten.threshold_backward(gradient, normed, 0.0)
            d_hidden, d_gain, d_offset = torch.ops.aten.native_layer_norm_backward(
                gradient, source, gamma.shape, mean, rstd, gamma, beta, [True, True, True]
            )
            d_gamma += d_gain
            d_beta += d_offset
            parts = zip(
                _taps(rows, chunk), _taps(d_rows, chunk),
                weight.chunk(TAPS, 1), d_weight.chunk(TAPS, 1), strict=True,
            )  # fmt: skip
            for tap, d_tap, kernel, d_kernel in parts:
                d_kernel.addmm_(d_hidden.t(), tap)
                d_tap.addmm_(d_hidden, kernel)
        return d_rows, None, d_weight, d_gamma, d_beta, None


class _KernelsAtRest(NamedTuple):
    """Of `_at_rest`, (d, d) each: the outer taps, and two mixtures of all three."""

    first: Tensor
    total: Tensor
    alternating: Tensor
    third: Tensor


# Weight -> its version and place in memory, and the kernels made of it then. Making them takes
# longer than a product with the rows of one video.
_AT_REST = WeakTensorKeyDictionary()


def _kernels_at_rest(weight: Tensor) -> _KernelsAtRest:
    """The kernels of (outputs, inputs, taps), made again only where the weight has changed."""
    if weight.is_inference():  # Such a tensor has no version.
        return _make_kernels(weight)
    state = (weight._version, weight.data_ptr())
    held: tuple[tuple[int, int], _KernelsAtRest] | None = _AT_REST.get(weight)  # type: ignore[no-untyped-call]
    if held is None or held[0] != state:
        _AT_REST[weight] = held = (state, _make_kernels(weight))
    return held[1]


def _make_kernels(weight: Tensor) -> _KernelsAtRest:
    first, second, third = (part.contiguous() for part in _by_tap(weight).t().chunk(TAPS))
    both = 0.5 * (first + third)
    return _KernelsAtRest(first, both + 0.5 * second, both - 0.5 * second, third)


def _at_rest(rows: Tensor, keep: Tensor, kernels: _KernelsAtRest, norm: nn.LayerNorm) -> Tensor:
    """`ConvNorm` without gradients, two outputs at a time."""
    first, total, alternating, third = kernels
    output = rows.new_empty(len(rows), first.shape[1])
    output[0], output[-1] = 0.0, 0.0
    inner = output[1:-1]
    hidden: Tensor | None = None
    for chunk in _chunks(inner):
        ahead, here, after, beyond = _quadruples(rows, chunk)
        both = torch.mm(here + after, total)
        apart = torch.mm(after - here, alternating)
        # The first chunk is the longest; its memory stays in the cache for the others.
        hidden = torch.empty_like(inner[chunk]) if hidden is None else hidden
        part = hidden[: len(keep[chunk])]
        even, odd = part[::2], part[1::2]
        # The last pair of an odd number of outputs has no second one.
        torch.add(both, apart, out=even)
        torch.sub(both[: len(odd)], apart[: len(odd)], out=odd)
        even.addmm_(ahead - after, first)
        odd.addmm_(beyond - here[: len(odd)], third)
        normed = F.layer_norm(part, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        torch.clamp_min(normed, 0.0, out=inner[chunk])
    inner[keep.squeeze(1) == 0.0] = 0.0
    return output


def _quadruples(rows: Tensor, outputs: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views of the four rows that each pair of the `outputs` (n) reads: four of (n / 2, d).

    The fourth is one row shorter where n is odd.
    """
    pairs, stop = (outputs.stop - outputs.start + 1) // 2, outputs.stop + TAPS - 1
    first, second, third, fourth = (
        rows[outputs.start + i : stop : 2][:pairs] for i in range(TAPS + 1)
    )
    return first, second, third, fourth


def _taps(rows: Tensor, outputs: slice) -> list[Tensor]:
    """Views of the rows that each of the `outputs` (n) reads: three of (n, d)."""
    return [rows[outputs.start + tap : outputs.stop + tap] for tap in range(TAPS)]


def _chunks(hidden: Tensor) -> Iterator[slice]:
    rows = max(2, CHUNK // hidden.shape[1] // 2 * 2)  # even, for the pairs of outputs
    count = len(hidden)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))
