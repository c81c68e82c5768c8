"""The section ``postprocess``: from a trained model's output to the windows that it answers with.

It decides no weights. The stage ``package`` writes it into ``serving.json`` beside the weights, and
whoever answers or scores with the model reads it there.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mrmodel.config.base import Count, Positive, Section, Share


class AnchorSelection(Section):
    """Which anchor windows of SG-DETR enter fusion (its paper, section 3.6).

    Attributes:
        top_k: the best of them by score that are looked at.
        nms_iou: IoU with a better one above which a window is dropped.
        keep: how many are kept at most.
    """

    top_k: Count
    nms_iou: Share
    keep: Count


class FusionSettings(Section):
    """Weighted boxes fusion of decoder and anchor windows (Solovyev et al. 2021), of SG-DETR.

    Attributes:
        enabled: false: the decoder's windows are the answer. True: fused, where there are anchors.
        conf: score of a fused window: the mean or the best of its members.
        iou_thr: IoU above which windows are fused.
        weights: of the decoder's and of the anchors' windows.
        skip: windows below this score are dropped.
    """

    enabled: bool
    conf: Literal["avg", "max"]
    iou_thr: Share
    weights: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    skip: Share


class PostprocessConfig(Section):
    """The section ``postprocess`` of params.yaml, and what serving.json holds.

    Attributes:
        alpha: windows are ranked by p^alpha IoU^(1 - alpha) where a model predicts the IoU.
        anchors: see `AnchorSelection`.
        fusion: see `FusionSettings`.
        round_to_clips: window ends become multiples of a clip.
        nms_iou: IoU above which the worse of two final windows is dropped; below 0: none is.
        max_windows: windows of one answer.
    """

    alpha: Share
    anchors: AnchorSelection
    fusion: FusionSettings
    round_to_clips: bool
    nms_iou: Annotated[float, Field(ge=-1.0, le=1.0)]
    max_windows: Count


# Validation in training finishes windows by this whatever params.yaml says, so that `postprocess`
# may be chosen on a trained model without training again.
VALIDATION = PostprocessConfig(
    alpha=0.5,
    anchors=AnchorSelection(top_k=100, nms_iou=0.6, keep=25),
    fusion=FusionSettings(enabled=True, conf="avg", iou_thr=0.75, weights=[1.0, 1.0], skip=0.0),
    round_to_clips=True,
    nms_iou=-1.0,
    max_windows=10,
)
