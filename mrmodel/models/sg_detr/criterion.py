"""All losses of SG-DETR by name, and their weights (eq. 15; sg_detr.md, sections 5.2 to 5.6).

A name is ``<group>/.../<term>``: ``hl/local/margin``, ``detr/l2/giou``, ``selector/cls``,
``dn/l0/cls``, ``auxq/l1/iou``, ``atss/centerness``, ``aux/align``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrmodel.losses.criterion import Criterion
from mrmodel.losses.highlight import HighlightLoss
from mrmodel.losses.windows import PaddedWindows, pad_windows
from mrmodel.models.sg_detr.loss_alignment import AlignmentLoss
from mrmodel.models.sg_detr.loss_anchors import AnchorLoss
from mrmodel.models.sg_detr.loss_detection import DetectionLoss, known_truth, matched_truth
from mrmodel.models.sg_detr.loss_set_matching import LayerwiseMatcher
from mrmodel.models.sg_detr.output import Heads, SgDetrOutput, TrainingParts
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.types import Batch, ModelOutput, Targets

SELECTOR_COST = "prob"  # the selector has no IoU head


class SgDetrCriterion(Criterion):
    """Highlight, detection, anchor and alignment losses; a part that the output lacks is left out.

    The sum over decoder layers is plain; the four groups of eq. 15 have weight 1 as published.
    """

    def __init__(self, settings: SgDetrSettings) -> None:
        self.settings = settings
        self.highlight = HighlightLoss(settings.loss.hl)
        self.matcher = LayerwiseMatcher(settings)
        self.detection = DetectionLoss(settings)
        self.anchors = AnchorLoss(settings)
        self.alignment = AlignmentLoss(settings.loss.align)
        self._weights = _weights(settings)

    def __call__(self, output: ModelOutput, targets: Targets, batch: Batch) -> dict[str, Tensor]:
        """Unweighted losses by name, float32 scalars; `output` must come from training mode."""
        if not isinstance(output, SgDetrOutput) or output.training is None:
            raise TypeError("the losses of SG-DETR need the output of SG-DETR in training mode")
        parts = output.training
        losses = self._highlight(output, parts, targets, batch)
        if parts.match is not None:
            losses |= self._detection(parts.match, parts, pad_windows(targets))
        if parts.alignment is not None:
            labels, mask = targets.saliency_labels, batch.video_mask
            losses |= self.alignment(parts.alignment, labels, mask, batch.text_keys)
        return losses

    def weight(self, name: str, epoch: int = 0) -> float:
        """Weight of a loss by its name."""
        return self._weights[name.partition("/")[0], name.rpartition("/")[2]]

    def _highlight(
        self, output: SgDetrOutput, parts: TrainingParts, targets: Targets, batch: Batch
    ) -> dict[str, Tensor]:
        """Every term on the local and on the global scores (eq. 11)."""
        scores = {
            "local": (parts.local, parts.negative_local),
            "global": (output.saliency, parts.negative_global),
        }
        judged = self.settings.loss.hl.on
        if not self.settings.gsm.enabled:
            judged = judged[:1]  # both scores are the same one: judge it once
        own = torch.stack([scores[kind][0] for kind in judged])
        negative = torch.stack([scores[kind][1] for kind in judged])
        found = self.highlight(own, negative, parts.has_negative, targets, batch.video_mask)
        return {
            f"hl/{kind}/{term}": value
            for term, values in found.items()
            for kind, value in zip(judged, values.unbind(), strict=True)
        }

    def _detection(
        self, match: Heads, parts: TrainingParts, windows: PaddedWindows
    ) -> dict[str, Tensor]:
        matched = self.matcher(match, windows, self.settings.class_cost)
        groups = {"detr": (match, matched_truth(matched, windows))}
        if parts.dn is not None and parts.dn_queries is not None:
            groups["dn"] = (parts.dn, known_truth(parts.dn_queries))
        if parts.aux is not None and parts.aux_queries is not None:
            groups["auxq"] = (parts.aux, known_truth(parts.aux_queries))
        found = self.detection.of_groups(list(groups.values()), windows)
        losses = {
            f"{group}/l{layer}/{term}": value
            for group, of_group in zip(groups, found, strict=True)
            for term, values in of_group.items()
            for layer, value in enumerate(values.unbind())
        }
        if parts.selector is not None:
            used = parts.selector_used
            chosen = self.matcher(parts.selector, windows, SELECTOR_COST, used)
            of_clips = self.detection(parts.selector, matched_truth(chosen, windows, used), windows)
            losses |= {f"selector/{term}": value[0] for term, value in of_clips.items()}
        if parts.idle is not None:
            losses |= self._absent(match, parts, parts.idle)
        if parts.anchors is not None and parts.anchor_targets is not None:
            losses |= self.anchors(parts.anchors, parts.anchor_targets, windows)
        return losses

    def _absent(self, match: Heads, parts: TrainingParts, idle: Tensor) -> dict[str, Tensor]:
        """The terms of known queries that the batch has none of: 0, so that the names stay."""
        s = self.settings
        missing = [("dn", s.uses_denoising and parts.dn is None)]
        missing.append(("auxq", s.uses_auxiliary and parts.aux is None))
        terms = ["cls", "l1", "giou"] + (["iou"] if match.iou_logits is not None else [])
        return {
            f"{group}/l{layer}/{term}": idle
            for group, is_missing in missing
            if is_missing
            for layer in range(len(match.logits))
            for term in terms
        }


def _weights(settings: SgDetrSettings) -> dict[tuple[str, str], float]:
    """Weight of each (group, term)."""
    w = settings.loss.weights
    terms = {"cls": w.ce, "l1": w.l1, "giou": w.giou, "iou": w.iou, "centerness": w.centerness}
    # Co-DETR multiplies its anchor heads by twice the number of decoder layers.
    layers = 2.0 * settings.decoder.layers if settings.atss.layer_scale else 1.0
    groups = {
        "detr": w.detr,
        "selector": w.detr,
        "dn": w.detr,
        "auxq": w.detr * settings.aux.weight,
        "atss": w.atss * layers,
    }
    weights = {(g, t): a * b for g, a in groups.items() for t, b in terms.items()}
    highlight = ("margin", "rctl", "bce_pos", "bce_neg")
    weights |= {("hl", term): w.hl for term in highlight}
    return weights | {("aux", term): w.aux for term in ("align", "bce")}
