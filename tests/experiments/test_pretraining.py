import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mrmodel import presets
from mrmodel.config.schema import Config, parse_config
from mrmodel.errors import ConfigError, DataError
from mrmodel.evaluate.significance import BootstrapSettings
from mrmodel.experiments.pretraining import Row, first_samples, pretraining_table
from mrmodel.lines import byte_lines
from mrmodel.report.pretraining import (
    PRETRAINING,
    pretraining_charts,
    pretraining_sentences,
    pretraining_tables,
)
from mrmodel.report.studies import markdown_page
from mrmodel.stages.report import STUDIES, study_sections
from tests.project import ROOT

STUDY = yaml.safe_load((ROOT / "studies/params.yaml").read_text())["pretraining"]
SETTINGS = BootstrapSettings(resamples=400, seed=1)
FIGURE = "MR-full-mAP"


def config_of(preset: str) -> Config:
    return parse_config(yaml.safe_load(presets.render(preset)))


def run(name: str, samples: int, *values: float, before: float = 10.0, **changes: Any) -> Any:
    """Result of a run with these values of single queries, two a video."""
    row = Row.of(name)
    has_pretraining = row.source != "none"
    result = {
        "model": row.model,
        "row": name,
        "corpus": "sample",
        "samples": samples,
        "steps": 900,
        "pretrain_steps": 400 if has_pretraining else 0,
        "parameters": 1234,
        "headline": FIGURE,
        "pretrained": {FIGURE: before, "MR-short-mAP": 3.0} if has_pretraining else None,
        "figures": {FIGURE: float(np.mean(values)), "MR-short-mAP": 5.0},
        "queries": {
            "qids": list(range(len(values))),
            "vids": [f"v{query // 2}" for query in range(len(values))],
            "values": list(values),
        },
    }
    return result | changes


def runs() -> dict[str, Any]:
    """Two seeds of each row, in the order of the files."""
    found = {
        "sg_detr.intervid_mr": [(40.0, 40.0, 50.0, 50.0), (42.0, 42.0, 52.0, 52.0)],
        "sg_detr.intervid_mr.300": [(30.0, 30.0, 40.0, 40.0), (31.0, 31.0, 41.0, 41.0)],
        "sg_detr.intervid_mr.60": [(9.0, 9.0, 9.0, 9.0), (9.0, 9.0, 9.0, 9.0)],
        "sg_detr.none": [(30.0, 30.0, 40.0, 40.0), (32.0, 32.0, 42.0, 42.0)],
        "video_lights.none": [(5.0, 5.0, 5.0, 5.0), (7.0, 7.0, 7.0, 7.0)],
        "video_lights.video_captions": [(4.0, 6.0, 9.0, 5.0), (4.0, 6.0, 9.0, 5.0)],
    }
    samples = {"intervid_mr": 1215, "video_captions": 248, "300": 300, "60": 60, "none": 0}
    return {
        name: [
            run(name, samples[name.rpartition(".")[2]], *values, before=20.0 + 2 * seed)
            for seed, values in enumerate(of_seeds)
        ]
        for name, of_seeds in found.items()
    }


def table() -> dict[str, Any]:
    return pretraining_table(runs(), SETTINGS)


def test_rows_stand_by_model_set_and_number_of_samples() -> None:
    assert list(table()["rows"]) == [
        "sg_detr.none",
        "sg_detr.intervid_mr.60",
        "sg_detr.intervid_mr.300",
        "sg_detr.intervid_mr",
        "video_lights.none",
        "video_lights.video_captions",
    ]


def test_a_row_has_means_and_deviations_of_both_kinds_of_weights() -> None:
    row = table()["rows"]["sg_detr.intervid_mr"]
    # Means of the runs: 45 and 47, and 20 and 22 before; their sample deviations are the root of 2.
    assert row["figures"][FIGURE] == pytest.approx({"mean": 46.0, "sd": 2.0**0.5})
    assert row["pretrained"][FIGURE] == pytest.approx({"mean": 21.0, "sd": 2.0**0.5})
    assert (row["figures_of_seeds"], row["pretrained_of_seeds"]) == ([45.0, 47.0], [20.0, 22.0])
    assert (row["samples"], row["parameters"], row["seeds"]) == (1215, 1234, 2)
    control = table()["rows"]["sg_detr.none"]
    assert (control["pretrained"], control["pretrained_of_seeds"]) == (None, [])


def test_each_row_is_compared_with_its_own_model_without_pre_training() -> None:
    found = table()["differences"]
    assert list(found) == [
        "sg_detr.intervid_mr.60",
        "sg_detr.intervid_mr.300",
        "sg_detr.intervid_mr",
        "video_lights.video_captions",
    ]
    gain = found["sg_detr.intervid_mr"]
    # 46 - 36 in both videos; one of two runs of each row is drawn: 45 or 47 against 35 or 37.
    assert gain["difference"] == pytest.approx(10.0)
    assert (gain["low"], gain["high"]) == (pytest.approx(8.0), pytest.approx(12.0))
    assert gain["share_above_zero"] == 1.0
    # Videos of 5 and 7 against a run of 5 or of 7.
    other = found["video_lights.video_captions"]
    assert other["difference"] == pytest.approx(0.0)
    assert (other["low"], other["high"]) == (pytest.approx(-2.0), pytest.approx(2.0))


