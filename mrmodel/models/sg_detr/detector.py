"""The hybrid detector: pyramid, query selection, decoder, and an anchor head beside it.

Auxiliary and moment queries walk through the decoder in one pass and do not see each other
(`query_groups.group_mask`), so that the moment queries give in training what they give without the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mrmodel.models.layers.functional import key_mask
from mrmodel.models.layers.query_groups import (
    LabelledQueries,
    QueryGroup,
    join_groups,
    known_group,
    moment_group,
)
from mrmodel.models.sg_detr.anchor_head import AnchorHead
from mrmodel.models.sg_detr.anchors import AnchorGrid
from mrmodel.models.sg_detr.conv import FIRST_WEIGHTS
from mrmodel.models.sg_detr.decoder import SgDecoder
from mrmodel.models.sg_detr.host_inputs import HostInputs, existing_anchors
from mrmodel.models.sg_detr.output import AnchorOutput, Heads, TrainingParts
from mrmodel.models.sg_detr.pyramid import FeaturePyramid
from mrmodel.models.sg_detr.selector import LearnedQueries, QuerySelector
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.spans import inverse_sigmoid


@dataclass(frozen=True, slots=True)
class ClipMemory:
    """What the detector reads: clips (B, L, d), codes (B or 1, L, d), mask (B, L)."""

    memory: Tensor
    position: Tensor
    mask: Tensor


class Detector(nn.Module):
    """Windows from clips; the settings say which of its parts exist."""

    def __init__(self, settings: SgDetrSettings) -> None:
        super().__init__()
        self.settings = s = settings
        needs_pyramid = s.query_selection or s.anchor_head
        self.pyramid = FeaturePyramid(s) if needs_pyramid else None
        self.start = QuerySelector(s) if s.query_selection else LearnedQueries(s)
        self.decoder = SgDecoder(s)
        self.anchor_head = AnchorHead(s) if s.anchor_head else None
        self.auxiliary_content = None
        if s.auxiliary_queries:
            linear = nn.Linear(s.hidden, s.hidden)
            nn.init.normal_(linear.weight, std=FIRST_WEIGHTS)
            self.auxiliary_content = nn.Sequential(linear, nn.LayerNorm(s.hidden))

    def forward(
        self,
        seen: ClipMemory,
        unit_clips: float,
        training: TrainingParts | None,
    ) -> tuple[Heads, AnchorOutput | None]:
        """Find windows.

        Args:
            seen: what to read.
            unit_clips: clips of an anchor unit.
            training: takes what the losses read; None in eval mode.

        Returns:
            Heads of the moment queries, and the anchors.
        """
        s = self.settings
        levels = [] if self.pyramid is None else self.pyramid(seen.memory, seen.mask)
        grid = AnchorGrid.of(seen.mask.shape[1], seen.mask.device)
        start = self.start(levels, seen.mask, grid)
        groups = [moment_group(start.content, start.spans_cxw)]
        anchors = None
        if self.anchor_head is not None:
            exists = existing_anchors(seen.mask, grid, s)
            unit = unit_clips / seen.mask.sum(1).float()
            anchors = self.anchor_head([level.float() for level in levels], grid, exists, unit)
            if training is not None and s.auxiliary_queries:
                queries = _auxiliary_queries(grid, unit, training.host)
                training.auxiliary_queries = queries
                groups.insert(0, self._auxiliary_group(queries, levels, training.host))
        *known, heads = self._decode(seen, groups)
        if training is not None:
            training.selector, training.moments, training.anchors = start.heads, heads, anchors
            training.auxiliary = known[0] if known else None
        return heads, anchors

    def _auxiliary_group(
        self, queries: LabelledQueries, levels: Sequence[Tensor], host: HostInputs
    ) -> QueryGroup:
        assert self.auxiliary_content is not None
        rows = torch.cat(list(levels), dim=1)
        index = host.query_anchor.unsqueeze(2).expand(-1, -1, rows.shape[2])
        content = self.auxiliary_content(rows.gather(1, index))
        return known_group(queries, content, index.new_full((index.shape[1],), -1))

    def _decode(self, seen: ClipMemory, groups: Sequence[QueryGroup]) -> list[Heads]:
        """One pass over all groups; their heads, group by group."""
        content, spans, mutual = join_groups(groups)
        heads: Heads = self.decoder(
            (content, spans), (seen.memory, seen.position), key_mask(seen.mask), mutual
        )
        return heads.split([group.used.shape[1] for group in groups])


def _auxiliary_queries(grid: AnchorGrid, unit: Tensor, host: HostInputs) -> LabelledQueries:
    """Chosen anchors as decoder queries; `unit` (B,) is an anchor unit as a fraction."""
    anchors = torch.stack((grid.centre, grid.width), dim=-1)
    spans = anchors[host.query_anchor] * unit[:, None, None]
    window, used = host.query_window, host.query_used
    return LabelledQueries(
        # As published the reference goes through the clamped inverse sigmoid.
        spans_cxw=torch.where(used.unsqueeze(2), inverse_sigmoid(spans).sigmoid(), 0.5),
        window=window.clamp(min=0),
        positive=(window >= 0) & used,
        used=used,
    )
