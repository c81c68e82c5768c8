"""Fused CPU kernels: the arithmetic of the plain layers, computed in cache-sized chunks.

On a CPU a transformer layer spends a third of its time outside the matrix products: every dropout,
activation and norm streams whole tensors through memory. Rows (or samples) are independent there,
so these functions take a few hundred rows through all steps while they stay in the cache, keep
only what the backward pass needs, and regenerate the dropout masks from their random bits.

The gradients are written out by hand; tests compare each function with the same layers in autograd.
`usable` decides where they apply: float32 training on a CPU without autocast
(`usable_for_inference`: the same without gradients, for the functions ``*_at_rest``, which are
faster there).
Everywhere else the modules run their plain definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.models.layers.dropout import (
    BranchDropout,
    Bytes,
    DropPath,
    DropSource,
    keep_mask,
    kept_paths,
)

CHUNK = 1 << 19  # elements of the widest tensor of a chunk: 2 MiB
_LINE = 16  # floats per cache line: matrix products read aligned rows faster


def usable(tensor: Tensor, training: bool) -> bool:
    """Whether the fused functions are equivalent to the plain layers for `tensor`."""
    return (
        training
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def usable_for_inference(tensor: Tensor, training: bool) -> bool:
    """Whether the functions ``*_at_rest`` are equivalent to the plain layers for `tensor`."""
    return usable(tensor, not training) and not torch.is_grad_enabled()


def feed_forward(
    source: Tensor,
    residual: Tensor,
    layers: tuple[nn.Linear, nn.PReLU | nn.ReLU, nn.Linear],
    norm: nn.LayerNorm,
    branch: BranchDropout,
    p: float | None = None,
) -> Tensor:
    """norm(residual + Drop(W2 Drop(act(W1 source)))), (B, ..., d) each.

    Args:
        source: what the first Linear reads.
        residual: what the result is added to.
        layers: first Linear, activation, second Linear.
        norm: over the last axis.
        branch: dropout before the sum.
        p: unit dropout after the activation; None: with the probability of `branch`.
    """
    first, activation, second = layers
    slope = activation.weight if isinstance(activation, nn.PReLU) else None
    output: Tensor = _FeedForward.apply(  # type: ignore[no-untyped-call]
        _rows(source), _rows(residual), first.weight, first.bias, slope, second.weight, second.bias,
        norm.weight, norm.bias, norm.eps, branch.p if p is None else p,
        _branch_mask(branch, residual),
    )  # fmt: skip
    return output.view_as(residual)


def feed_forward_doubled(
    source: Tensor,
    layers: tuple[nn.Linear, nn.PReLU | nn.ReLU, nn.Linear],
    norm: nn.LayerNorm,
    branch: BranchDropout,
) -> Tensor:
    """norm(y + Drop(y)) of y = W2 Drop(act(W1 source)), (B, ..., d); else as `feed_forward`."""
    first, activation, second = layers
    slope = activation.weight if isinstance(activation, nn.PReLU) else None
    nothing = source.new_zeros(*source.shape[:-1], len(second.weight))
    output: Tensor = _FeedForward.apply(  # type: ignore[no-untyped-call]
        _rows(source), _rows(nothing), first.weight, first.bias, slope, second.weight, second.bias,
        norm.weight, norm.bias, norm.eps, branch.p, _Doubled(_branch_mask(branch, nothing)),
    )  # fmt: skip
    return output.view_as(nothing)


def feed_forward_at_rest(
    source: Tensor,
    residual: Tensor,
    layers: tuple[nn.Linear, nn.PReLU | nn.ReLU, nn.Linear],
    norm: nn.LayerNorm,
) -> Tensor:
    """`feed_forward` without dropout and without gradients: norm(residual + W2 act(W1 source))."""
    first, activation, second = layers
    leak = float(activation.weight) if isinstance(activation, nn.PReLU) else 0.0
    rows, added = _rows(source), _rows(residual)
    size = _size(len(first.weight))
    buffer, output = rows.new_empty(size, len(first.weight)), torch.empty_like(added)
    for _, chunk in _chunks(len(rows), size):
        hidden = buffer[: len(rows[chunk])]
        torch.addmm(first.bias, rows[chunk], first.weight.t(), out=hidden)
        change = torch.addmm(second.bias, F.leaky_relu_(hidden, leak), second.weight.t())
        change += added[chunk]
        output[chunk] = F.layer_norm(
            change, norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
    return output.view_as(residual)


def add_projected(
    source: Tensor,
    residual: Tensor,
    linear: nn.Linear,
    norm: nn.LayerNorm | None,
    branch: BranchDropout,
) -> Tensor:
    """norm(residual + Drop(W source)), (B, ..., d) each; just the sum if `norm` is None."""
    bias = linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias
    output: Tensor = _AddProjected.apply(  # type: ignore[no-untyped-call]
        _rows(source), _rows(residual), linear.weight, bias,
        None if norm is None else norm.weight, None if norm is None else norm.bias,
        0.0 if norm is None else norm.eps, _branch_mask(branch, residual),
    )  # fmt: skip
    return output.view_as(residual)


def project(source: Tensor, norm: nn.LayerNorm, linear: nn.Linear, p: float) -> Tensor:
    """W Drop(norm(source)): (..., width) -> (..., d)."""
    output: Tensor = _Project.apply(  # type: ignore[no-untyped-call]
        _rows(source), norm.weight, norm.bias, linear.weight, linear.bias, norm.eps, p
    )
    return output.view(*source.shape[:-1], -1)


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, allowed: Tensor | None, p: float
) -> Tensor:
    """As `attention.attend`, (B, S, E), (B, T, E), (B, T, V) -> (B, S, V)."""
    mixed: Tensor = _Attend.apply(  # type: ignore[no-untyped-call]
        query, key, value, heads, allowed, p
    )
    return mixed


def attend_at_rest(
    query: Tensor, key: Tensor, value: Tensor, heads: int, allowed: Tensor | None
) -> Tensor:
    """`attend` without dropout and without gradients."""
    size, length, width = query.shape
    scale = (width // heads) ** -0.5
    hidden = None if allowed is None else _additive(allowed, query.dtype)
    output = query.new_empty(size, length, value.shape[2])
    # Of one sample: its inputs and its attention weights.
    elements = heads * length * key.shape[1] + sum(t[0].numel() for t in (query, key, value))
    for _, samples in _chunks(size, _size(elements)):
        q, k, v = (_split(t[samples], heads).flatten(0, 1) for t in (query, key, value))
        scores = _scaled_product(q, k.transpose(1, 2), scale).view(-1, heads, length, key.shape[1])
        if hidden is not None:
            scores += hidden[samples] if len(hidden) == size else hidden
        _join(torch.bmm(scores.softmax(-1).flatten(0, 1), v), output[samples])
    return output


class _Masks:
    """Dropout of one fused function: draws a mask per chunk and regenerates it for backward."""

    def __init__(self, p: float) -> None:
        self.p, self.scale = p, 1.0 / (1.0 - p)
        self._source = DropSource(p) if p else None
        self._dropped: list[Bytes] = []
        self._mask, self._mask_of = torch.empty(0), -1

    def zero(self, values: Tensor, chunk: int, out: Tensor | None = None) -> Tensor:
        """Zero the dropped elements of `values`, in `out` or in place, without rescaling."""
        out = values if out is None else out
        if self.p:
            return torch.mul(values, self._of(values, chunk), out=out)
        return out if out is values else out.copy_(values)

    def add(self, residual: Tensor, values: Tensor, chunk: int, out: Tensor) -> Tensor:
        """Sum of `residual` and Drop(values), in `out`."""
        if not self.p:
            return torch.add(residual, values, out=out)
        return torch.addcmul(residual, values, self._of(values, chunk), value=self.scale, out=out)

    def _of(self, values: Tensor, chunk: int) -> Tensor:
        """1 for kept elements, 0 for dropped ones, in a buffer that the next chunk reuses."""
        if self._source is not None and chunk == len(self._dropped):
            self._dropped.append(self._source.draw(values.numel()))
        dropped = self._dropped[chunk]
        if len(self._mask) < 8 * len(dropped):
            self._mask = torch.empty(8 * len(dropped))
        if self._mask_of != chunk:
            keep_mask(dropped, values.numel(), self._mask)
            self._mask_of = chunk
        return self._mask[: values.numel()].view(values.shape)


class _PathMasks(_Masks):
    """Masks of whole branches: one decision for all rows of a sample."""

    def __init__(self, p: float, residual: Tensor) -> None:
        super().__init__(0.0)
        self.p, self.scale = p, 1.0 / (1.0 - p)
        rows = math.prod(residual.shape[1:-1])
        self._kept = kept_paths(len(residual), p).repeat_interleave(rows).unsqueeze(-1)
        self._size = 0

    def _of(self, values: Tensor, chunk: int) -> Tensor:
        if chunk == 0:
            self._size = len(values)  # all chunks but the last have this size
        return self._kept[chunk * self._size :][: len(values)]


class _Doubled(_Masks):
    """Values + Drop(values) in place of Drop(values)."""

    def __init__(self, masks: _Masks) -> None:
        super().__init__(0.0)
        self._masks, self.scale = masks, masks.scale

    def zero(self, values: Tensor, chunk: int, out: Tensor | None = None) -> Tensor:
        out = values if out is None else out
        kept = self._masks.zero(values, chunk, out=torch.empty_like(values))
        return torch.add(kept, values, alpha=1.0 / self.scale, out=out)

    def add(self, residual: Tensor, values: Tensor, chunk: int, out: Tensor) -> Tensor:
        return self._masks.add(residual, values, chunk, out).add_(values)


def _branch_mask(branch: BranchDropout, residual: Tensor) -> _Masks:
    if isinstance(branch, DropPath) and branch.p:
        return _PathMasks(branch.p, residual)
    return _Masks(branch.p)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: Tensor, residual: Tensor, w1: Tensor, b1: Tensor, slope: Tensor | None,
        w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor, eps: float, p: float, outer: _Masks,
    ) -> Tensor:  # fmt: skip
        inner = _Masks(p)
        leak = 0.0 if slope is None else float(slope.detach())
        hidden = source.new_empty(len(source), len(w1))
        size = _size(len(w1))
        active = source.new_empty(size, len(w1))
        summed, output = torch.empty_like(residual), torch.empty_like(residual)
        mean, rstd = source.new_empty(len(source), 1), source.new_empty(len(source), 1)
        for chunk, rows in _chunks(len(source), size):
            torch.addmm(b1, source[rows], w1.t(), out=hidden[rows])
            act = _activate(hidden[rows], leak, active)
            inner.zero(act, chunk)
            change = torch.addmm(b2, act, w2.t(), alpha=inner.scale)
            outer.add(residual[rows], change, chunk, out=summed[rows])
            output[rows], mean[rows], rstd[rows] = torch.native_layer_norm(
                summed[rows], gamma.shape, gamma, beta, eps
            )
        ctx.save_for_backward(source, w1, w2, gamma, beta, hidden, summed, mean, rstd)
        ctx.masks, ctx.leak, ctx.has_slope = (inner, outer), leak, slope is not None
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, w1, w2, gamma, beta, hidden, summed, mean, rstd = ctx.saved_tensors
        inner, outer = ctx.masks
        output_gradient = gradients[0].contiguous()
        d_source, d_residual = torch.empty_like(source), torch.empty_like(summed)
        d_w1, d_b1, d_w2, d_b2 = (torch.zeros_like(t) for t in (w1, hidden[0], w2, gamma))
        d_gamma, d_beta = torch.zeros_like(gamma), torch.zeros_like(beta)
        d_slope = gamma.new_zeros(1)
        size = _size(len(w1))
        active, buffer = source.new_empty(size, len(w1)), source.new_empty(size, len(w1))
        for chunk, rows in _chunks(len(source), size):
            d_sum = _norm_backward(
                output_gradient[rows], summed[rows], (mean[rows], rstd[rows]), (gamma, beta),
                (d_gamma, d_beta),
            )  # fmt: skip
            d_residual[rows] = d_sum
            d_change = outer.zero(d_sum.mul_(outer.scale), chunk)
            d_b2 += d_change.sum(0)
            d_change.mul_(inner.scale)
            act = inner.zero(_activate(hidden[rows], ctx.leak, active), chunk)
            d_w2.addmm_(d_change.t(), act)
            d_act = torch.mm(d_change, w2, out=buffer[: len(act)])
            inner.zero(d_act, chunk)
            if ctx.has_slope:
                negative = torch.clamp(hidden[rows], max=0.0, out=act)
                d_slope += torch.dot(d_act.view(-1), negative.view(-1))
            d_hidden = torch.ops.aten.leaky_relu_backward.grad_input(
                d_act, hidden[rows], ctx.leak, False, grad_input=d_act
            )
            d_b1 += d_hidden.sum(0)
            d_w1.addmm_(d_hidden.t(), source[rows])
            torch.mm(d_hidden, w1, out=d_source[rows])
        slope = d_slope if ctx.has_slope else None
        return (
            d_source, d_residual, d_w1, d_b1, slope, d_w2, d_b2, d_gamma, d_beta, None, None, None,
        )  # fmt: skip


class _AddProjected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: Tensor, residual: Tensor, weight: Tensor, bias: Tensor,
        gamma: Tensor | None, beta: Tensor | None, eps: float, masks: _Masks,
    ) -> Tensor:  # fmt: skip
        summed = torch.empty_like(residual)
        output = summed if gamma is None else torch.empty_like(residual)
        mean, rstd = source.new_empty(len(source), 1), source.new_empty(len(source), 1)
        for chunk, rows in _chunks(len(source), _size(len(weight))):
            change = torch.addmm(bias, source[rows], weight.t())
            masks.add(residual[rows], change, chunk, out=summed[rows])
            if gamma is not None:
                output[rows], mean[rows], rstd[rows] = torch.native_layer_norm(
                    summed[rows], gamma.shape, gamma, beta, eps
                )
        saved = () if gamma is None else (summed, mean, rstd, gamma, beta)
        ctx.save_for_backward(source, weight, *saved)
        ctx.masks = masks
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, weight, *norm = ctx.saved_tensors
        output_gradient = gradients[0].contiguous()
        d_source, d_residual = torch.empty_like(source), torch.empty_like(output_gradient)
        d_weight, d_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        d_norm = (torch.zeros_like(d_bias), torch.zeros_like(d_bias)) if norm else (None, None)
        for chunk, rows in _chunks(len(source), _size(len(weight))):
            d_sum = output_gradient[rows]
            if norm:
                summed, mean, rstd, gamma, beta = norm
                d_sum = _norm_backward(
                    d_sum, summed[rows], (mean[rows], rstd[rows]), (gamma, beta), d_norm
                )
            d_residual[rows] = d_sum
            d_change = ctx.masks.zero(d_sum * ctx.masks.scale, chunk)
            d_bias += d_change.sum(0)
            d_weight.addmm_(d_change.t(), source[rows])
            torch.mm(d_change, weight, out=d_source[rows])
        return d_source, d_residual, d_weight, d_bias, *d_norm, None, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, source: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor,
        eps: float, p: float,
    ) -> Tensor:  # fmt: skip
        masks = _Masks(p)
        output = source.new_empty(len(source), len(weight))
        mean, rstd = source.new_empty(len(source), 1), source.new_empty(len(source), 1)
        for chunk, rows in _chunks(len(source), _size(len(gamma))):
            normed, mean[rows], rstd[rows] = torch.native_layer_norm(
                source[rows], gamma.shape, gamma, beta, eps
            )
            masks.zero(normed, chunk)
            torch.addmm(bias, normed, weight.t(), alpha=masks.scale, out=output[rows])
        ctx.save_for_backward(source, gamma, beta, weight, mean, rstd)
        ctx.masks, ctx.eps = masks, eps
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        source, gamma, beta, weight, mean, rstd = ctx.saved_tensors
        masks, output_gradient = ctx.masks, gradients[0].contiguous()
        d_source = torch.empty_like(source) if ctx.needs_input_grad[0] else None
        aligned = _aligned(*weight.shape).copy_(weight)
        d_weight = _aligned(*weight.shape).zero_()
        d_gamma, d_beta = torch.zeros_like(gamma), torch.zeros_like(beta)
        size = _size(len(gamma))
        kept_buffer, d_buffer = _aligned(size, len(gamma)), _aligned(size, len(gamma))
        for chunk, rows in _chunks(len(source), size):
            d_output = output_gradient[rows] * masks.scale
            normed = torch.native_layer_norm(source[rows], gamma.shape, gamma, beta, ctx.eps)[0]
            kept = masks.zero(normed, chunk, out=kept_buffer[: len(normed)])
            d_weight.addmm_(d_output.t(), kept)
            d_kept = torch.mm(d_output, aligned, out=d_buffer[: len(normed)])
            d_chunk = _norm_backward(
                masks.zero(d_kept, chunk, out=normed), source[rows], (mean[rows], rstd[rows]),
                (gamma, beta), (d_gamma, d_beta), d_source is not None,
            )  # fmt: skip
            if d_source is not None:
                d_source[rows] = d_chunk
        d_bias = output_gradient.sum(0)
        return d_source, d_gamma, d_beta, d_weight.contiguous(), d_bias, None, None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, allowed: Tensor | None,
        p: float,
    ) -> Tensor:  # fmt: skip
        masks = _Masks(p)
        size, length, width = query.shape
        scale = (width // heads) ** -0.5
        hidden = None if allowed is None else _additive(allowed, query.dtype)
        weights = query.new_empty(size, heads, length, key.shape[1])
        output = query.new_empty(size, length, value.shape[2])
        query, key, value = (_split(t, heads) for t in (query, key, value))
        for chunk, samples in _chunks(size, _samples(key, weights)):
            q, k, v = (t[samples].flatten(0, 1) for t in (query, key, value))
            scores = _scaled_product(q, k.transpose(1, 2), scale).view_as(weights[samples])
            if hidden is not None:
                scores += hidden[samples] if len(hidden) == size else hidden
            weight = torch._softmax(scores, -1, False, out=weights[samples])
            kept = masks.zero(weight, chunk, out=scores).flatten(0, 1)
            _join(torch.bmm(kept, v).mul_(masks.scale), output[samples])
        ctx.save_for_backward(query, key, value, weights, output)
        ctx.masks, ctx.scale = masks, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, output = ctx.saved_tensors
        masks, heads = ctx.masks, weights.shape[1]
        d_query, d_key, d_value = (_joined_shape(t) for t in (query, key, value))
        for chunk, samples in _chunks(len(query), _samples(key, weights)):
            q, k, v = (t[samples].flatten(0, 1) for t in (query, key, value))
            d_output = gradients[0][samples]
            # The softmax subtracts the mean gradient of a row, which is <output, its gradient>.
            products = (d_output * output[samples]).view(*d_output.shape[:2], heads, -1)
            mean = products.sum(-1).transpose(1, 2).reshape(len(q), -1, 1)
            d_mixed = _split(d_output, heads).flatten(0, 1).mul_(masks.scale)
            weight = weights[samples].flatten(0, 1)
            kept = masks.zero(weight, chunk, out=torch.empty_like(weight))
            _join(torch.bmm(kept.transpose(1, 2), d_mixed), d_value[samples])
            d_kept = torch.bmm(d_mixed, v.transpose(1, 2), out=kept)
            d_scores = masks.zero(d_kept, chunk).sub_(mean).mul_(weight)
            _join(_scaled_product(d_scores, k, ctx.scale), d_query[samples])
            _join(_scaled_product(d_scores.transpose(1, 2), q, ctx.scale), d_key[samples])
        return d_query, d_key, d_value, None, None, None


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """The batched product of `left` and `right` times `scale`."""
    unread = left.new_empty(())
    return torch.baddbmm(unread, left, right, beta=0, alpha=scale)


def _size(width: int) -> int:
    """Rows of a chunk whose widest tensor has `width` elements per row."""
    return max(1, CHUNK // width)


def _samples(key: Tensor, weights: Tensor) -> int:
    """Samples of a chunk of attention."""
    return _size(max(key[0].numel(), weights[0].numel()))


def _chunks(count: int, size: int) -> Iterator[tuple[int, slice]]:
    """(0, rows of the first chunk), (1, rows of the second) ..."""
    return ((i, slice(start, start + size)) for i, start in enumerate(range(0, count, size)))


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _split(sequence: Tensor, heads: int) -> Tensor:
    """(B, S, E) -> a copy (B, heads, S, E / heads), the layout of batched matrix products."""
    size, length, width = sequence.shape
    split = sequence.new_empty(size, heads, length, width // heads)
    return split.copy_(sequence.view(size, length, heads, -1).transpose(1, 2))


def _joined_shape(split: Tensor) -> Tensor:
    """Uninitialised memory for `split` (B, heads, S, E / heads) in the layout (B, S, E)."""
    size, heads, length, width = split.shape
    return split.new_empty(size, length, heads * width)


def _join(split: Tensor, sequence: Tensor) -> None:
    """Write (B heads, S, E / heads) into `sequence` (B, S, E)."""
    size, length, _ = sequence.shape
    heads = len(split) // size
    sequence.view(size, length, heads, -1).copy_(
        split.view(size, heads, length, -1).transpose(1, 2)
    )


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean mask -> 0 where allowed, the lowest finite number elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def _activate(hidden: Tensor, leak: float, buffer: Tensor) -> Tensor:
    out = buffer[: len(hidden)]
    torch.ops.aten.leaky_relu.out(hidden, leak, out=out)
    return out


def _aligned(rows: int, width: int) -> Tensor:
    """(rows, width) uninitialised floats, each row at the start of a cache line."""
    return torch.empty(rows, -(-width // _LINE) * _LINE)[:, :width]


def _norm_backward(
    gradient: Tensor, source: Tensor, statistics: tuple[Tensor, Tensor],
    affine: tuple[Tensor, Tensor], sums: Any, with_source: bool = True,
) -> Tensor:  # fmt: skip
    """Gradient of a LayerNorm's input; those of its weight and bias are added to `sums`."""
    d_source, d_gamma, d_beta = torch.ops.aten.native_layer_norm_backward(
        gradient, source, affine[0].shape, *statistics, *affine, [with_source, True, True]
    )
    sums[0].add_(d_gamma)
    sums[1].add_(d_beta)
    result: Tensor = d_source
    return result
