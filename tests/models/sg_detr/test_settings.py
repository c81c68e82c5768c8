"""Settings of SG-DETR: presets, contradictions, what the detectors switch on."""

from __future__ import annotations

from typing import Any

import pytest

from mrmodel.config.base import validate_section
from mrmodel.errors import ConfigError
from mrmodel.models.sg_detr.settings import SgDetrSettings


def settings_of(**given: Any) -> SgDetrSettings:
    return validate_section(SgDetrSettings, given, "models.sg_detr")


@pytest.mark.parametrize(
    ("preset", "beta", "norm", "reduction", "tau"),
    [("paper", 1.0, "twelve", "sum", 1.0), ("robust", 0.1, "active", "mean", 0.07)],
)
def test_values_of_the_presets(
    preset: str, beta: float, norm: str, reduction: str, tau: float
) -> None:
    settings = settings_of(preset=preset)
    assert settings.loss.smooth_l1_beta == beta
    assert settings.loss.hl.rctl_norm == norm
    assert settings.loss.hl.neg_reduction == reduction
    assert settings.loss.align.tau == tau


def test_presets_differ_in_nothing_else() -> None:
    written = {
        "smooth_l1_beta": 1.0,
        "hl": {"rctl_norm": "twelve", "neg_reduction": "sum"},
        "align": {"tau": 1.0},
    }
    robust = settings_of(preset="robust", loss=written)
    assert robust.model_dump() == settings_of().model_dump() | {"preset": "robust"}


def test_written_key_wins_and_its_neighbours_stay() -> None:
    settings = settings_of(
        preset="robust", loss={"hl": {"neg_reduction": "sum"}, "iou_target": "matched"}
    )
    assert settings.loss.hl.neg_reduction == "sum"
    assert settings.loss.hl.rctl_norm == "active"
    assert settings.loss.smooth_l1_beta == 0.1
    assert settings.loss.iou_target == "matched"


def test_settings_survive_being_written_down() -> None:
    settings = settings_of(preset="robust", loss={"align": {"tau": 1.0}}, detector="dino")
    assert settings_of(**settings.model_dump()) == settings


@pytest.mark.parametrize(
    "given",
    [
        {"sgca": {"gate": "pair"}, "local": {"space": "projected"}},
        {"sgca": {"gate": "pair_renorm"}, "local": {"space": "projected"}},
        {"detector": "dino", "aux": {"enabled": True}},
        {"detector": "dab", "aux": {"enabled": True}},
        {"infer": {"alpha": 0.5}},
        {"detector": "dab", "dn": {"enabled": True}},
        {"detector": "dab", "qs": {"enabled": True}},
        {"iou_head": False, "match": {"cls": "sdet"}},
        {"iou_head": False, "match": {"cls": "additive"}},
        {"hidden": 36, "heads": 8},
        {"preset": "best"},
    ],
)
def test_contradictions_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"models\.sg_detr"):
        settings_of(**given)


PARTS = ("uses_selector", "uses_denoising", "uses_anchors", "uses_auxiliary")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"detector": "dab"}, ""),
        ({"detector": "dino"}, "uses_selector uses_denoising"),
        ({"detector": "hybrid"}, " ".join(PARTS)),
        ({"qs": {"enabled": False}}, " ".join(PARTS[1:])),
        ({"dn": {"enabled": False}}, " ".join(PARTS[:1] + PARTS[2:])),
        ({"aux": {"enabled": False}}, " ".join(PARTS[:3])),
    ],
)
def test_parts_of_the_detectors(given: dict[str, Any], parts: str) -> None:
    settings = settings_of(**given)
    assert [part for part in PARTS if getattr(settings, part)] == parts.split()


@pytest.mark.parametrize(
    ("given", "cost"),
    [({}, "sdet"), ({"iou_head": False}, "prob"), ({"match": {"cls": "focal"}}, "focal")],
)
def test_class_cost(given: dict[str, Any], cost: str) -> None:
    assert settings_of(**given).class_cost == cost