def test_the_words_say_what_was_run_and_which_rows_differ() -> None:
    words = pretraining_sentences(table())
    assert "900 steps in each row: 400 of pre-training and 500 of fine-tuning" in words[0]
    assert "over 2 seeds" in words[0]
    assert words[1] == (
        f"sg_detr, fine-tuned, beside sg_detr.none in {FIGURE}, by the 95 % interval of the "
        "difference: worse: sg_detr.intervid_mr.60; no clear difference: sg_detr.intervid_mr.300; "
        "better: sg_detr.intervid_mr."
    )
    assert words[2].endswith("no clear difference: video_lights.video_captions.")
    assert "Made with commit 0123456789ab." in pretraining_sentences(
        table() | {"commit": "0123456789ab"}
    )


def test_the_markdown_has_figures_differences_and_all_metrics() -> None:
    lines = markdown_page(pretraining_sentences(table()), pretraining_tables(table())).splitlines()
    assert "|  | samples | mAP, pre-trained only | mAP |" in lines
    assert "| sg_detr.none | 0 | – | 36.0 ± 1.4 |" in lines
    assert "| sg_detr.intervid_mr | 1,215 | 21.0 ± 1.4 | 46.0 ± 1.4 |" in lines
    (gain,) = [one for one in lines if one.startswith("| sg_detr.intervid_mr − sg_detr.none |")]
    assert gain == ("| sg_detr.intervid_mr − sg_detr.none | +10.00 | +8.00 to +12.00 | 100.0 % |")
    assert "| sg_detr.intervid_mr, pre-trained only | 21.00 ± 1.41 | 3.00 ± 0.00 |" in lines
    assert "| sg_detr.intervid_mr | 46.00 ± 1.41 | 5.00 ± 0.00 |" in lines
    assert not any(line.startswith("| sg_detr.none, pre-trained only") for line in lines)


def test_a_model_with_several_sizes_has_a_curve() -> None:
    (chart,) = pretraining_charts(table())
    assert f"{FIGURE} of sg_detr over samples" in chart
    before, after = (part.split('"')[0].split() for part in chart.split('points="')[1:])
    # Three sizes; fine-tuned also without pre-training. And a point for each of two seeds.
    assert (len(before), len(after)) == (3, 4)
    assert chart.count("<circle") == 2 * (3 + 4)
    assert "pre-trained only" in chart
    assert "then fine-tuned" in chart


def test_the_report_shows_the_study_of_its_own_corpus_only(tmp_path: Path) -> None:
    result = tmp_path / "pretraining.json"
    assert study_sections(config_of("sample"), STUDIES[PRETRAINING], result) == []
    result.write_text(json.dumps(table()))
    (section,) = study_sections(config_of("sample"), STUDIES[PRETRAINING], result)
    figures, differences = section.tables
    assert figures.rows[0][0] == "sg_detr.none"
    assert differences.rows[0][:2] == ["sg_detr.intervid_mr.60 − sg_detr.none", "-27.00"]
    assert len(section.charts) == 1
    assert study_sections(config_of("miniature"), STUDIES[PRETRAINING], result) == []


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 800), ("corpus", "own"), ("headline", "x"), ("pretrain_steps", 9)]
)
def test_runs_that_do_not_compare_are_refused(key: str, value: object) -> None:
    found = runs()
    found["sg_detr.intervid_mr"][0][key] = value
    with pytest.raises(DataError, match=f"need one {key}"):
        pretraining_table(found, SETTINGS)


def test_seeds_of_a_row_have_equal_samples() -> None:
    found = runs()
    found["sg_detr.intervid_mr"][0]["samples"] = 1214
    with pytest.raises(DataError, match=r"need one samples, found \{'sg_detr\.intervid_mr': \{"):
        pretraining_table(found, SETTINGS)


def test_the_row_without_pre_training_must_have_been_run() -> None:
    found = runs()
    del found["video_lights.none"]
    with pytest.raises(DataError, match=r"no run of 'video_lights\.none'.*pretraining\.rows"):
        pretraining_table(found, SETTINGS)


def test_the_rows_of_the_study_are_of_models_in_the_parameters() -> None:
    rows = [Row.of(name) for name in STUDY["rows"]]
    for preset in ("sample", "miniature"):
        assert {row.model for row in rows} <= set(config_of(preset).models)
    controls = {row.model for row in rows if row.source == "none"}
    assert controls == {row.model for row in rows}
    sample = config_of("sample").train
    lengths = [STUDY["run"][f"{run}_steps"] for run in ("pretrain", "finetune")]
    assert lengths == [sample.pretrain.steps, sample.finetune.steps]
    assert sum(lengths) == sample.scratch.steps


def test_a_name_that_is_no_row() -> None:
    for name in ("sg_detr", "sg_detr.none.3", "sg_detr.intervid_mr.0", "x/y.none", "x.else"):
        with pytest.raises(ConfigError, match=r"pretraining\.rows.*<model>\.none"):
            Row.of(name)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    """The order of the file is that of the hash, as `intervid.max_samples` takes it."""
    train = tmp_path / "all.jsonl"
    train.write_text("".join(f'{{"qid": {number}, "query": "ü"}}\n' for number in range(8)))
    small, large = (
        first_samples(train, Row.of(f"sg_detr.intervid_mr.{size}"), tmp_path / f"{size}.jsonl")
        for size in (3, 8)
    )
    assert large.read_bytes() == train.read_bytes()
    assert len(list(byte_lines(small))) == 3
    assert large.read_bytes().startswith(small.read_bytes())
    with pytest.raises(DataError, match=r"has 8 samples, and 'x\.intervid_mr\.9' takes 9.*fewer"):
        first_samples(train, Row.of("x.intervid_mr.9"), tmp_path / "9.jsonl")
