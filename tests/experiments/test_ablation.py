import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrmodel import presets
from mrmodel.config.schema import parse_config
from mrmodel.errors import ConfigError, DataError
from mrmodel.experiments.ablation import ablation_table, config_of_row
from mrmodel.experiments.tables import made_with
from mrmodel.models.sg_detr.settings import SgDetrSettings
from mrmodel.report.studies import (
    ABLATION,
    PAPER_METRICS,
    SWITCHES,
    ablation_sentences,
    ablation_tables,
    markdown_page,
)
from mrmodel.stages.report import STUDIES, study_sections
from tests.project import ROOT

STUDY = yaml.safe_load((ROOT / "studies/params.yaml").read_text())["ablation"]

# The order of `SWITCHES`: guided cross attention, IoU head, global saliency; then the detector.
DAB, HYBRID = (False, False, False, 10), (True, True, True, 25)
ROWS: dict[str, tuple[Any, ...]] = {
    "a": (False, False, False, *DAB),
    "b": (True, False, False, *DAB),
    "c": (True, True, False, *DAB),
    "d": (True, True, True, *DAB),
    "e": (True, True, True, *HYBRID),
}


def flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted path of every value."""
    found = {}
    for key, value in tree.items():
        below = flat(value, f"{path}{key}.") if isinstance(value, dict) and value else None
        found |= below if below is not None else {path + key: value}
    return found


@cache
def rendered(preset: str) -> str:
    return presets.render(preset)


def raw_of(preset: str) -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(rendered(preset))
    return raw


def settings_of(preset: str) -> dict[str, Any]:
    raw = raw_of(preset)["models"]["sg_detr"]
    return flat(SgDetrSettings.model_validate(raw).model_dump())


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_the_switches_of_the_design_and_no_other_difference(row: str) -> None:
    full, found = settings_of("sg_detr_ablation_e"), settings_of(f"sg_detr_ablation_{row}")
    assert tuple(found[switch] for switch in SWITCHES) == ROWS[row]
    differing = {path for path in full if full[path] != found[path]}
    expected = {
        switch
        for switch, value, of_e in zip(SWITCHES, ROWS[row], ROWS["e"], strict=True)
        if value != of_e
    }
    assert differing == expected


def test_row_e_is_the_model_of_the_sample_corpus() -> None:
    sample, full = settings_of("sample"), settings_of("sg_detr_ablation_e")
    assert full == sample


def test_the_variant_with_the_published_values_has_the_size_of_row_e() -> None:
    full, released = settings_of("sg_detr_ablation_e"), settings_of("sg_detr_ablation_e_released")
    differing = {path for path in full if full[path] != released[path]}
    assert differing == {"preset", *SgDetrSettings.ROBUST}
    assert released["hidden"] == raw_of("sample")["models"]["sg_detr"]["hidden"]


@pytest.mark.parametrize("row", STUDY["rows"])
@pytest.mark.parametrize("base", ["sample", "miniature"])
def test_every_row_is_a_preset_that_fits_whatever_is_applied(row: str, base: str) -> None:
    config = parse_config(raw_of(base))
    changed = config_of_row(config, row, STUDY["run"]["steps"])
    assert changed.train.models == [row if row in ("qd_detr", "moment_detr") else "sg_detr"]
    assert changed.train.scratch.steps == STUDY["run"]["steps"]
    assert changed.train.scratch.lr == config.train.scratch.lr
    for model, settings in config.models.items():
        assert changed.models[model]["hidden"] == settings["hidden"]
    assert changed.features == config.features


def test_a_row_of_a_recipe_in_epochs_takes_the_steps() -> None:
    config = parse_config(raw_of("charades_sg_detr"))
    scratch = config_of_row(config, "sg_detr_ablation_a", 10).train.scratch
    assert (scratch.steps, scratch.epochs, scratch.schedule) == (10, None, "multistep")


def test_a_row_needs_its_model_in_the_parameters() -> None:
    raw = raw_of("sample")
    del raw["models"]["sg_detr"]
    raw["train"]["models"] = ["qd_detr"]
    config = parse_config(raw)
    with pytest.raises(ConfigError, match=r"models\.sg_detr"):
        config_of_row(config, "sg_detr_ablation_a", 10)


def run(mean: float, guided: bool = True, **changes: Any) -> dict[str, Any]:
    settings = {"preset": "robust", "saliency_guided": guided, "iou_head": True, "queries": 25}
    result = {
        "model": "sg_detr",
        "settings": settings,
        "corpus": "sample",
        "headline": "MR-full-mAP",
        "steps": 800,
        "parameters": 1234567,
        "figures": {"MR-full-mAP": mean, "HL-min-VeryGood-Hit1": 40.0},
    }
    return result | changes


def table() -> dict[str, Any]:
    baseline = {"model": "qd_detr", "settings": {"hidden": 64}, "parameters": 99}
    released = {"preset": "released", "saliency_guided": True}
    return ablation_table(
        {
            "qd_detr": [run(20.0, **baseline), run(21.0, **baseline), run(22.0, **baseline)],
            "sg_detr_ablation_a": [run(mean, guided=False) for mean in (30.0, 32.0, 37.0)],
            "sg_detr_ablation_e": [run(40.0), run(42.0), run(47.0)],
            "sg_detr_ablation_e_released": [
                run(value, settings=released) for value in (39, 40, 41)
            ],
        }
    )


def test_mean_and_sample_standard_deviation_of_a_row() -> None:
    found = table()["rows"]["sg_detr_ablation_a"]
    # (30 + 32 + 37) / 3 = 33; squares of -3, -1, 4 sum to 26, over 2 is 13
    assert found["figures"]["MR-full-mAP"]["mean"] == pytest.approx(33.0)
    assert found["figures"]["MR-full-mAP"]["sd"] == pytest.approx(13.0**0.5)
    assert found["figures"]["HL-min-VeryGood-Hit1"] == {"mean": 40.0, "sd": 0.0}
    assert found["seeds"] == 3
    assert found["switches"]["saliency_guided"] is False
    assert found["values"] == "robust"


def test_the_markdown_has_switches_and_the_papers_figures_beside_ours() -> None:
    text = markdown_page(ablation_sentences(table()), ablation_tables(table()))
    figures, switches, _ = [line for line in text.splitlines() if line.startswith("| a |")]
    assert figures == "| a | 33.00 ± 3.61 | 40.00 ± 0.00 | 48.3 | 68.6 | 1,234,567 |"
    assert switches == "| a | robust | off | on | – | – | – | – | 25 |"
    baseline = next(line for line in text.splitlines() if line.startswith("| qd_detr |"))
    assert baseline == "| qd_detr | 21.00 ± 1.00 | 40.00 ± 0.00 | – | – | 99 |"


def test_the_order_and_the_better_values_are_said() -> None:
    words = " ".join(ablation_sentences(table()))
    assert "800 steps" in words
    assert "over 3 seeds" in words
    assert "Order by MR-full-mAP: e, e_released, a, qd_detr." in words
    assert (
        "robust measures better (MR-full-mAP: robust 43.00 ± 3.61, released 40.00 ± 1.00)" in words
    )


def test_the_best_row_is_the_strong_one() -> None:
    assert [grid.strong for grid in ablation_tables(table())] == [2, None, 2]


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 900), ("corpus", "own"), ("headline", "R1@0.7")]
)
def test_rows_that_do_not_compare_are_refused(key: str, value: object) -> None:
    runs = {"sg_detr_ablation_a": [run(30.0)], "sg_detr_ablation_b": [run(31.0, **{key: value})]}
    with pytest.raises(DataError, match=f"need one {key}"):
        ablation_table(runs)


def test_no_runs_are_no_table() -> None:
    with pytest.raises(DataError, match="need one corpus"):
        ablation_table({})


def test_the_report_shows_the_table_of_its_own_corpus_only(tmp_path: Path) -> None:
    result = tmp_path / "ablation.json"
    sample = parse_config(raw_of("sample"))
    assert study_sections(sample, STUDIES[ABLATION], result) == []
    result.write_text(json.dumps(table()))
    (section,) = study_sections(sample, STUDIES[ABLATION], result)
    beside, switches = section.tables
    assert beside.rows[1][:2] == ["a", "33.00 ± 3.61"]
    assert switches.rows[0][:3] == ["a", "robust", "off"]
    assert study_sections(parse_config(raw_of("miniature")), STUDIES[ABLATION], result) == []


def test_the_papers_figures_are_those_of_its_table() -> None:
    design = {"a": (48.3, 68.6), "b": (50.1, 70.1), "c": (51.1, 69.9), "d": (52.2, 71.1)}
    for row, values in (design | {"e": (55.6, 71.4)}).items():
        assert tuple(figures[row] for figures in PAPER_METRICS.values()) == values


def test_a_table_says_which_commit_it_is_of() -> None:
    assert "Made with commit 0123456789ab." in ablation_sentences(
        table() | {"commit": "0123456789ab"}
    )
    assert not any("commit" in words for words in ablation_sentences(table()))
    assert set(made_with()) <= {"commit"}
    for study in ("ablation", "compare", "pretraining"):
        kept = json.loads((ROOT / f"studies/reports/{study}.json").read_text())
        page = (ROOT / f"studies/reports/{study}.md").read_text()
        assert f"Made with commit {kept['commit']}." in page
