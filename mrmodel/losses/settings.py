"""Settings of losses."""

from __future__ import annotations

from typing import Literal

from mrmodel.config.base import NonNegative, Positive, Section


class ClipScoreSettings(Section):
    """Settings of `highlight.HighlightLoss`."""

    margin: NonNegative = 0.2
    tau: Positive = 0.5
    rctl_norm: Literal["twelve", "active"] = "twelve"
    neg_reduction: Literal["sum", "mean"] = "sum"
