"""Queries: their first spans and contents, and noisy copies of the true windows.

docs/models/sa_detr.md, sections 2.8 and 2.9.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mrmodel.losses.windows import PaddedWindows
from mrmodel.models.layers.feed_forward import Mlp
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sa_detr.settings import InitSettings, NoiseSettings
from mrmodel.spans import cxw_to_xx, inverse_sigmoid, xx_to_cxw

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


NARROWEST_CLIPS = 0.5  # of a noisy copy


class Noise(NamedTuple):
    """Random numbers of noisy copies, (Gmax, B, groups, kinds, 2): size in [0, 1), sign +-1."""

    size: Tensor
    sign: Tensor

    def by_group(self, device: torch.device) -> Noise:
        """The same draws on `device` as (B, groups, kinds, Gmax, 2)."""
        size, sign = (part.to(device, non_blocking=True).permute(1, 2, 3, 0, 4) for part in self)
        return Noise(size, sign)


def draw_noise(shape: tuple[int, int, int], longest: int, generator: torch.Generator) -> Noise:
    """Draw on the CPU, so that a step is reproducible on any device.

    The window is the slowest axis: a sample with more windows in the batch appends draws and
    changes no others.

    Args:
        shape: samples, groups and kinds of copies.
        longest: largest number of windows of a sample.
        generator: the random generator.
    """
    draws = torch.rand((longest, *shape, 2, 2), generator=generator)
    return Noise(draws[..., 0], torch.where(draws[..., 1] < 0.5, -1.0, 1.0))


def noisy_copies(ends_xx: Tensor, windows: PaddedWindows, clips: Tensor) -> LabelledQueries:
    """Queries from perturbed windows; the target of kind 0 is its window.

    Args:
        ends_xx: (B, groups, kinds, Gmax, 2) perturbed starts and ends. They are clamped to the
            video and sorted, because large noise swaps them.
        windows: the truth, Gmax > 0.
        clips: (B,) valid clips; a reference is at least half a clip wide.

    Returns:
        S = groups x kinds x Gmax query slots: group by group, positives before negatives.
    """
    device = ends_xx.device
    groups, kinds, longest = ends_xx.shape[1:4]
    spans = xx_to_cxw(ends_xx.clamp(0.0, 1.0).sort(-1).values).flatten(1, 3)
    centre, width = spans.unbind(-1)
    width = width.maximum(NARROWEST_CLIPS / clips[:, None])
    used = windows.valid[:, None, None].expand(-1, groups, kinds, -1).flatten(1)
    index = torch.arange(longest, device=device).repeat(groups * kinds)
    kind = torch.arange(kinds, device=device).repeat_interleave(longest).repeat(groups)
    # Keeps both ends of the reference inside the video.
    centre = centre.clamp(0.5 * width, 1.0 - 0.5 * width)
    spans = torch.stack((centre, width), -1)
    return LabelledQueries(
        spans_cxw=torch.where(used.unsqueeze(-1), spans, 0.5),
        window=index * used,
        positive=used & (kind == 0),
        used=used,
    )


def group_numbers(groups: int, slots: int, device: torch.device) -> Tensor:
    """(groups x slots,) int64: 1 for the slots of the first group, and so on."""
    return torch.arange(1, groups + 1, device=device).repeat_interleave(slots)


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
