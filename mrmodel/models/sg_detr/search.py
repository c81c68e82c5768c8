"""What a search may change of SG-DETR (sg_detr.md, section 13)."""

from __future__ import annotations

from mrmodel.models.settings import SUPPRESSION
from mrmodel.search_space import Choice, FloatRange, IntRange, SearchSpace, Value

_HYBRID: dict[str, list[Value]] = {"detector": ["hybrid"], "highlights_only": [False]}
_DENOISING: dict[str, list[Value]] = {
    "detector": ["dino", "hybrid"],
    "dn.enabled": [True, None],
    "highlights_only": [False],
}
_WINDOWS: dict[str, list[Value]] = {"highlights_only": [False]}
_FUSION: dict[str, list[Value]] = {**_HYBRID, "postprocess.fusion.enabled": [True]}

# Loss weights relative to that of the span loss, noise of the denoising queries, and the schedule.
SEARCH_SPACE: SearchSpace = {
    "loss.weights.iou": FloatRange(
        low=0.3, high=5.0, log=True, when={**_WINDOWS, "iou_head": [True]}
    ),
    "loss.weights.ce": FloatRange(low=2.0, high=8.0, when=_WINDOWS),
    "loss.weights.hl": FloatRange(low=0.3, high=3.0, log=True),
    "loss.weights.aux": FloatRange(
        low=0.1, high=3.0, log=True, when={**_HYBRID, "aux.enabled": [True, None]}
    ),
    "loss.weights.atss": FloatRange(low=0.3, high=3.0, log=True, when=_HYBRID),
    "dn.noise_scale": FloatRange(low=0.2, high=0.8, when=_DENOISING),
    "dn.groups": IntRange(low=2, high=8, when={**_DENOISING, "dn.group_mode": ["fixed"]}),
    "loss.smooth_l1_beta": Choice(choices=[0.0, 0.05, 0.1, 1.0], when=_WINDOWS),
    "loss.cls.eos": FloatRange(low=0.05, high=0.3, when=_WINDOWS),
    "atss.anchor_scale": Choice(choices=[2.0, 3.0, 4.0], when=_HYBRID),
    "train.run.lr": FloatRange(low=1e-4, high=8e-4, log=True),
    "train.weight_decay": FloatRange(low=1e-4, high=1e-1, log=True),
}

# On stored detections: how the windows of decoder and anchors become one list.
POST_HOC_SPACE: SearchSpace = {
    "postprocess.alpha": FloatRange(low=0.2, high=0.8, when={**_WINDOWS, "iou_head": [True]}),
    "postprocess.fusion.iou_thr": FloatRange(low=0.5, high=0.95, when=_FUSION),
    "postprocess.fusion.weights.1": FloatRange(low=0.2, high=4.0, log=True, when=_FUSION),
    "postprocess.fusion.conf": Choice(choices=["avg", "max"], when=_FUSION),
    **SUPPRESSION,
}
