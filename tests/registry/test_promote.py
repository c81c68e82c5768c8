"""From trained models to a champion and back, on a real pipeline run and a real MLflow."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mrmodel.cli.registry import group
from mrmodel.config.schema import load_config
from mrmodel.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PromotionRefused,
    RegistryError,
)
from mrmodel.files import sha256_of
from mrmodel.registry.candidate import gather
from mrmodel.registry.champion import ModelRegistry, PointerSnapshot, open_registry
from mrmodel.registry.decision import Pointer
from mrmodel.registry.model_record import render_card
from mrmodel.registry.pointer_store import registry_store
from mrmodel.registry.promote import promote, register, rollback
from mrmodel.stages.paths import Paths
from tests.project import Project
from tests.registry.evaluations import forget_a_query, let_it_know_everything
from tests.registry.trial import promotion_of

MODEL = "moment_detr"


@pytest.fixture
def registry(project: Project) -> ModelRegistry:
    config = load_config(Path("params.yaml"))
    return open_registry(config, Paths(config))


def add(registry: ModelRegistry, kind: str) -> int:
    config = load_config(Path("params.yaml"))
    return register(registry, config, Paths(config), MODEL, kind)[0]


def decide(registry: ModelRegistry, version: int | None = None, reset_baseline: str = "") -> int:
    return promote(registry, load_config(Path("params.yaml")), version, reset_baseline).version


def test_a_model_is_promoted_refused_and_rolled_back(registry: ModelRegistry) -> None:
    first = add(registry, "finetuned")
    assert add(registry, "finetuned") == first
    assert registry.versions.aliases() == {"challenger": first}
    assert decide(registry) == first
    assert registry.versions.aliases() == {"champion": first}

    worse = add(registry, "scratch")
    with pytest.raises(PromotionRefused, match=r"better: MR-full-mAP [+-]\d+\.\d\d, interval"):
        decide(registry)
    assert registry.versions.aliases() == {"champion": first, "challenger": worse}

    let_it_know_everything(Path(), f"{MODEL}.pretrained")
    oracle = add(registry, "pretrained")
    assert decide(registry) == oracle
    assert registry.versions.aliases() == {"champion": oracle, "previous": first}
    with pytest.raises(RegistryError, match="is the champion already"):
        decide(registry, oracle)
    with pytest.raises(RegistryError, match="has no challenger"):
        decide(registry)

    rollback(registry, "clips of the new camera are missed")
    assert registry.versions.aliases() == {"champion": first}
    with pytest.raises(PromotionRefused) as refusal:
        decide(registry, oracle)
    assert str(refusal.value).splitlines()[1:] == ["  withdrawn: these weights were rolled back"]
    with pytest.raises(RegistryError, match=r"version None was no champion before \(there is: 3\)"):
        rollback(registry, "again")

    told = [(one.kind, one.version, one.before) for one in registry.history()]
    assert told == [
        ("promote", first, None),
        ("refuse", worse, first),
        ("promote", oracle, first),
        ("rollback", first, oracle),
        ("refuse", oracle, first),
    ]
    assert registry.history()[3].reason == "clips of the new camera are missed"


def test_whoever_is_slower_is_told_and_recorded(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another promotion ends between the judgement and the move; then a rollback is too late."""
    config = load_config(Path("params.yaml"))
    slower, faster = add(registry, "finetuned"), add(registry, "scratch")
    other, move = open_registry(config, Paths(config)), registry.move

    def after(version: int) -> Any:
        def moved(seen: PointerSnapshot, pointer: Pointer) -> None:
            monkeypatch.setattr(registry, "move", move)
            theirs = promotion_of(version, other.read())
            other.move(other.read(), theirs)
            move(seen, pointer)

        return moved

    monkeypatch.setattr(registry, "move", after(faster))
    with pytest.raises(RegistryError, match="promote it again"):
        decide(registry, slower)
    assert registry.versions.aliases()["champion"] == faster
    monkeypatch.setattr(registry, "move", after(slower))
    other.move(other.read(), promotion_of(slower, other.read()))
    with pytest.raises(RegistryError, match="serves no more"):
        rollback(registry, "too late")
    kinds = [(one.kind, one.version) for one in registry.history()]
    assert kinds.count(("conflict", slower)) == 1
    assert kinds.count(("conflict", faster)) == 1


