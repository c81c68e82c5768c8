"""The section ``postprocess``: from a trained model's output to its predicted windows.

It does not affect training. The stage ``package`` writes it to ``serving.json`` next to the
weights, where inference and evaluation read it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mrmodel.config.base import Count, Positive, Section, Share


class AnchorSelection(Section):
    """Selection of SG-DETR's anchor windows for fusion (section 3.6 of the paper).

    Attributes:
        top_k: number of windows considered, by score.
        nms_iou: NMS threshold.
        keep: maximum number of windows kept.
    """

    top_k: Count
    nms_iou: Share
    keep: Count


class FusionSettings(Section):
    """Weighted boxes fusion (Solovyev et al. 2021) of SG-DETR's decoder and anchor windows.

    Attributes:
        enabled: false: only the decoder's windows. True: fused, if there are anchors.
        conf: score of a fused window: the mean or the maximum of its members.
        iou_thr: IoU above which windows are fused.
        weights: weights of the decoder's and the anchors' windows.
        skip: windows below this score are dropped.
    """

    enabled: bool
    conf: Literal["avg", "max"]
    iou_thr: Share
    weights: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    skip: Share


class PostprocessConfig(Section):
    """The section ``postprocess`` of params.yaml, and the content of serving.json.

    Attributes:
        alpha: windows are ranked by p^alpha IoU^(1 - alpha) if a model predicts the IoU.
        anchors: see `AnchorSelection`.
        fusion: see `FusionSettings`.
        round_to_clips: round window ends to multiples of a clip.
        nms_iou: NMS threshold for the final windows; below 0: off.
        max_windows: maximum number of windows per query.
    """

    alpha: Share
    anchors: AnchorSelection
    fusion: FusionSettings
    round_to_clips: bool
    nms_iou: Annotated[float, Field(ge=-1.0, le=1.0)]
    max_windows: Count


# Post-processing of validation during training, regardless of params.yaml, so that `postprocess`
# can be tuned on a trained model without retraining.
VALIDATION = PostprocessConfig(
    alpha=0.5,
    anchors=AnchorSelection(top_k=100, nms_iou=0.6, keep=25),
    fusion=FusionSettings(enabled=True, conf="avg", iou_thr=0.75, weights=[1.0, 1.0], skip=0.0),
    round_to_clips=True,
    nms_iou=-1.0,
    max_windows=10,
)
