from __future__ import annotations

from typing import Any

import pytest
import yaml

from mrmodel.config.intervid import INTERVID_PRESETS, IntervidSettings
from mrmodel.config.schema import parse_config
from mrmodel.errors import ConfigError
from tests.pretraining.tables import PARAMS, settings


def config_with(path: str, value: object) -> Any:
    tree = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    node = tree
    *sections, name = path.split(".")
    for section in sections:
        node = node[section]
    node[name] = value
    return parse_config(tree)


def test_presets_differ_where_the_design_says() -> None:
    paper, robust = settings("paper"), settings("robust")
    changed = paper.model_dump() | {"preset": "robust"}
    for (section, field), value in INTERVID_PRESETS["robust"].items():
        changed[section][field] = value
    assert IntervidSettings.model_validate(changed) == robust
    assert (paper.labels.grade_stats, robust.labels.grade_stats) == ("original", "new")
    assert (paper.labels.gap_merge, robust.labels.gap_merge) == (0, 1)
    assert (paper.captions.min_interval_s, robust.captions.min_interval_s) == (4.0, 8.0)
    assert INTERVID_PRESETS["paper"].keys() == INTERVID_PRESETS["robust"].keys()


@pytest.mark.parametrize("preset", ["paper", "robust"])
def test_a_value_that_departs_from_its_preset_is_refused(preset: str) -> None:
    other = {"paper": "robust", "robust": "paper"}[preset]
    tree = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    for (section, name), value in INTERVID_PRESETS[preset].items():
        tree["intervid"][section][name] = value
    tree["intervid"]["preset"] = preset
    parse_config(tree)
    tree["intervid"]["labels"]["min_run"] = INTERVID_PRESETS[other]["labels", "min_run"]
    with pytest.raises(ConfigError, match=r"intervid\.labels\.min_run = .*or say `preset: custom`"):
        parse_config(tree)
    tree["intervid"]["preset"] = "custom"
    assert parse_config(tree).intervid.preset == "custom"


@pytest.mark.parametrize(
    ("path", "value", "rule"),
    [
        ("intervid.preset", "strict", "intervid.preset"),
        ("intervid.labels.min_rum", 2, "did you mean 'min_run'"),
        ("intervid.captions.rules.generc", True, "did you mean 'generic'"),
        ("intervid.val_share", 1.0, "intervid.val_share"),
        ("intervid.captions.min_words", 41, "above its maximum"),
        ("intervid.labels.min_coverage", 0.9, "min_coverage is above max_coverage"),
        ("intervid.segment.length_s", 151.0, "whole number of clips of 2 s"),
        ("intervid.segment.offset", "left", "intervid.segment.offset"),
        ("features.clip_len_s", 0.25, "multiple of 0.1 s"),
    ],
)
def test_mistakes_are_named(path: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(path, value)
    assert rule in str(caught.value)
