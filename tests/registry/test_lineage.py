"""Where a model came from, and the same model from nothing but its record and the repository."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mrmodel.cli.registry import lineage_group
from mrmodel.config.schema import load_config
from mrmodel.errors import RegistryError
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.registry.candidate import gather
from mrmodel.registry.champion import open_registry
from mrmodel.registry.lineage import compare_outputs, reproduce, stage_of, upstream
from mrmodel.registry.model_record import ModelRecord
from mrmodel.registry.promote import register
from mrmodel.stages.paths import Paths
from tests.project import Project


@pytest.fixture
def record(project: Project) -> ModelRecord:
    config = load_config(Path("params.yaml"))
    return gather(config, Paths(config), "moment_detr", "finetuned").record


def changed(record: ModelRecord, **values: object) -> ModelRecord:
    return record.model_copy(update=values)


def test_every_stage_comes_before_what_it_needs(record: ModelRecord) -> None:
    order = upstream(record.lock, stage_of(record))
    assert order[0] == "finetune@moment_detr"
    assert set(order[1:]) == {
        "pretrain@moment_detr",
        "intervid_filter",
        "intervid_select",
        "intervid_mr",
        "video_captions",
        "extract@tiny.video",
        "extract_text@tiny.text",
        "corpus",
    }
    assert order.index("pretrain@moment_detr") < order.index("intervid_mr")
    assert order[-1] == "corpus"


@pytest.mark.services
def test_a_model_is_made_again_to_the_last_bit(record: ModelRecord, project: Project) -> None:
    """Nothing is there to take it from: no data, no cache, no lock file."""
    folder = project.folder
    for name in ("data", "features", "models", "reports"):
        (folder / name).rename(folder.parent / name)
    found = reproduce(record, RuntimeEnvironment.from_environment())
    assert found.differences == []
    assert found.outputs >= 6
    assert not (folder / "models").exists()


def test_what_differs_is_named_the_cause_first(record: ModelRecord, project: Project) -> None:
    assert compare_outputs(record, project.folder).differences == []
    lock = json.loads(json.dumps(record.lock))
    for name in ("corpus", "pretrain@moment_detr"):
        lock[name]["outs"][0]["md5"] = "0" * 32
    other = changed(record, lock=lock, weights_sha256="1" * 64)
    found = compare_outputs(other, project.folder).differences
    assert [line.partition(" ")[0] for line in found] == [
        "corpus:",
        "pretrain@moment_detr:",
        "model.safetensors",
    ]
    assert found[0].endswith("was " + "0" * 32)


def test_what_no_commit_holds_cannot_be_made_again(record: ModelRecord) -> None:
    environment = RuntimeEnvironment.from_environment()
    code = record.code | {"git.changed": "params.yaml mrmodel/config/schema.py dvc.lock"}
    with pytest.raises(RegistryError, match=r"no commit holds .* \(mrmodel/config/schema\.py\)"):
        reproduce(changed(record, code=code), environment)
    with pytest.raises(RegistryError, match=r"no stage of its dvc\.lock made it"):
        reproduce(changed(record, way="moment_detr.imported"), environment)


def test_a_stage_that_fails_says_why(record: ModelRecord) -> None:
    params = json.loads(json.dumps(record.params))
    params["corpus"]["videos"]["train"] = 0
    with pytest.raises(RegistryError, match=r"(?s)ended with .*corpus\.videos\.train"):
        reproduce(changed(record, params=params), RuntimeEnvironment.from_environment())


def test_the_command_shows_every_input(project: Project) -> None:
    config = load_config(Path("params.yaml"))
    paths = Paths(config)
    version, _ = register(open_registry(config, paths), config, paths, "moment_detr", "finetuned")
    shown = CliRunner().invoke(lineage_group, ["show", str(version)], catch_exceptions=False).output
    assert project.git("rev-parse", "HEAD").strip() in shown
    assert "stage finetune@moment_detr: python -m mrmodel.stages.train" in shown
    assert "  read data/miniature/train.jsonl  md5 " in shown
    assert "  wrote data/miniature  md5 " in shown
