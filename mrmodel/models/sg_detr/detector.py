"""The hybrid detector: moment queries, denoising, anchors and their auxiliary queries (section 4).

All groups of queries walk through the decoder in one pass and cannot see what they must not
(`query_groups.group_mask`), so that the moment queries give in training what they give without
the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mrmodel.losses.windows import PaddedWindows, pad_windows
from mrmodel.models.layers.functional import key_mask
from mrmodel.models.layers.position import span_positions
from mrmodel.models.layers.query_groups import (
    LabelledQueries,
    QueryGroup,
    draw_noise,
    group_numbers,
    join_groups,
    known_group,
    moment_group,
    seeded_generator,
)
from mrmodel.models.sg_detr.anchors import anchor_grid, assign
from mrmodel.models.sg_detr.decoder import SgDecoder
from mrmodel.models.sg_detr.fusion import detection_scores
from mrmodel.models.sg_detr.output import (
    AnchorHeads,
    Heads,
    RawDetections,
    SgDetrOutput,
    TrainingParts,
)
from mrmodel.models.sg_detr.pyramid import AnchorHead
from mrmodel.models.sg_detr.queries import (
    KINDS,
    anchor_queries,
    denoising_groups,
    denoising_queries,
)
from mrmodel.models.sg_detr.selector import LearnedQueries, QuerySelector
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.types import LayerOutput, Targets


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
        self.start = QuerySelector(s) if s.uses_selector else LearnedQueries(s)
        self.decoder = SgDecoder(s)
        self.foreground, self.aux_content, self.anchor_head = None, None, None
        if s.uses_denoising:
            kinds = 2 if s.dn.content == "pos_neg" else 1
            self.foreground = nn.Parameter(torch.randn(kinds, s.hidden))
        if s.uses_anchors:
            self.anchor_head = AnchorHead(s)
        if s.uses_auxiliary:
            self.aux_content = nn.Sequential(nn.Linear(s.hidden, s.hidden), nn.LayerNorm(s.hidden))

    def forward(
        self,
        seen: ClipMemory,
        saliency: Tensor,
        targets: Targets | None,
        training: TrainingParts | None,
    ) -> SgDetrOutput:
        """Find windows.

        Args:
            seen: what to read.
            saliency: (B, L) clip scores, for the output.
            targets: what training may build known queries from.
            training: takes what the losses read; None in eval mode.

        Returns:
            With the windows of the decoder's last layer.
        """
        start = self.start(seen.memory, seen.mask)
        anchors = None if self.anchor_head is None else self.anchor_head(seen.memory, seen.mask)
        if training is None:
            heads = self._decode(seen, [moment_group(start.content, start.spans_cxw)])[0]
            return self._output(heads, saliency, raw=_raw_detections(heads, anchors))
        groups = self.known_groups(seen, anchors, targets, training)
        *known, heads = self._decode(seen, [*groups, moment_group(start.content, start.spans_cxw)])
        training.match, training.selector, training.selector_used = heads, start.heads, start.used
        training.anchors = anchors
        # In the order in which `known_groups` made them.
        if training.dn_queries is not None:
            training.dn = known.pop(0)
        if training.aux_queries is not None:
            training.aux = known.pop(0)
        return self._output(heads, saliency, training=training)

    def _output(
        self,
        heads: Heads,
        saliency: Tensor,
        *,
        training: TrainingParts | None = None,
        raw: RawDetections | None = None,
    ) -> SgDetrOutput:
        last = LayerOutput(heads.logits[-1].unsqueeze(-1), heads.spans_cxw[-1])
        scores = detection_scores(
            heads.logits[-1],
            None if heads.iou_logits is None else heads.iou_logits[-1],
            self.settings.match.alpha,
        )
        return SgDetrOutput(last, last.spans_cxw, scores, saliency, training=training, raw=raw)

    def known_groups(
        self,
        seen: ClipMemory,
        anchors: AnchorHeads | None,
        targets: Targets | None,
        training: TrainingParts,
    ) -> list[QueryGroup]:
        """Denoising and auxiliary queries, noted in `training`; none without targets."""
        if targets is None:
            return []
        windows = pad_windows(targets)
        generator = seeded_generator()
        groups = []
        if self.foreground is not None and windows.spans_cxw.shape[1]:
            truth = (seen, windows)
            groups.append(self._denoising_group(self.foreground, truth, generator, training))
        elif self.foreground is not None:
            training.idle = 0.0 * self.foreground.sum()
        if anchors is not None:
            assigned = assign(
                anchor_grid(seen.mask, self.settings.atss), windows, self.settings.atss
            )
            training.anchor_targets = assigned
            if self.aux_content is not None:
                queries, anchor = anchor_queries(anchors, assigned, self.settings.aux, generator)
                if anchor.shape[1]:
                    training.aux_queries = queries
                    groups.append(self._auxiliary_group(self.aux_content, anchors, queries, anchor))
                else:
                    # Every parameter has a gradient in every step, as distributed training wants.
                    for parameter in self.aux_content.parameters():
                        idle = 0.0 * parameter.sum()
                        training.idle = idle if training.idle is None else training.idle + idle
        return groups

    def _denoising_group(
        self,
        foreground: Tensor,
        truth: tuple[ClipMemory, PaddedWindows],
        generator: torch.Generator,
        training: TrainingParts,
    ) -> QueryGroup:
        seen, windows = truth
        samples, longest = windows.valid.shape
        count = denoising_groups(self.settings.dn, longest)
        noise = draw_noise((samples, count, KINDS), longest, generator)
        clips = seen.mask.sum(1)
        queries = denoising_queries(windows, clips, noise, self.settings.dn.noise_scale)
        training.dn_queries = queries
        kind = (~queries.positive).long() * (len(foreground) - 1)
        number = group_numbers(count, KINDS * longest, seen.mask.device)
        return known_group(queries, foreground[kind], number)

    def _auxiliary_group(
        self, project: nn.Module, anchors: AnchorHeads, queries: LabelledQueries, anchor: Tensor
    ) -> QueryGroup:
        content = project(span_positions(queries.spans_cxw, self.settings.hidden))
        if anchors.features is not None:
            index = anchor.unsqueeze(-1).expand(-1, -1, self.settings.hidden)
            content = content + anchors.features.gather(1, index)
        return known_group(queries, content, anchor.new_full((anchor.shape[1],), -1))

    def _decode(self, seen: ClipMemory, groups: Sequence[QueryGroup]) -> list[Heads]:
        """One pass over all groups; their heads, group by group."""
        content, spans, mutual = join_groups(groups, self.settings.dn.sees_match)
        heads = self.decoder(
            (content, spans), (seen.memory, seen.position), key_mask(seen.mask), mutual
        )
        return split_heads(heads, [group.used.shape[1] for group in groups])


def split_heads(heads: Heads, sizes: list[int]) -> list[Heads]:
    """Heads of consecutive groups of queries."""
    logits, spans = torch.split(heads.logits, sizes, 2), torch.split(heads.spans_cxw, sizes, 2)
    ious: Sequence[Tensor | None] = [None] * len(sizes)
    if heads.iou_logits is not None:
        ious = torch.split(heads.iou_logits, sizes, 2)
    return [Heads(*parts) for parts in zip(logits, spans, ious, strict=True)]


def _raw_detections(heads: Heads, anchors: AnchorHeads | None) -> RawDetections:
    raw = RawDetections(
        heads.logits[-1],
        heads.spans_cxw[-1],
        None if heads.iou_logits is None else heads.iou_logits[-1],
    )
    if anchors is not None:
        lowest = torch.finfo(anchors.logits.dtype).min
        raw.anchor_logits = anchors.logits.masked_fill(~anchors.valid, lowest)
        raw.anchor_centerness = anchors.centerness.masked_fill(~anchors.valid, lowest)
        raw.anchor_spans_cxw = anchors.spans_cxw
    return raw
