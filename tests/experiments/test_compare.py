import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mrmodel import presets
from mrmodel.components import MODELS
from mrmodel.config.schema import parse_config
from mrmodel.errors import ConfigError, DataError
from mrmodel.evaluate.significance import BootstrapSettings, PerQuery
from mrmodel.experiments.compare import compare_run, comparison_table
from mrmodel.experiments.control_run import with_steps
from mrmodel.experiments.tables import queries_of
from mrmodel.progress import NullReporter
from mrmodel.report.studies import (
    COMPARISON,
    comparison_sentences,
    comparison_tables,
    markdown_page,
)
from mrmodel.stages.evaluate import pairs
from mrmodel.stages.report import STUDIES, study_sections
from tests.project import ROOT

STUDY = yaml.safe_load((ROOT / "studies/params.yaml").read_text())["compare"]
SETTINGS = BootstrapSettings(resamples=400, seed=1)
FIGURE = "MR-full-mAP"


def config_of(preset: str) -> Any:
    return parse_config(yaml.safe_load(presets.render(preset)))


def run(*values: float | None, **changes: Any) -> dict[str, Any]:
    """Result of a run with these values of single queries, two a video."""
    mean = float(np.mean([value for value in values if value is not None]))
    result = {
        "model": "sg_detr",
        "corpus": "sample",
        "steps": 600,
        "parameters": 1234567,
        "headline": FIGURE,
        "figures": {FIGURE: mean, "MR-short-mAP": 5.0, "HL-min-VeryGood-Hit1": 40.0},
        "device": "cpu",
        "threads": 1,
        "training_seconds": 100.0 + mean,
        "queries_per_second": 2000.0,
        "queries": {
            "qids": list(range(len(values))),
            "vids": [f"v{query // 2}" for query in range(len(values))],
            "values": list(values),
        },
    }
    return result | changes


def table(default: str = "sg_detr") -> dict[str, Any]:
    runs = {
        "moment_detr": [run(10.0, 20.0, 30.0, 40.0), run(12.0, 22.0, 32.0, 42.0)],
        "qd_detr": [run(30.0, 30.0, 40.0, 40.0), run(35.0, 35.0, 35.0, 35.0)],
        "sg_detr": [run(31.0, 31.0, 41.0, 41.0), run(35.0, 35.0, 35.0, 35.0)],
    }
    return comparison_table(runs, default, SETTINGS)


def test_a_row_has_means_and_deviations_of_figures_and_costs() -> None:
    row = table()["rows"]["moment_detr"]
    # Means of the runs: 25 and 27; their sample standard deviation is the root of 2.
    assert row["figures"][FIGURE] == pytest.approx({"mean": 26.0, "sd": 2.0**0.5})
    assert row["costs"]["training_seconds"] == pytest.approx({"mean": 126.0, "sd": 2.0**0.5})
    assert row["costs"]["queries_per_second"] == {"mean": 2000.0, "sd": 0.0}
    assert (row["parameters"], row["seeds"]) == (1234567, 2)


def test_rows_stand_in_the_order_of_the_headline() -> None:
    assert list(table()["rows"]) == ["sg_detr", "qd_detr", "moment_detr"]


def test_each_model_is_compared_with_the_default() -> None:
    found = table()["differences"]
    assert list(found) == ["qd_detr", "moment_detr"]
    # 35 - 35.5, and 26 - 35.5.
    assert found["qd_detr"]["difference"] == pytest.approx(-0.5)
    assert found["moment_detr"]["difference"] == pytest.approx(-9.5)
    # Videos 0 and 1 of moment_detr have 15 and 35, or 17 and 37; of sg_detr 31 and 41, or twice 35.
    assert found["moment_detr"]["low"] == pytest.approx(15 - 35)
    assert found["moment_detr"]["high"] == pytest.approx(37 - 35)
    assert 0 < found["moment_detr"]["share_above_zero"] < 0.2
    assert list(table("qd_detr")["differences"]) == ["sg_detr", "moment_detr"]


def test_the_words_say_who_differs() -> None:
    apart = comparison_table(
        {
            "sg_detr": [run(50.0, 50.0, 50.0, 50.0)],
            "sa_detr": [run(51.0, 51.0, 52.0, 52.0)],
            "qd_detr": [run(30.0, 30.0, 40.0, 40.0)],
            "video_lights": [run(0.0, 0.0, 99.0, 99.0)],
        },
        "sg_detr",
        SETTINGS,
    )
    words = comparison_sentences(apart)
    assert "600 steps" in words[0]
    assert "over 1 seeds" in words[0]
    assert words[1] == f"Order by {FIGURE}: sa_detr, sg_detr, video_lights, qd_detr."
    assert words[2] == (
        "Beside sg_detr, by the 95 % interval of the difference: better: sa_detr; "
        "no clear difference: video_lights; worse: qd_detr."
    )


def test_the_markdown_has_figures_costs_and_differences() -> None:
    lines = markdown_page(comparison_sentences(table()), comparison_tables(table())).splitlines()
    assert "|  | mAP | HL Hit@1 | parameters | training s | queries/s |" in lines
    row = "| moment_detr | 26.0 ± 1.4 | 40.0 ± 0.0 | 1,234,567 | 126 ± 1 | 2,000 ± 0 |"
    assert row in lines
    (gain,) = [line for line in lines if line.startswith("| moment_detr − sg_detr |")]
    assert gain.startswith("| moment_detr − sg_detr | -9.50 | -20.00 to +2.00 | ")
    assert any("(1 thread) and compare within this table only" in line for line in lines)
    assert "|  | MR-full-mAP | MR-short-mAP | HL-min-VeryGood-Hit1 |" in lines


