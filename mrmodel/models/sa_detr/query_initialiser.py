"""Initial spans and contents of queries (docs/models/sa_detr.md, section 2.8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.models.layers.feed_forward import Mlp
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.sa_detr.settings import InitSettings
from mrmodel.spans import inverse_sigmoid

FIRST_WIDTH = 0.2
SMALL_WEIGHT = 0.01


class LearnedSpans(nn.Module):
    """The same spans for every sample, as logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.anchors = nn.Parameter(logits)

    def forward(self, token: Tensor) -> Tensor:
        """Fusion token (B, d) -> (B, 2 Q)."""
        return self.anchors.flatten().expand(len(token), -1)


class DirectQueries(nn.Module):
    """Queries whose initial spans are predicted from the fusion token, or learned.

    Initially the centres are spread evenly over the video and all widths are 0.2; with equal spans
    the queries could not diverge. Contents are learned, starting at zero.
    """

    def __init__(self, hidden: int, settings: InitSettings) -> None:
        super().__init__()
        count = settings.queries
        self.content = nn.Parameter(torch.zeros(count, hidden))
        first = inverse_sigmoid(even_spans(count))
        self.spans: nn.Module = LearnedSpans(first)
        if settings.anchors == "dynamic":
            self.spans = Mlp(hidden, hidden, 2 * count, 3)
            last = self.spans[-1]
            nn.init.normal_(last.weight, std=SMALL_WEIGHT)  # type: ignore[arg-type]
            last.bias = nn.Parameter(first.flatten())

    def forward(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """Fusion token (B, d) -> contents (B, Q, d) and spans (B, Q, 2) float32, in (0, 1)."""
        content = self.content.expand(len(token), -1, -1)
        with full_precision(token.device):
            logits: Tensor = self.spans(token.float())
        return content, logits.view(len(token), -1, 2).sigmoid()


def even_spans(count: int) -> Tensor:
    """(count, 2): centres at (j + 1/2) / count, widths 0.2."""
    centres = (torch.arange(count) + 0.5) / count
    return torch.stack((centres, torch.full_like(centres, FIRST_WIDTH)), dim=-1)
