"""Clip scores from the best window (MR2HD; docs/models/video_lights.md, section 5).

Training only: a loss compares them with the ratings, which couples the two tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.functional import full_precision
from mrmodel.models.layers.heads import foreground_scores
from mrmodel.spans import cxw_to_xx
from mrmodel.types import LayerOutput


class MomentToHighlight(nn.Module):
    """A GRU over the clips of the best window, whose state weights all clips.

    Args:
        hidden: channels d.
        legacy_slice: slice the window as published: fractions refer to the padded length, a start
            before the video counts from its end, and the GRU continues over zeros up to the
            padded length.
    """

    def __init__(self, hidden: int, legacy_slice: bool = False) -> None:
        super().__init__()
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.score = nn.Linear(hidden, hidden)
        self.legacy_slice = legacy_slice

    def forward(self, video: Tensor, memory: Tensor, windows: LayerOutput, mask: Tensor) -> Tensor:
        """Scores (B, L), float32.

        Args:
            video: projected clips (B, L, d).
            memory: encoded clips (B, L, d).
            windows: heads of the last decoder layer; no gradient reaches them.
            mask: (B, L) bool.
        """
        with full_precision(video.device):
            video, memory = video.float(), memory.float()
            best = foreground_scores(windows).argmax(1)[:, None, None].expand(-1, 1, 2)
            span = cxw_to_xx(windows.spans_cxw.detach().gather(1, best)).transpose(1, 2)
            weight = (video @ self._summary(video, span, mask).unsqueeze(-1)).squeeze(-1)
            # The published score sums all channels of a linear layer, which is a product with the
            # sum of its rows.
            scores = (memory @ self.score.weight.sum(0)) * (1.0 + weight) + self.score.bias.sum()
            scaled: Tensor = scores * memory.shape[-1] ** -0.5
            return scaled

    def _summary(self, video: Tensor, span: Tensor, mask: Tensor) -> Tensor:
        """State (B, d) of the GRU at the last clip of the window; start and end are (B, 2, 1)."""
        if self.legacy_slice:
            return self._legacy_summary(video, span)
        count = mask.sum(1, keepdim=True)
        ends = (span * count.unsqueeze(1)).floor().long().clamp(min=0)
        first, last = ends.minimum(count.unsqueeze(1) - 1).unbind(1)
        steps = torch.arange(video.shape[1], device=video.device)
        if video.device.type == "cpu":  # on a GPU reading the lengths would synchronise
            steps = steps[: int((last - first).max()) + 1]
        states, _ = self.gru(_rows(video, (first + steps).minimum(last)))
        return _rows(states, last - first).squeeze(1)

    def _legacy_summary(self, video: Tensor, span: Tensor) -> Tensor:
        length = video.shape[1]
        first, last = (span * length).floor().long().unbind(1)
        first, stop = _from_the_end(first, length), _from_the_end(last + 1, length)
        index = first + torch.arange(length, device=video.device)
        rows = _rows(video, index.clamp(max=length - 1)) * (index < stop).unsqueeze(-1)
        _, state = self.gru(rows)
        return state[0]  # type: ignore[no-any-return]


def _rows(sequence: Tensor, index: Tensor) -> Tensor:
    """(B, L, d) and (B, S) -> (B, S, d)."""
    return sequence.gather(1, index.unsqueeze(-1).expand(-1, -1, sequence.shape[-1]))


def _from_the_end(index: Tensor, length: int) -> Tensor:
    """Resolve indices as Python slices do: negative ones count from the end."""
    return torch.where(index < 0, index + length, index).clamp(0, length)
