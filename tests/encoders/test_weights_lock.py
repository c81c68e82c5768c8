"""Weights of a project are pinned: DVC sees a change of them, and other ones are refused."""

import json
import logging

import pytest
import yaml
from click.testing import CliRunner

from mrmodel.cli.weights import group
from mrmodel.convert.encoders.convert import lock_again
from mrmodel.encoders.user_weights import WEIGHTS_VARIABLE
from mrmodel.encoders.weights_lock import pin_sets, read_pins, require_pinned
from mrmodel.errors import UnknownNameError, WeightsError
from mrmodel.stages.paths import PIN_FILE
from tests.encoders.tiny_sets import make_slowfast
from tests.project import ROOT

STREAM = "slowfast.video2304"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with nothing pinned, and a set in the weights folder."""
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    make_slowfast(tmp_path / "weights", tmp_path)
    (tmp_path / PIN_FILE).write_bytes((ROOT / PIN_FILE).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(project):
    config = project / "weights/slowfast/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"compat": "fixed"}))
    lock_again("slowfast")


def test_nothing_is_pinned_in_a_fresh_repository():
    assert read_pins(ROOT / PIN_FILE) == {}


def test_unpinned_weights_are_taken_with_a_warning(project, caplog):
    with caplog.at_level(logging.WARNING):
        require_pinned(project / PIN_FILE, STREAM)
    assert "slowfast: weights are not pinned" in caplog.text


def test_pinned_weights_are_taken_and_others_refused(project, caplog):
    assert "slowfast: pinned" in CliRunner().invoke(group, ["pin"]).output
    before = (project / PIN_FILE).read_bytes()
    require_pinned(project / PIN_FILE, STREAM)
    assert not caplog.records
    change(project)
    with pytest.raises(WeightsError, match=r"slowfast: config\.json in .*weights pin slowfast"):
        require_pinned(project / PIN_FILE, STREAM)
    pin_sets(project / PIN_FILE, ["slowfast"])
    assert (project / PIN_FILE).read_bytes() != before
    require_pinned(project / PIN_FILE, STREAM)


def test_encoders_of_this_package_need_no_pins(tmp_path):
    require_pinned(tmp_path / "missing", "tiny.video")


def test_a_damaged_or_missing_file_is_refused(project):
    for text in ("{", "[]", '{"sets": {"slowfast": 3}}'):
        (project / PIN_FILE).write_text(text)
        with pytest.raises(WeightsError, match="expected"):
            require_pinned(project / PIN_FILE, STREAM)
    for sets in ({"../slowfast": {}}, {"slowfast": {"../config.json": "0"}}):
        (project / PIN_FILE).write_text(json.dumps({"sets": sets}))
        with pytest.raises(WeightsError, match="no weight set"):
            pin_sets(project / PIN_FILE, [])
    (project / PIN_FILE).unlink()
    with pytest.raises(WeightsError, match="root of the repository"):
        pin_sets(project / PIN_FILE, [])


def test_only_sound_sets_are_pinned(project):
    (project / "weights/slowfast/config.json").write_text("{}")
    for names, error in (
        ([], WeightsError),
        (["clip_b32"], WeightsError),
        (["clip"], UnknownNameError),
    ):
        with pytest.raises(error):
            pin_sets(project / PIN_FILE, names)
    assert read_pins(project / PIN_FILE) == {}


def test_the_stages_that_extract_depend_on_the_pins():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    watching = [name for name, stage in stages.items() if PIN_FILE in stage.get("deps", [])]
    assert sorted(watching) == ["extract", "extract_text", "video_captions"]
