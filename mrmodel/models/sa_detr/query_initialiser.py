"""Initial spans and contents of queries (docs/models/sa_detr.md, sections 2.8 and 2.9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.layers.feed_forward import Mlp
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.layers.query_groups import LabelledQueries, Noise, noisy_copies
from mrmodel.models.sa_detr.settings import InitSettings, NoiseSettings
from mrmodel.spans import cxw_to_xx, inverse_sigmoid

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


def noise_sizes(noise: Noise, settings: NoiseSettings, delta: float) -> Tensor:
    """Noise ratios of near and far copies: the sizes in [0, 1) of `noise`, rescaled.

    Args:
        noise: kind 0 are the near copies, kind 1 the far ones if there are any.
        settings: `sigma_p` is the upper bound of near copies; with `band` it is also the lower
            bound of far ones, otherwise that is 0.
        delta: the upper bound of far copies is `sigma_p` + delta.

    Returns:
        As `noise.size`.
    """
    near = settings.sigma_p
    least, most = (near, near + delta) if settings.band else (0.0, near + delta)
    kinds = noise.size.shape[3]
    low = noise.size.new_tensor([0.0, least])[:kinds, None]
    high = noise.size.new_tensor([near, most])[:kinds, None]
    return low + noise.size * (high - low)


def noise_queries(
    windows: PaddedWindows, clips: Tensor, noise: Noise, settings: NoiseSettings, delta: float
) -> LabelledQueries:
    """Copies of the true windows with noisy centre and width; near ones are to be denoised.

    |dc| < r w / 2 (or r c / 2 with ``center_ref: center``) and |dw| < r w with the ratios r of
    `noise_sizes`, drawn independently.

    Args:
        windows: the true windows, Gmax > 0.
        clips: (B,) valid clips.
        noise: see `draw_noise`.
        settings: see `noise_sizes`.
        delta: see `noise_sizes`.

    Returns:
        As `noisy_copies` returns them.
    """
    noise = Noise(noise_sizes(noise, settings, delta), noise.sign)
    size, sign = noise.by_group(windows.spans_cxw.device)
    shift, stretch = (sign * size).unbind(-1)
    centre, width = windows.spans_cxw[:, None, None].unbind(-1)
    reach = width if settings.center_ref == "width" else centre
    moved = torch.stack((centre + 0.5 * shift * reach, width * (1.0 + stretch)), dim=-1)
    return noisy_copies(cxw_to_xx(moved), windows, clips)
