"""The section ``postprocess``: from a trained model's output to its predicted windows.

It does not affect training. The stage ``package`` writes it to ``serving.json`` next to the
weights, where inference and evaluation read it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from mrmodel.config.base import Count, Positive, Section, Share

# The windows of SG-DETR that evaluation reports by themselves, beside those that are served.
SYSTEMS = ("decoder", "anchors")


class _Extended(Section):
    """A section whose later keys have defaults: what was done before there were such keys."""

    @model_serializer(mode="wrap")
    def _as_earlier_files(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without later keys at their defaults: serving.json and digests stay as they were."""
        tree: dict[str, Any] = write(self)
        fields = type(self).model_fields
        return {
            key: value
            for key, value in tree.items()
            if fields[key].is_required() or getattr(self, key) != fields[key].default
        }


class AnchorSelection(_Extended):
    """Selection of SG-DETR's anchor windows (section 3.6 of the paper).

    Attributes:
        top_k: number of windows considered, by score.
        nms_iou: NMS threshold.
        keep: maximum number of windows kept.
        min_score: windows are considered if they score above this.
        keep_empty: windows that lie outside the video are considered too, as in the published
            code: they take places among those kept, and fusion drops them.
    """

    top_k: Count
    nms_iou: Share
    keep: Count
    min_score: Share = 0.0
    keep_empty: bool = False


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


class OfficialFinish(Section):
    """Last steps of SG-DETR's published post-processing, in this order.

    Attributes:
        max_end_s: windows are clamped to [0, max_end_s].
        round_to_s: window ends become multiples of this.
        min_window_s: shorter windows are extended to this length around their middle.
    """

    max_end_s: Positive
    round_to_s: Positive
    min_window_s: Positive


class PostprocessConfig(_Extended):
    """The section ``postprocess`` of params.yaml, and the content of serving.json.

    Attributes:
        alpha: windows are ranked by p^alpha IoU^(1 - alpha) if a model predicts the IoU.
        anchors: selection of the anchor windows for fusion.
        anchors_alone: their selection where they are reported by themselves; None: as `anchors`.
        fusion: see `FusionSettings`.
        official: the last steps in mode ``official`` of `evaluate`; None: those published for the
            data set, see `Protocol.official_postprocess`.
        round_to_clips: round window ends to multiples of a clip.
        nms_iou: NMS threshold for the final windows; below 0: off.
        max_windows: maximum number of windows per query.
    """

    alpha: Share
    anchors: AnchorSelection
    anchors_alone: AnchorSelection | None = None
    fusion: FusionSettings
    official: OfficialFinish | None = None
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