def test_the_default_model_is_the_strong_row() -> None:
    assert [grid.strong for grid in comparison_tables(table())] == [0, None, 0]
    assert [grid.strong for grid in comparison_tables(table("moment_detr"))] == [2, None, 2]


def test_figures_of_another_protocol_stand_under_their_own_names() -> None:
    figures = {f"R1@0.{level}": 10.0 for level in range(1, 8)}
    other = run(1.0, 2.0, headline="R1@0.7", figures=figures)
    first = comparison_tables(comparison_table({"sg_detr": [other]}, "sg_detr", SETTINGS))[0]
    assert first.columns[1:7] == [*list(figures)[:5], "parameters"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 900), ("corpus", "own"), ("headline", "mAP"), ("device", "cuda"), ("threads", 2)],
)
def test_runs_that_do_not_compare_are_refused(key: str, value: object) -> None:
    runs = {"sg_detr": [run(30.0)], "qd_detr": [run(31.0, **{key: value})]}
    with pytest.raises(DataError, match=f"need one {key}"):
        comparison_table(runs, "sg_detr", SETTINGS)


def test_seeds_of_a_model_have_one_size() -> None:
    """A file of a seed that is no longer in the study stays, and may be of another model size."""
    with pytest.raises(DataError, match=r"need one parameters, found \{'sg_detr': \{"):
        comparison_table({"sg_detr": [run(30.0), run(30.0, parameters=9)]}, "sg_detr", SETTINGS)


def test_the_default_must_have_been_run() -> None:
    with pytest.raises(DataError, match=r"no run of 'sg_detr'.*\(runs: qd_detr\).*compare\.models"):
        comparison_table({"qd_detr": [run(30.0)]}, "sg_detr", SETTINGS)


def test_the_report_shows_the_table_of_its_own_corpus_only(tmp_path: Path) -> None:
    result = tmp_path / "compare.json"
    sample = config_of("sample")
    assert study_sections(sample, STUDIES[COMPARISON], result) == []
    result.write_text(json.dumps(table()))
    (section,) = study_sections(sample, STUDIES[COMPARISON], result)
    figures, differences = section.tables
    assert section.title == "All models"
    assert figures.rows[1][:2] == ["qd_detr", "35.0 ± 0.0"]
    assert differences.rows[0][:2] == ["qd_detr − sg_detr", "-0.50"]
    assert study_sections(config_of("miniature"), STUDIES[COMPARISON], result) == []


def test_queries_outside_the_mean_are_null_in_the_file_and_left_out_again() -> None:
    per_query = PerQuery([1, 2, 3], ["a", "a", "b"], {FIGURE: np.array([10.0, np.nan, 30.0])})
    kept = json.loads(json.dumps(queries_of(per_query, FIGURE), allow_nan=False))
    assert kept == {"qids": [1, 2, 3], "vids": ["a", "a", "b"], "values": [10.0, None, 30.0]}
    better = run(20.0, queries=kept | {"values": [12.0, None, 34.0]})
    found = comparison_table(
        {"sg_detr": [run(20.0, queries=kept)], "x": [better]}, "sg_detr", SETTINGS
    )
    assert found["differences"]["x"]["difference"] == pytest.approx(3.0)


def test_the_steps_of_the_study_replace_the_length_of_the_control() -> None:
    scratch = with_steps(config_of("charades_sg_detr"), STUDY["run"]["steps"]).train.scratch
    assert (scratch.steps, scratch.epochs) == (STUDY["run"]["steps"], None)


def test_the_study_has_every_model_and_every_model_a_size_in_the_parameters() -> None:
    assert set(STUDY["models"]) == set(MODELS)
    for preset in ("sample", "miniature"):
        assert set(config_of(preset).models) == set(MODELS)


def test_a_model_without_parameters_is_named() -> None:
    arguments = {"model": "sg_dter", "seed": "1", "steps": "2"}
    with pytest.raises(ConfigError, match=r"'sg_dter'.*did you mean 'sg_detr'"):
        compare_run(config_of("sample"), NullReporter(), arguments)


def test_few_pairs_of_many_models_are_compared() -> None:
    models = ["a", "b", "c"]
    ways = {f"{model}.{kind}" for model in models for kind in ("scratch", "finetuned")}
    assert pairs(models, ways | {"zero_shot"}) == [
        ("a.finetuned", "zero_shot"),
        ("a.finetuned", "a.scratch"),
        ("a.finetuned", "b.finetuned"),
        ("a.finetuned", "c.finetuned"),
        ("b.finetuned", "zero_shot"),
        ("b.finetuned", "b.scratch"),
        ("c.finetuned", "zero_shot"),
        ("c.finetuned", "c.scratch"),
    ]


def test_imported_weights_are_compared_with_what_became_of_them() -> None:
    ways = {"a.imported", "a.scratch", "a.finetuned"}
    assert ("a.finetuned", "a.imported") in pairs(["a"], ways)
