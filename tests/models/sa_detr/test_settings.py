"""Settings of SA-DETR: presets, contradictions, what the switches bring into being."""

from __future__ import annotations

from typing import Any

import pytest

from mrmodel.config.base import validate_section
from mrmodel.errors import ConfigError
from mrmodel.models.sa_detr.settings import SaDetrSettings


def settings_of(**given: Any) -> SaDetrSettings:
    return validate_section(SaDetrSettings, given, "models.sa_detr")


def test_values_of_the_presets() -> None:
    paper, robust = settings_of(), settings_of(preset="robust")
    assert paper.gauss.mode == "mul_logits"
    assert robust.gauss.mode == "add_log"
    assert (paper.enhance.norm, paper.enhance.scaled, paper.enhance.zero_init) == (
        "none", False, False,
    )  # fmt: skip
    assert (robust.enhance.norm, robust.enhance.scaled, robust.enhance.zero_init) == (
        "softmax", True, True,
    )  # fmt: skip
    assert (paper.saliency.rctl_norm, paper.saliency.neg_reduction) == ("twelve", "sum")
    assert (robust.saliency.rctl_norm, robust.saliency.neg_reduction) == ("active", "mean")


def test_presets_differ_in_nothing_else() -> None:
    robust = settings_of(
        preset="robust",
        gauss={"mode": "mul_logits"},
        enhance={"norm": "none", "scaled": False, "zero_init": False},
        saliency={"rctl_norm": "twelve", "neg_reduction": "sum"},
    )
    assert robust.model_dump() == settings_of().model_dump() | {"preset": "robust"}


def test_a_written_key_wins_and_its_neighbours_stay() -> None:
    settings = settings_of(preset="robust", enhance={"norm": "none", "gate": "channel"})
    assert settings.enhance.norm == "none"
    assert settings.enhance.gate == "channel"
    assert settings.enhance.zero_init


def test_settings_survive_being_written_down() -> None:
    settings = settings_of(preset="robust", dn={"mode": "curriculum"}, init={"anchors": "learned"})
    assert settings_of(**settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"hidden": 36, "heads": 8}, "multiple of heads"),
        ({"dn": {"sigma_p": 0.5, "delta": 0.5}}, "below 1"),
        ({"dn": {"sigma_p": 0.0}}, "dn.sigma_p"),
        ({"dn": {"delta": 0.0}}, "dn.delta"),
        ({"dn": {"mode": "curriculum", "delta": 0.2, "delta_end": 0.3}}, "delta_end 0.3 is above"),
        ({"dn": {"mode": "none"}, "quality": {"margin": 0.4}}, "dn.mode 'none' lacks"),
        ({"dn": {"mode": "positive_only"}, "quality": {"margin": 0.4}}, "'positive_only' lacks"),
        ({"dn": {"mode": "none"}, "quality": {"on_noise": True}}, "quality.on_noise needs"),
        ({"init": {"anchors": "learned", "loss": True}}, "init.anchors 'dynamic'"),
        ({"init": {"anchors": "learned", "detach_ref": True}}, "init.detach_ref needs"),
        ({"init": {"loss": False, "detach_ref": True}}, "init.detach_ref needs"),
        ({"gauss": {"mode": "add"}}, "gauss.mode"),
        ({"preset": "best"}, "preset"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=r"models\.sa_detr") as error:
        settings_of(**given)
    assert rule in str(error.value)


PARTS = (
    "uses_noise", "uses_negatives", "judges_first_spans", "detaches_first_spans", "reads_words",
    "enhances", "needs_sentence",
)  # fmt: skip
OFF = {"vtc": {"enabled": False}, "ctm": {"enabled": False}, "enhance": {"enabled": False}}


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, ""),
        ({"dn": {"mode": "none"}}, "uses_noise uses_negatives"),
        ({"dn": {"mode": "positive_only"}}, "uses_negatives"),
        ({"dn": {"mode": "curriculum"}}, ""),
        ({"init": {"loss": False}}, "judges_first_spans detaches_first_spans"),
        ({"init": {"anchors": "learned"}}, "judges_first_spans detaches_first_spans"),
        ({"init": {"detach_ref": False}}, "detaches_first_spans"),
        ({"enhance": {"enabled": False}}, "enhances"),
        (
            {"enhance": {"enabled": False}, "ctm": {"stage": "before"}},
            "reads_words enhances needs_sentence",
        ),
        (OFF | {"vtc": {"stage": "after"}}, "enhances needs_sentence"),
        (OFF, "reads_words enhances needs_sentence"),
        ({"highlights_only": True}, "enhances"),
    ],
)
def test_parts_that_the_switches_leave_out(given: dict[str, Any], missing: str) -> None:
    settings = settings_of(**given)
    assert [part for part in PARTS if not getattr(settings, part)] == missing.split()


@pytest.mark.parametrize(
    ("mode", "deltas"), [("fixed", [0.4, 0.4, 0.4]), ("curriculum", [0.4, 0.25, 0.1])]
)
def test_delta_over_the_training(mode: str, deltas: list[float]) -> None:
    settings = settings_of(dn={"mode": mode})
    assert [settings.delta_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx(deltas)


def test_margin_is_the_published_one_unless_written() -> None:
    assert settings_of().margin == 0.4
    assert settings_of(quality={"margin": 0.0}).margin == 0.0
