"""What training makes from annotations and chance alone, on the CPU where the batch is built.

Nothing in here depends on a prediction. A step then has fixed shapes and masks, and no number of
the batch has to be read back from the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.losses.negatives import negative_rows, source_videos
from mrmodel.losses.windows import PaddedWindows, pad_windows
from mrmodel.models.sg_detr.anchors import (
    LEGACY_UNIT_S,
    AnchorGrid,
    AnchorTargets,
    assign,
    level_masks,
)
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import cxw_to_xx
from mrmodel.types import Batch, Targets

PAD_MULTIPLE = 4


@dataclass(frozen=True, slots=True)
class HostInputs:
    """Truth and random choices of a training step.

    Attributes:
        negative: (B,) int64, the sample whose sentence is the negative one.
        has_negative: (B,) bool.
        windows: (B, W, 2) true windows as fractions, W at least 1.
        window_valid: (B, W) bool.
        anchor_spans: (B, W, 2) the same windows as (start, end) in anchor units.
        anchor_window, anchor_centerness: (B, A) of `AnchorTargets`.
        query_anchor: (B, S) int64, anchor of each auxiliary query.
        query_window: (B, S) int64, its true window, -1 for background.
        query_used: (B, S) bool.
    """

    negative: Tensor
    has_negative: Tensor
    windows: Tensor
    window_valid: Tensor
    anchor_spans: Tensor
    anchor_window: Tensor
    anchor_centerness: Tensor
    query_anchor: Tensor
    query_window: Tensor
    query_used: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> HostInputs:
        """From the mapping of `MomentModel.host_inputs`."""
        return cls(**tensors)

    def as_mapping(self) -> dict[str, Tensor]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def truth(self) -> PaddedWindows:
        """The true windows as the matching reads them."""
        return PaddedWindows(self.windows, self.window_valid)

    @property
    def anchors(self) -> AnchorTargets:
        """The targets of the anchor head."""
        return AnchorTargets(self.anchor_window, self.anchor_centerness)


def padded_lengths(lengths: Tensor, settings: SgDetrSettings) -> Tensor:
    """(B,) valid clips -> with `legacy_padding` the next multiple of four."""
    if not settings.legacy_padding:
        return lengths
    return (lengths + PAD_MULTIPLE - 1) // PAD_MULTIPLE * PAD_MULTIPLE


def padded_size(clips: int, settings: SgDetrSettings) -> int:
    """Clips L of a batch -> with `legacy_padding` the next multiple of four."""
    return -(-clips // PAD_MULTIPLE) * PAD_MULTIPLE if settings.legacy_padding else clips


def anchor_unit_s(batch: Batch, settings: SgDetrSettings) -> float:
    """Seconds of one anchor unit."""
    return LEGACY_UNIT_S if settings.legacy_anchor_unit else batch.clip_len_s


def existing_anchors(mask: Tensor, grid: AnchorGrid, settings: SgDetrSettings) -> Tensor:
    """(B, L) clip mask -> (B, A) bool: the anchor's position is valid, its centre in the video.

    With `legacy_padding` all anchors exist.
    """
    if settings.legacy_padding:
        return mask.new_ones(len(mask), len(grid.centre))
    places = torch.cat(level_masks(mask), dim=1)
    return places & (grid.centre < mask.sum(1, keepdim=True))


def make_host_inputs(
    batch: Batch, targets: Targets, settings: SgDetrSettings, generator: torch.Generator
) -> HostInputs:
    """Truth and random choices for a batch on the CPU.

    Auxiliary queries are the positive anchors of a sample, then random others up to the largest
    number of positives in the batch, as published.
    """
    negative, has_negative = _negatives(batch, settings)
    lengths = batch.video_mask.sum(1)
    padded = padded_lengths(lengths, settings)
    given = pad_windows(targets)
    missing = max(0, 1 - given.valid.shape[1])
    given_cxw = F.pad(given.spans_cxw, (0, 0, 0, missing), value=0.5)
    windows = given_cxw * (lengths / padded)[:, None, None]
    valid = F.pad(given.valid, (0, missing))

    size = padded_size(batch.video_mask.shape[1], settings)
    # Without anchor head nothing of the rest is read.
    grid = AnchorGrid.of(size if settings.has_anchors else 0, torch.device("cpu"))
    spans = cxw_to_xx(windows) * padded[:, None, None]
    if settings.legacy_anchor_unit:
        # As published the fraction of a second goes, even one that only rounding made.
        seconds = cxw_to_xx(given_cxw) * (lengths * batch.clip_len_s)[:, None, None]
        spans = seconds.trunc() / LEGACY_UNIT_S
    mask = torch.arange(size if settings.has_anchors else 0) < padded[:, None]
    exists = existing_anchors(mask, grid, settings)
    found = assign(grid, exists, spans, valid, settings.anchor_topk)
    chance = _chances(grid, len(batch), generator)
    query_anchor, query_used = _queries(found.window >= 0, exists, chance, settings)
    return HostInputs(
        negative, has_negative, windows, valid, spans, found.window, found.centerness,
        query_anchor, found.window.gather(1, query_anchor), query_used,
    )  # fmt: skip


def _negatives(batch: Batch, settings: SgDetrSettings) -> tuple[Tensor, Tensor]:
    videos = source_videos(batch.vids)
    if not settings.legacy_next_negative:
        return negative_rows(videos, batch.text_keys)
    following = [*videos[1:], *videos[:1]]
    has = torch.tensor([own != other for own, other in zip(videos, following, strict=True)])
    return torch.arange(len(videos)).roll(-1), has


def _chances(grid: AnchorGrid, samples: int, generator: torch.Generator) -> Tensor:
    """(B, A) random numbers. The position is the slowest axis, so padding changes none of them."""
    sizes = grid.level_sizes
    draws = torch.rand((max(sizes), len(sizes), samples), generator=generator)
    return torch.cat([draws[:size, level] for level, size in enumerate(sizes)]).T


def _queries(
    positive: Tensor, exists: Tensor, chance: Tensor, settings: SgDetrSettings
) -> tuple[Tensor, Tensor]:
    """Anchors (B, S) of the auxiliary queries, and which of these exist; S at least 1."""
    slots = max(1, int(positive.sum(1).max())) if settings.auxiliary_queries else 1
    rank = torch.where(positive, 2.0, torch.where(exists, chance, -1.0))
    anchor = rank.argsort(dim=1, descending=True, stable=True)[:, :slots]
    used = exists.gather(1, anchor) & positive.any()
    return anchor, used
