"""Settings of SG-DETR: presets, contradictions, and how many there are."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from mrmodel.config.base import validate_section
from mrmodel.errors import ConfigError
from mrmodel.models.sg_detr.settings import SgDetrSettings

ROBUST = dict.fromkeys(("legacy_padding", "legacy_next_negative", "legacy_anchor_unit"), False)


def settings_of(**given: Any) -> SgDetrSettings:
    return validate_section(SgDetrSettings, given, "models.sg_detr")


def test_robust_is_the_default_and_departs_in_three_values() -> None:
    released = settings_of(preset="released").model_dump()
    assert all(released[name] for name in ROBUST)
    assert settings_of().model_dump() == released | ROBUST | {"preset": "robust"}
    assert settings_of(preset="robust") == settings_of()


def test_published_values() -> None:
    """Of the run on QVHighlights."""
    s = settings_of(preset="released")
    sizes = (s.hidden, s.heads, s.ffn, s.queries, s.dropout, s.drop_path, s.input_dropout, s.prior)
    assert sizes == (256, 8, 1024, 25, 0.1, 0.15, 0.5, 0.35)
    assert tuple(s.match.model_dump().values()) == (10.0, 1.0, 4.0, 1.0)
    assert tuple(s.loss.weights.model_dump().values()) == (
        1.0, 10.0, 1.0, 5.0, 1.0, 0.5, 0.5, 2.0, 0.1, 2.0, 0.5, 1.0, 3.0,
    )  # fmt: skip
    assert (s.loss.background_weight, s.loss.margin) == (0.1, 0.15)
    assert not s.legacy_rank_axis


@pytest.mark.parametrize("preset", ["released", "robust"])
def test_a_written_key_wins_and_its_neighbours_stay(preset: str) -> None:
    settings = settings_of(preset=preset, anchor_topk=3, legacy_padding=True)
    assert settings.anchor_topk == 3
    assert settings.legacy_padding
    assert settings.legacy_anchor_unit == (preset == "released")
    assert settings_of(**settings.model_dump()) == settings


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"hidden": 36}, "not a multiple of heads"),
        ({"anchor_head": False}, "auxiliary_queries needs anchor_head"),
        ({"preset": "paper"}, "preset"),
        ({"prior": 1.0}, "prior"),
        ({"anchor_topk": 0}, "anchor_topk"),
        # Keys of earlier versions.
        ({"detector": "hybrid"}, "unknown key"),
        ({"dn": {"groups": 5}}, "unknown key"),
        ({"local": {"space": "raw"}}, "unknown key"),
        ({"atss": {"levels": 5}}, "unknown key"),
        ({"loss": {"weights": {"l1": 10.0}}}, "unknown key"),
        ({"match": {"cls": "sdet"}}, "unknown key"),
    ],
)
def test_contradictions_and_unknown_keys_are_refused(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.sg_detr.*{rule}"):
        settings_of(**given)


def leaves(section: type[BaseModel]) -> list[str]:
    """Dotted names of the values of a section."""
    found = []
    for name, field in section.model_fields.items():
        inner: Any = field.annotation
        is_section = isinstance(inner, type) and issubclass(inner, BaseModel)
        found += [f"{name}.{leaf}" for leaf in leaves(inner)] if is_section else [name]
    return found


def test_there_are_few_settings() -> None:
    names = leaves(SgDetrSettings)
    assert {"anchor_topk", "loss.weights.span", "preset"} <= set(names)
    assert len(names) <= 55
