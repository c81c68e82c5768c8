"""Saliency-guided cross attention: clips read the sentence as far as it concerns them (eqs 3-5).

The paper indexes the gate by token although saliency belongs to clips; the readings that can be
meant are switches (docs/models/sg_detr.md, row 1 of the register).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrmodel.models.layers.attention import attend, attend_by
from mrmodel.models.layers.dropout import branch_dropout
from mrmodel.models.layers.feed_forward import FeedForward, add_projected
from mrmodel.models.sg_detr.settings import SgDetrSettings


class Gate(NamedTuple):
    """How far the text reaches: `clip` (B, L) for whole clips, `pair` (B, L, N) for pairs."""

    clip: Tensor | None = None
    pair: Tensor | None = None


class SaliencyGuidedLayer(nn.Module):
    """x <- LN(x + Path(gate * attention)), x <- LN(x + Path(ffn(x))).

    The gate scales the head outputs and the output projection has no bias, so that a closed gate
    lets nothing through.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        hidden, p, drop = settings.hidden, settings.dropout, settings.drop
        self.heads = settings.heads
        self.renormalise = settings.sgca.gate == "pair_renorm"
        self.query, self.key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden, bias=False)
        self.ffn = FeedForward(hidden, settings.ffn, p, "prelu", drop)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.branch = branch_dropout(p, drop)

    def forward(
        self,
        clips: Tensor,
        position: Tensor,
        text: tuple[Tensor, Tensor],
        gate: Gate,
        allowed: Tensor | None,
    ) -> Tensor:
        """Mix text into clips.

        Args:
            clips: (B, L, d).
            position: (B or 1, L, d) codes of the clips.
            text: projected keys and values, (k B, N, d) each; with k = 2 each clip reads two
                sentences, in two halves of the output.
            gate: of the (k B) pairs of clips and sentence.
            allowed: tokens that may be read, as in `attend`.

        Returns:
            (k B, L, d).
        """
        keys, values = text
        queries = self.query(clips + position)
        if len(keys) != len(clips):
            copies = len(keys) // len(clips)
            clips, queries = clips.repeat(copies, 1, 1), queries.repeat(copies, 1, 1)
        if gate.pair is None:
            read = attend(queries, keys, values, self.heads, allowed, self._p)
        else:
            weigh = self._gated(gate.pair, allowed)
            read = attend_by(queries, keys, values, self.heads, weigh, self._p)
        if gate.clip is not None:
            read = read * gate.clip.unsqueeze(-1).to(read.dtype)
        clips = add_projected(read, clips, self.output, self.branch, self.norm1)
        mixed: Tensor = self.ffn(clips, clips, self.norm2)
        return mixed

    def _gated(self, pair: Tensor, allowed: Tensor | None) -> Callable[[Tensor], Tensor]:
        def weigh(scores: Tensor) -> Tensor:
            if allowed is not None:
                scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
            weights = scores.softmax(-1) * pair.unsqueeze(1)
            if self.renormalise:
                weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-8)
            return weights

        return weigh

    @property
    def _p(self) -> float:
        return self.branch.p if self.training else 0.0
