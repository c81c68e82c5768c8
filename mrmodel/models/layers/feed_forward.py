"""Position-wise networks, and the residual step that ends every branch of a transformer layer."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from mrmodel.models.layers import cpu_kernels
from mrmodel.models.layers.dropout import BranchDropout, Drop, Dropout, branch_dropout

Activation = Literal["relu", "prelu"]


class FeedForward(nn.Module):
    """Linear -> activation -> dropout -> Linear, the block of a transformer layer.

    ``prelu`` has one learned slope for the block, initially 0.25. For `drop` see `branch_dropout`.
    """

    def __init__(
        self, hidden: int, ffn: int, p: float, activation: Activation, drop: Drop = "unit"
    ) -> None:
        super().__init__()
        self.expand = nn.Linear(hidden, ffn)
        self.activation = nn.PReLU() if activation == "prelu" else nn.ReLU()
        self.dropout = Dropout(p)
        self.contract = nn.Linear(ffn, hidden)
        self.branch = branch_dropout(p, drop)

    def forward(self, source: Tensor, residual: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        """norm(residual + dropout(block(source))), (B, ..., d); just the sum if `norm` is None."""
        layers = (self.expand, self.activation, self.contract)
        if norm is not None and cpu_kernels.usable(residual, self.training):
            return cpu_kernels.feed_forward(
                source, residual, layers, norm, self.branch, self.dropout.p
            )
        if norm is not None and cpu_kernels.usable_for_inference(residual, self.training):
            return cpu_kernels.feed_forward_at_rest(source, residual, layers, norm)
        hidden = self.dropout(self.activation(self.expand(source)))
        total: Tensor = residual + self.branch(self.contract(hidden))
        return total if norm is None else norm(total)

    def doubled(self, source: Tensor, norm: nn.LayerNorm) -> Tensor:
        """norm(y + dropout(y)) of y = block(source), (B, ..., d): `source` itself is not added."""
        if cpu_kernels.usable(source, self.training):
            layers = (self.expand, self.activation, self.contract)
            return cpu_kernels.feed_forward_doubled(source, layers, norm, self.branch)
        block = self.contract(self.dropout(self.activation(self.expand(source))))
        normed: Tensor = norm(block + self.branch(block))
        return normed


class Mlp(nn.Sequential):
    """`layers` Linear layers with ReLU between them; no dropout, no norm."""

    def __init__(self, width: int, hidden: int, output: int, layers: int) -> None:
        widths = [width] + [hidden] * (layers - 1) + [output]
        blocks: list[nn.Module] = []
        for left, right in pairwise(widths):
            blocks += [nn.Linear(left, right), nn.ReLU()]
        super().__init__(*blocks[:-1])


def xavier_feed_forward(module: nn.Module) -> None:
    """Xavier for the `FeedForward` blocks of `module`, biases 0; the gain is PReLU's for the first.

    As in the published SG-DETR.
    """
    gain = nn.init.calculate_gain("leaky_relu", 0.25)
    for block in module.modules():
        if isinstance(block, FeedForward):
            nn.init.xavier_uniform_(block.expand.weight, gain)
            nn.init.xavier_uniform_(block.contract.weight)
            nn.init.zeros_(block.expand.bias)
            nn.init.zeros_(block.contract.bias)


def xavier_chain(layers: Iterable[nn.Module]) -> None:
    """Xavier for the linear `layers` of a chain with ReLU between them, biases 0.

    The gain is that of ReLU for all but the last layer, as in the published SG-DETR.
    """
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linear):
        gain = nn.init.calculate_gain("relu") if i + 1 < len(linear) else 1.0
        nn.init.xavier_uniform_(layer.weight, gain)
        nn.init.zeros_(layer.bias)


def add_projected(
    source: Tensor,
    residual: Tensor,
    linear: nn.Linear,
    dropout: BranchDropout,
    norm: nn.LayerNorm | None,
) -> Tensor:
    """norm(residual + dropout(linear(source))), (B, ..., d); just the sum if `norm` is None."""
    if cpu_kernels.usable(residual, dropout.training):
        return cpu_kernels.add_projected(source, residual, linear, norm, dropout)
    total: Tensor = residual + dropout(linear(source))
    return total if norm is None else norm(total)