@pytest.mark.slow
def test_another_store_does_not_take_the_champion_away(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(registry, "finetuned")
    decide(registry)
    monkeypatch.setenv("MRMODEL_REGISTRY", str(tmp_path / "elsewhere"))
    config = load_config(Path("params.yaml"))
    stray = open_registry(config, Paths(config))
    with pytest.raises(RegistryError, match="no pointer, but in MLflow version 1 is champion"):
        add(stray, "scratch")
    assert registry.versions.aliases()["champion"] == first
    monkeypatch.delenv("MRMODEL_REGISTRY")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:secret-word@mlflow.example.com")
    with pytest.raises(ConfigError, match="MRMODEL_REGISTRY") as refusal:
        registry_store(tmp_path)
    assert "secret-word" not in str(refusal.value)


@pytest.mark.slow
def test_withdrawn_weights_do_not_come_back_as_another_version(registry: ModelRegistry) -> None:
    first, second = add(registry, "scratch"), add(registry, "finetuned")
    for version in (first, second):
        registry.move(registry.read(), promotion_of(version, registry.read()))
    rollback(registry, "bad")
    forget_a_query(Path(), f"{MODEL}.finetuned")
    third = add(registry, "finetuned")
    assert third != second
    with pytest.raises(PromotionRefused, match="these weights were rolled back"):
        decide(registry, third, reset_baseline="one query was wrong")


def test_an_unknown_training_set_is_no_clean_one(project: Project) -> None:
    Path("data/miniature/train.jsonl").unlink()
    config = load_config(Path("params.yaml"))
    with pytest.raises(DataError, match=r"train\.jsonl: is not there"):
        gather(config, Paths(config), MODEL, "finetuned")


def test_a_changed_test_set_starts_a_new_line(registry: ModelRegistry) -> None:
    first = add(registry, "finetuned")
    decide(registry)
    frozen, fewer = forget_a_query(Path(), f"{MODEL}.finetuned")
    second = add(registry, "finetuned")
    assert second != first
    with pytest.raises(PromotionRefused, match="two test sets cannot be compared"):
        decide(registry)
    assert decide(registry, reset_baseline="one query was wrong") == second
    moves = [one for one in registry.history() if one.kind == "promote"]
    assert [one.test_set for one in moves] == [frozen.digest, fewer.digest]
    assert moves[1].reason == "one query was wrong"
    assert {gate.name for gate in moves[1].gates if gate.passed is None} == {"test_set"}
    # The frozen sets of both are kept, whatever becomes of the files here.
    assert registry.test_set(frozen.digest).rows == frozen.rows
    assert registry.test_set(fewer.digest).rows == fewer.rows


def test_test_videos_in_training_are_found_and_refused(registry: ModelRegistry) -> None:
    test = json.loads(Path("data/miniature/test.jsonl").read_text().splitlines()[0])
    with Path("data/miniature/train.jsonl").open("a") as file:
        file.write(json.dumps(test | {"qid": 99999}) + "\n")
    version = add(registry, "finetuned")
    with pytest.raises(PromotionRefused, match=rf"leakage: leakage\.train = {test['vid']}"):
        decide(registry, version)
    record = registry.versions.record(version)
    assert f"the set train holds test videos ({test['vid']})" in render_card(record, "moments")


def test_files_that_were_changed_after_registration_are_refused(
    registry: ModelRegistry, project: Project
) -> None:
    """Finding 6: also the code, so none of it runs."""
    add(registry, "finetuned")
    artifacts = project.folder / ".mrmodel/mlartifacts"
    (predictions,) = artifacts.rglob("predictions.jsonl")
    before = predictions.read_bytes()
    predictions.write_bytes(before + b"\n")
    with pytest.raises(RegistryError, match=r"predictions\.jsonl was changed"):
        decide(registry)
    predictions.write_bytes(before)
    (weights,) = artifacts.rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(RegistryError, match=r"model\.safetensors was changed"):
        decide(registry)
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    (model,) = artifacts.rglob("MLmodel")
    ran = project.folder / "ran"
    for path in ("MLmodel", "code/mrmodel/__init__.py", "artifacts/model/config.json"):
        file = model.parent / path
        before = file.read_bytes()
        file.write_bytes(before + f"\nopen({str(ran)!r}, 'w')\n".encode())
        with pytest.raises(RegistryError, match=rf"version 1: model/{path} was changed"):
            decide(registry)
        file.write_bytes(before)
    file.rename(model.with_name("kept"))
    with pytest.raises(RegistryError, match=r"model/artifacts/model/config\.json is missing"):
        decide(registry)
    model.with_name("kept").rename(file)
    added = model.with_name("code") / "torch.py"
    added.write_text("")
    with pytest.raises(RegistryError, match=r"model/code/torch\.py was added after the regis"):
        decide(registry)
    added.unlink()
    # What loading leaves in the store is allowed there, and is not loaded.
    leftovers = [model.with_name("registered_model_meta"), model.parent / "code/__pycache__/a.pyc"]
    for path in leftovers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a mark")
    fetched = registry.versions.files(1, project.folder / "fetched").model
    assert "a mark" not in [p.read_text("latin-1") for p in fetched.rglob("*") if p.is_file()]
    assert all(path.exists() for path in leftovers)
    assert not ran.exists()
    (record,) = artifacts.rglob("record.json")
    record.write_text(record.read_text().replace('"test"', '"val"', 1))
    for use in (lambda: decide(registry), lambda: registry.versions.record(1)):
        with pytest.raises(RegistryError, match=r"record\.json was changed"):
            use()
    (kept,) = (project.folder / ".mrmodel/registry/moments/test_sets").iterdir()
    kept.write_text(kept.read_text().replace('"split": "test"', '"split": "test", "rows_": 0'))
    raw = json.loads(kept.read_text())
    raw["rows"][0]["relevant_windows"] = [[0.0, 2.0]]
    kept.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="was changed"):
        registry.test_set(raw["digest"])
    assert registry.history() == []


