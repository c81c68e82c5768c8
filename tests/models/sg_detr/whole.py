"""A small SG-DETR away from its first values, its parts on their own, and masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from mrmodel.models.sg_detr.detector import Detector
from mrmodel.models.sg_detr.model import SgDetr
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.types import Batch, Targets
from tests.conformance.test_models import TEXT_DIM, VIDEO_DIM, make_batch, make_targets
from tests.models.small import away_from_the_start, merged

D = 16
SMALL: dict[str, Any] = {
    "hidden": D,
    "heads": 2,
    "ffn": 24,
    "queries": 4,
    "dropout": 0.0,
    "drop_path": 0.0,
    "input_dropout": 0.0,
    "cross_attention_layers": 1,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "anchor_head_layers": 1,
}
Part = TypeVar("Part", bound=nn.Module)


def settings_of(**changes: Any) -> SgDetrSettings:
    return SgDetrSettings.model_validate(merged(SMALL, changes))


def small_model(
    spread: float = 0.1, dims: tuple[int, int] = (VIDEO_DIM, TEXT_DIM), **changes: Any
) -> SgDetr:
    """See `away_from_the_start`."""
    return cast("SgDetr", away_from_the_start("sg_detr", merged(SMALL, changes), spread, dims))


def detector_of(model: SgDetr) -> Detector:
    assert model.detector is not None
    return model.detector


def shaken(module: Part, spread: float = 0.3) -> Part:
    """Every parameter away from its first value, so that none is zero or like another one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += spread * torch.randn_like(parameter)
    return module


def long_data() -> tuple[Batch, Targets]:
    """Two videos with windows of all sizes, so that every level has a positive anchor."""
    batch = make_batch((64, 9), (4, 6))
    widths = torch.tensor([3.0, 7.0, 15.0, 31.0, 60.0, 36.0])
    spans = torch.stack((torch.full_like(widths, 0.5), widths / 64), dim=-1)
    return batch, replace(make_targets(batch), spans_cxw=spans, span_counts=[5, 1])


def mask_of(lengths: list[int], padding: int = 0) -> Tensor:
    return torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]


def rows_of(lengths: list[int], padding: int = 0, garbage: float = 0.0, seed: int = 0) -> Tensor:
    """(B, L, D); a sample's rows do not depend on the others, padding is `garbage`."""
    rows = torch.full((len(lengths), max(lengths) + padding, D), garbage)
    for i, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(100 * seed + i)
        rows[i, :length] = torch.randn(length, D, generator=generator)
    return rows


def close(found: Any, expected: Any, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)
