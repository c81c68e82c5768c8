"""All losses of SA-DETR by name, and their weights (eq. 10; docs/models/sa_detr.md, section 3.2).

A name is ``<group>/.../<term>``: ``direct/l1/giou``, ``init/l1``, ``noise/l0/l1``,
``quality/l1/iou``, ``quality/l0/margin``, ``align/vtc``, ``align/local``, ``saliency/rctl``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mrmodel.losses.criterion import Criterion
from mrmodel.losses.highlight import HighlightLoss
from mrmodel.losses.negatives import number_names, same_sentence
from mrmodel.losses.span import span_errors
from mrmodel.losses.windows import (
    PaddedWindows,
    location_costs,
    match_layers,
    own_windows,
    pad_windows,
)
from mrmodel.models.layers.functional import full_precision
from mrmodel.models.layers.query_groups import LabelledQueries
from mrmodel.models.sa_detr.losses import (
    ClipTextMatching,
    drawn_clips,
    quality_loss,
    quality_margin,
    video_text_contrast,
)
from mrmodel.models.sa_detr.output import SaDetrOutput, SaDetrTraining
from mrmodel.models.sa_detr.settings import SaDetrSettings
from mrmodel.models.sa_detr.span_refiner import RefinedQueries
from mrmodel.types import Batch, ModelOutput, Targets

KINDS = 2  # near and far copies
SALIENCY_TERMS = ("margin", "rctl", "bce_neg")


class SaDetrCriterion(Criterion):
    """Alignment, saliency, moment and quality losses; parts that the output lacks are skipped."""

    def __init__(self, settings: SaDetrSettings) -> None:
        self.settings = settings
        self.saliency = HighlightLoss(settings.saliency)
        self.matching = ClipTextMatching(settings.ctm)
        w = settings.loss
        spans = {"l1": w.moment * w.l1, "giou": w.moment * w.giou}
        self._weights = {(g, t): v for g in ("direct", "init", "noise") for t, v in spans.items()}
        self._group_weights = {"quality": w.quality, "align": w.align, "saliency": w.saliency}

    def __call__(self, output: ModelOutput, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name, float32 scalars; `output` must come from training mode."""
        if not isinstance(output, SaDetrOutput) or output.training is None:
            raise TypeError("the losses of SA-DETR need the output of SA-DETR in training mode")
        parts, mask = output.training, batch.video_mask
        losses = self._alignment(parts, targets, batch)
        found = self.saliency(
            output.saliency, parts.negative_saliency, parts.has_negative, targets, mask
        )
        losses |= {f"saliency/{term}": found[term] for term in SALIENCY_TERMS}
        if parts.direct is not None and parts.first_spans is not None:
            windows = pad_windows(targets)
            losses |= self._direct(parts.direct, windows)
            losses |= self._first(parts.first_spans, windows)
            losses |= self._noise(parts, windows)
        return losses

    def weight(self, name: str, epoch: int = 0) -> float:
        """Weight of a loss by its name."""
        group, term = name.partition("/")[0], name.rpartition("/")[2]
        own = self._group_weights.get(group)
        return self._weights[group, term] if own is None else own

    def _alignment(
        self, parts: SaDetrTraining, targets: Targets, batch: Batch
    ) -> dict[str, Tensor]:
        mask, losses = batch.video_mask, {}
        names = torch.from_numpy(number_names(batch.text_keys))
        same = same_sentence(names.to(mask.device, non_blocking=True))
        with full_precision(mask.device):
            if parts.pooled is not None:
                losses["align/vtc"] = video_text_contrast(
                    parts.pooled.video, parts.pooled.text, same, self.settings.vtc.tau
                )
            if parts.clip_text is not None:
                truth = drawn_clips(targets.saliency_pos, targets.saliency_labels, mask)
                pair = parts.clip_text
                found = self.matching(pair.clips, pair.sentence, truth, same)
                losses |= {f"align/{term}": value for term, value in found.items()}
        return losses

    def _direct(self, direct: RefinedQueries, windows: PaddedWindows) -> dict[str, Tensor]:
        """Spans and quality of the direct queries, matched layer by layer (eqs 7, 8)."""
        weights = self.settings.match
        match = self._match(
            direct.spans_cxw, windows, direct.quality_logits.sigmoid() * weights.quality_cost
        )
        used = torch.ones_like(match[0], dtype=torch.bool)
        quality = quality_loss(direct, windows, match >= 0, used, self.settings.quality)
        terms = self._spans(direct.spans_cxw, match, windows, self._divisor(windows))
        return self._by_layer("direct", terms) | self._by_layer("quality", {"iou": quality})

    def _first(self, spans_cxw: Tensor, windows: PaddedWindows) -> dict[str, Tensor]:
        """Losses of the spans before the refiner, which are matched separately."""
        if not self.settings.judges_first_spans:
            return {}
        spans = spans_cxw[None]
        match = self._match(spans, windows, None)
        terms = self._spans(spans, match, windows, self._divisor(windows))
        return {f"init/{term}": value[0] for term, value in terms.items()}

    def _noise(self, parts: SaDetrTraining, windows: PaddedWindows) -> dict[str, Tensor]:
        """Near copies regress their window; far copies must have lower quality (eq. 9)."""
        s = self.settings
        if parts.noise is None or parts.noise_queries is None:
            return self._absent(parts)
        found, queries = parts.noise, parts.noise_queries
        divisor = self._divisor(windows) * (s.dn.groups if s.loss.norm == "gt" else 1)
        window = queries.window.masked_fill(~queries.positive, -1)[None]
        losses = self._by_layer("noise", self._spans(found.spans_cxw, window, windows, divisor))
        terms = {}
        if s.uses_negatives:
            shape = (len(queries.used), s.dn.groups, KINDS, windows.spans_cxw.shape[1])
            quality = found.quality_logits.sigmoid().view(-1, *shape)
            pairs = quality_margin(quality, queries.used.view(shape), s.margin)
            terms["margin"] = pairs / (windows.valid.sum().clamp(min=1) * s.dn.groups)
        if s.quality.on_noise:
            terms["noise"] = self._quality_of_noise(found, queries, windows)
        return losses | self._by_layer("quality", terms)

    def _quality_of_noise(
        self, found: RefinedQueries, queries: LabelledQueries, windows: PaddedWindows
    ) -> Tensor:
        positive = queries.positive[None]
        return quality_loss(found, windows, positive, queries.used, self.settings.quality)

    def _absent(self, parts: SaDetrTraining) -> dict[str, Tensor]:
        """Zero terms for a batch without noise queries, which keep the set of names constant."""
        s = self.settings
        if parts.idle is None:
            return {}
        idle = parts.idle.expand(s.layers.refiner)
        terms = {"margin": s.uses_negatives, "noise": s.quality.on_noise}
        quality = {term: idle for term, wanted in terms.items() if wanted}
        spans = {"l1": idle, "giou": idle}
        return self._by_layer("noise", spans) | self._by_layer("quality", quality)

    def _match(self, spans: Tensor, windows: PaddedWindows, bonus: Tensor | None) -> Tensor:
        """Hungarian matching by span (section 3.1); `bonus` (K, B, Q) reduces a query's cost."""
        with torch.no_grad():
            distance, apart = location_costs(spans, windows)
            cost = self.settings.match.l1 * distance + self.settings.match.giou * apart
            if bonus is not None:
                cost = cost - bonus[..., None]
        return match_layers(cost, windows)

    def _spans(
        self, spans: Tensor, window: Tensor, windows: PaddedWindows, divisor: Tensor | float
    ) -> dict[str, Tensor]:
        """``l1`` and ``giou`` (K,) of the queries with a `window` (K or 1, B, S)."""
        absolute, apart = span_errors(spans, own_windows(window, windows).expand_as(spans))
        positive = (window >= 0).float()
        errors = {"l1": absolute, "giou": apart}
        return {term: (positive * e).sum((1, 2)) / divisor for term, e in errors.items()}

    def _divisor(self, windows: PaddedWindows) -> Tensor | float:
        """Divisor of sums over windows: the number of windows or of samples."""
        if self.settings.loss.norm == "gt":
            return windows.valid.sum().clamp(min=1)
        return float(max(len(windows.valid), 1))

    def _by_layer(self, group: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(K,) losses by name, of the supervised layers."""
        first = 0 if self.settings.loss.aux else self.settings.layers.refiner - 1
        return {
            f"{group}/l{layer}/{term}": value
            for term, values in terms.items()
            for layer, value in enumerate(values[first:].unbind(), first)
        }