def test_a_version_of_an_earlier_release_can_be_registered_again(
    registry: ModelRegistry, project: Project
) -> None:
    """Finding 6: its record has no digests of the code. It is judged as before, which says so."""
    first = add(registry, "finetuned")
    (file,) = (project.folder / ".mrmodel/mlartifacts").rglob("record.json")
    earlier = {k: v for k, v in json.loads(file.read_text()).items() if k != "files"}
    file.write_text(json.dumps(earlier))
    registry.versions._ask(
        "set_model_version_tag", "moments", str(first), "record.sha256", sha256_of(file)
    )
    second = add(registry, "finetuned")
    assert (second, add(registry, "finetuned")) == (first + 1, second)
    decide(registry, first)
    (smoke,) = [gate for gate in registry.history()[-1].gates if gate.name == "smoke"]
    assert "register the model again" in smoke.detail


def test_only_what_was_evaluated_here_is_registered(project: Project) -> None:
    config = load_config(Path("params.yaml"))
    paths = Paths(config)
    with pytest.raises(CheckpointError, match=r"models/imported/moment_detr: was not trained and"):
        gather(config, paths, MODEL, "imported")
    Path("reports/evaluation/weights.json").write_text("{}")
    with pytest.raises(DataError, match=r"the evaluation of moment_detr\.finetuned is of weights"):
        gather(config, paths, MODEL, "finetuned")


