"""The stages of InterVid-MR before features, with a table in own_captions/."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mrmodel import presets
from mrmodel.components import DATASETS
from mrmodel.config.schema import Config, parse_config
from mrmodel.errors import ConfigError, DataError
from mrmodel.pretraining.intervid.selection import selected_texts
from mrmodel.progress import NullReporter
from mrmodel.stages.intervid import intervid_filter, intervid_select
from mrmodel.stages.paths import Paths
from mrmodel.stages.required_inputs import optional_inputs
from tests.pretraining.tables import row, write_table

IDS = [f"video{number:06d}" for number in range(6)]


def config_with(**captions: Any) -> Config:
    raw = yaml.safe_load(presets.render("intervid_mr"))
    raw["intervid"] |= {"max_captions": 3, "workers": 1}
    raw["intervid"]["captions"] |= captions
    return parse_config(raw)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus without captions, a table, and the published files of TVSum."""
    monkeypatch.chdir(tmp_path)
    for name in ("val", "test"):
        write_table(made(tmp_path / f"data/qvhighlights/{name}.jsonl"), [])
    for name, vid in (("train", IDS[0]), ("val", IDS[1])):
        path = made(tmp_path / f"own_captions/benchmarks/tvsum/tvsum_{name}_release.jsonl")
        write_table(path, [{"vid": vid}])
    (tmp_path / "own_captions/README.md").write_text("about")
    write_table(tmp_path / "own_captions/t.jsonl", [row(one, 10, 40) for one in IDS])
    return tmp_path


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_table_of_ones_own_without_the_videos_of_a_benchmark(folder: Path) -> None:
    config = config_with(benchmarks=["tvsum"])
    for stage in (intervid_filter, intervid_select):
        stage(config, NullReporter(), {})
    record = json.loads((folder / "data/intervid_select/select.json").read_text())
    assert record["filter"]["table"]["name"] == "t.jsonl"
    assert record["filter"]["excluded"]["lists"] == {"qvhighlights": 0, "tvsum": 2}
    assert record["filter"]["rules"]["leak"] == 2
    assert record["selected"] == {"captions": 3, "videos": 3, "segments": 3}
    assert len(selected_texts(folder / "data/intervid_select")) == 3
    listed = list(csv.DictReader((folder / "data/intervid_select/segments.csv").open()))
    assert {item["video_id"] for item in listed} < set(IDS[2:])
    assert all(item["vid"] == f"{item['video_id']}_0.0_40.0" for item in listed)
    assert optional_inputs(config, Paths(config)) == []
    (folder / "own_captions/t.jsonl").unlink()
    assert "pre-training is skipped" in optional_inputs(config, Paths(config))[0]


def test_the_preset_asks_for_the_files_of_every_benchmark(folder: Path) -> None:
    config = config_with()
    assert config.intervid.captions.benchmarks == list(DATASETS)
    with pytest.raises(DataError, match=r"benchmarks/qvhighlights: lacks highlight_train_release"):
        intervid_filter(config, NullReporter(), {})
    with pytest.raises(ConfigError, match=r"benchmarks = 'tvsun': .*did you mean 'tvsum'"):
        config_with(benchmarks=["tvsun"])


def test_two_tables_are_one_too_many(folder: Path) -> None:
    write_table(folder / "own_captions/u.csv", [])
    with pytest.raises(DataError, match=r"holds several caption tables \(t\.jsonl, u\.csv\)"):
        intervid_filter(config_with(benchmarks=["tvsum"]), NullReporter(), {})
