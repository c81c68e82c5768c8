"""What a search may change of SA-DETR (sa_detr.md, section 10)."""

from __future__ import annotations

from mrmodel.models.sa_detr_settings import DEFAULT_MARGIN
from mrmodel.search_space import Choice, FloatRange, IntRange, SearchSpace, Value

_WINDOWS: dict[str, list[Value]] = {"highlights_only": [False]}
_NOISE: dict[str, list[Value]] = {
    **_WINDOWS,
    "dn.mode": ["positive_only", "fixed", "curriculum"],
}
_NEGATIVES: dict[str, list[Value]] = {**_WINDOWS, "dn.mode": ["fixed", "curriculum"]}

SEARCH_SPACE: SearchSpace = {
    "loss.align": FloatRange(low=0.1, high=3.0, log=True),
    "loss.saliency": FloatRange(low=0.5, high=6.0),
    "loss.quality": FloatRange(low=0.3, high=3.0, log=True, when=_WINDOWS),
    "quality.w_matched": Choice(
        choices=[1.0, 3.0, 10.0], when={**_WINDOWS, "quality.weighting": ["matched"]}
    ),
    "quality.margin": FloatRange(low=0.2, high=0.6, when=_NEGATIVES, unset=DEFAULT_MARGIN),
    "gauss.mode": Choice(choices=["mul_logits", "add_log", "none"], when=_WINDOWS),
    "gauss.alpha": FloatRange(
        low=1.0, high=6.0, when={**_WINDOWS, "gauss.mode": ["mul_logits", "add_log"]}
    ),
    "dn.sigma_p": FloatRange(low=0.1, high=0.4, when=_NOISE),
    # The design goes to 0.6 and cuts sigma_p + delta at 0.95; here no pair needs a cut.
    "dn.delta": FloatRange(low=0.2, high=0.55, when=_NEGATIVES),
    "dn.groups": IntRange(low=2, high=8, when=_NOISE),
    "align.samples": Choice(choices=[5, 10, 15, 20], when=_WINDOWS),
    "train.run.lr": FloatRange(low=5e-5, high=4e-4, log=True),
    "train.weight_decay": FloatRange(low=1e-5, high=1e-2, log=True),
}