def test_the_record_says_where_a_model_came_from(project: Project) -> None:
    config = load_config(Path("params.yaml"))
    record = gather(config, Paths(config), MODEL, "finetuned").record
    assert record.code["git.revision"] == project.git("rev-parse", "HEAD").strip()
    assert record.lock["finetune@moment_detr"]["outs"][0]["path"] == "models/finetuned/moment_detr"
    assert record.params == config.model_dump(mode="json")
    metrics = json.loads(project.read("reports/metrics.json"))[f"{MODEL}.finetuned"]
    assert {name: round(figure.value, 2) for name, figure in record.figures.items()} == metrics
    assert all(one.low <= one.value <= one.high for one in record.figures.values())
    assert record.test_set.queries == len(project.read("data/miniature/test.jsonl").splitlines())
    assert record.leaks == {}
    card = render_card(record, "moments")
    for part in ("## Limits", "toy domain", record.weights_sha256, record.test_set.digest):
        assert part in card


def say(*arguments: str) -> str:
    """Output of a command of `mrmodel registry`; an error of the user is raised."""
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def steps_of(stderr: str) -> list[str]:
    """Lines of progress; MLflow writes to stderr too."""
    return [
        line for line in stderr.splitlines() if re.match(r"(registry|register|promote): ", line)
    ]


def test_the_commands(project: Project) -> None:
    assert "no version" in say("list")
    shown = CliRunner().invoke(group, ["register"], catch_exceptions=False)
    assert shown.stdout == "moments version 1: moment_detr.finetuned\n"
    assert steps_of(shown.stderr) == [
        "registry: 0/1 now opening",
        "registry: 1/1",
        "register: 0/4 now scoring the predictions",
        "register: 1/4 now looking for the same version",
        "register: 2/4 now smoke test in a fresh process",
        "register: 3/4 now storing the version",
        "register: 4/4",
    ]
    assert "challenger" in say("list")
    shown = CliRunner().invoke(group, ["promote"], catch_exceptions=False)
    assert shown.stdout.startswith("moments champion: version 1 (before: none)\n  ")
    assert steps_of(shown.stderr)[2:] == [
        "promote: 0/4 now fetching version 1",
        "promote: 1/4 now smoke test in a fresh process",
        "promote: 2/4 now scoring version 1",
        "promote: 3/4 now comparing by the gates",
        "promote: 4/4",
    ]
    shown = CliRunner().invoke(group, ["register", "--model", MODEL], catch_exceptions=False)
    assert "registered before" in shown.stdout
    assert steps_of(shown.stderr)[-2:] == [
        "register: 1/4 now looking for the same version",
        "register: 4/4",
    ]
    say("register", "--kind", "scratch")
    refused = project.invoke("registry", "promote", code=2)
    assert "promote: 3/5 now fetching and scoring the champion, version 1" in refused
    assert "error: moments version 2 is refused:" in refused
    assert "\n  better: MR-full-mAP" in refused
    history = say("history")
    assert history.index("promote ") < history.index("refuse ")
    assert "better: FAILED" in history
    assert "latency: passed" not in history
    assert "latency: passed" in say("history", "--gates")
    assert "everything agrees" in say("reconcile")
    assert "# moments: moment_detr.finetuned" in say("show", "1")
    with pytest.raises(RegistryError, match="cannot roll back"):
        say("rollback", "--reason", "x")
    assert "has no version 9" in project.run("mrmodel", "registry", "show", "9", code=2)


def test_the_alias_gives_the_answers_of_mrmodel_predict(
    project: Project, registry: ModelRegistry
) -> None:
    add(registry, "finetuned")
    decide(registry)
    video, query = project.folder / "data/miniature/videos/test-0000.mp4", "A thing moves left"
    code = (
        "import sys, json, mlflow.pyfunc, pandas\n"
        "model = mlflow.pyfunc.load_model('models:/moments@champion')\n"
        "rows = [{'query': sys.argv[2], 'video': sys.argv[1]}]\n"
        "print('\\n' + json.dumps(model.predict(pandas.DataFrame(rows))[0]))\n"
    )
    environment = project.environment()
    del environment["PYTHONPATH"]
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{project.folder / '.mrmodel/mlflow.db'}"
    environment["MRMODEL_SERVE_FROM"] = str(video.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(video), query],
        env=environment,
        cwd=project.folder.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    options = ("--query", query, "--json", "--top", "1000")
    said = project.invoke("predict", str(video), *options)
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(said)
