"""What commit 73fdf51 wrote is read with the same result, or refused by one line.

``73fdf51`` holds files as that commit writes them, and in expected.json what it reads from them;
`make_73fdf51.py` made it. The cases are the rows of the table in docs/howto/upgrade.md. A case that
the code refuses on purpose goes into `REFUSED`, and its row of the table says what to do.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from mrmodel import presets
from mrmodel.cli.main import cli
from mrmodel.config.schema import load_config
from mrmodel.errors import MrModelError, PromotionRefused, RegistryError
from tests.project import ROOT

HERE = Path(__file__).parent / "73fdf51"
EXPECTED: dict[str, Any] = json.loads((HERE / "expected.json").read_text())
PLACEHOLDER = "/PROJECT"
PARAMS = {file.stem: file for file in sorted((HERE / "params").iterdir())} | {
    "miniature": HERE / "project/params.yaml"
}
UPGRADE = ROOT / "docs/howto/upgrade.md"
REGISTERED = "moments"
STATE = Path(".mrmodel")
STORE = STATE / "registry" / REGISTERED
# As large as the whole folder may become, in bytes.
MOST_BYTES = 1_000_000
# Kernels round differently from one processor to the next.
TOLERANCE = 1e-4
# Best windows whose scores lie apart from those of the next ones.
CLEAR = 4
# The gates of the commit's project: whatever is registered may be promoted.
PROMOTION = {"promotion": {"resamples": 1000, "min_gain": -100.0, "max_slice_loss": 100.0}}
# Id of a case -> the whole message by which it is refused, which names the file and what to do.
_MOVED = "evaluate.round_to_clips, evaluate.nms_iou, evaluate.max_windows"
_SECTIONS = ", ".join(
    f"models.sg_detr.{name}" for name in ("pool", "sgca", "encoder", "decoder", "dn", "atss", "aux")
)
_WITH_INFER = f"{_MOVED}, models.sg_detr.infer, {_SECTIONS}"
_RENAMED = (
    "train.decay (now weight_decay_on), train.*.drop_every_epochs (now step_size), "
    "evaluate.zero_shot_sd (now zero_shot_std), "
    "intervid.labels.threshold_sd (now threshold_std), "
    "retrain.drift.chance (now significance_level)"
)
_RULE = "moved, renamed or replaced; docs/howto/upgrade.md shows what to write"
_OTHER_MODEL = (
    "models/scratch/sg_detr/config.json: sg_detr of an earlier version, which this one replaces: "
    "train again, or serve its registered version, which carries its code (docs/howto/upgrade.md)"
)
REFUSED: dict[str, str] = {
    "models/<kind>/<model> sg_detr": _OTHER_MODEL,
    "models/<kind>/<model> sg_detr predict": _OTHER_MODEL,
    "journal.log resume": "the search 'main' cannot go on: an earlier version began it, with "
    f"parameters that are refused now ({_WITH_INFER}, {_RENAMED}); "
    "begin another: mrmodel tune run --study NAME",
    "params.yaml miniature": f"{_WITH_INFER}, {_RENAMED}: {_RULE}",
    "params.yaml sample": f"{_MOVED}, {_SECTIONS}, {_RENAMED}: {_RULE}",
    "params.yaml qvhighlights_sg_detr": f"{_MOVED}, {_RENAMED}: {_RULE}",
}


@dataclass(frozen=True)
class Case:
    """A thing on disk.

    Attributes:
        row: its row of the table in docs/howto/upgrade.md.
        part: which of the things in this row.
        read: reads it in the project of the current folder and compares what it finds.
    """

    row: str
    part: str
    read: Callable[[], None]

    @property
    def id(self) -> str:
        """Its name in pytest and in `REFUSED`."""
        return f"{self.row} {self.part}".strip()


@pytest.fixture(scope="module")
def params() -> str:
    """Parameters of this version, with the gates of the commit's project."""
    return presets.overlay(presets.render("miniature"), PROMOTION)


@pytest.fixture
def project(tmp_path: Path, params: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project of the commit as the current folder, with the parameters of this version."""
    for name in ("MLFLOW_TRACKING_URI", "MRMODEL_REGISTRY", "OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    shutil.copytree(HERE / "project", folder)
    (folder / "params.yaml").write_text(params)
    monkeypatch.chdir(folder)
    return folder


# ---------------------------------------------------------------- models and features


def model_folder(name: str) -> Path:
    (folder,) = Path("models").glob(f"*/{name}")
    return folder


def read_model(name: str) -> None:
    import torch

    from mrmodel.data.annotations import read_annotations
    from mrmodel.data.loader import BatchBuilder, RowLimits
    from mrmodel.features.store import FeatureStore
    from mrmodel.predict.inference import raw_predictions
    from mrmodel.predict.serving import read_serving
    from mrmodel.train.checkpoint import load_model

    folder = model_folder(name)
    model, config = load_model(folder)
    stores = [
        [FeatureStore(Path("features/miniature") / stream.name) for stream in streams]
        for streams in (config.video_streams, config.text_streams)
    ]
    limits = RowLimits(config.max_clips, config.max_tokens)
    builder = BatchBuilder(*stores, limits, torch.device("cpu"))
    expected = EXPECTED["models"][name]
    rows = read_annotations(Path("data/miniature/test.jsonl"))[: len(expected["scores"])]
    batch = builder.batch(rows)
    with torch.inference_mode():
        found = raw_predictions(model(batch), batch, read_serving(folder))
    for field, values in expected.items():
        np.testing.assert_allclose(getattr(found, field), values, rtol=0.0, atol=TOLERANCE)


def search_with_model(name: str) -> None:
    expected = EXPECTED["predictions"][name]
    options = [word for row in expected for word in ("--query", row["query"])]
    options += ["--model", str(model_folder(name)), "--device", "cpu", "--json"]
    options += ["--top", str(CLEAR)]
    printed = command("predict", str(HERE / "example.mp4"), *options)
    for line, row in zip(printed.splitlines(), expected, strict=True):
        found = json.loads(line)
        windows = found.pop("pred_relevant_windows")
        # By their start, since scores that are nearly equal may change places.
        for one, other in zip(
            sorted(windows), sorted(row["pred_relevant_windows"][:CLEAR]), strict=True
        ):
            assert one == pytest.approx(other, abs=TOLERANCE)
        scores = found.pop("pred_saliency_scores")
        assert scores == pytest.approx(row["pred_saliency_scores"], abs=TOLERANCE)
        assert found == {key: row[key] for key in found}
        assert set(row) == {*found, "pred_relevant_windows", "pred_saliency_scores"}


def read_store(name: str) -> None:
    from mrmodel.features.store import FeatureStore

    store, expected = FeatureStore(Path("features/miniature") / name), EXPECTED["stores"][name]
    ranges = store.resolve(expected["keys"])
    block, mask = store.gather(ranges)
    assert list(store) == expected["keys"]
    assert ranges.count.tolist() == expected["counts"]
    assert block.shape[2] == expected["dim"]
    assert hashlib.sha256(block[mask].tobytes()).hexdigest() == expected["sha256"]


# ---------------------------------------------------------------- the registry


def open_registry() -> Any:
    from mrmodel.registry import champion
    from mrmodel.stages.paths import Paths

    unpack_database()
    config = load_config(Path("params.yaml"))
    return champion.open_registry(config, Paths(config))


def unpack_database() -> None:
    """Write mlflow.db as it was; artifacts are below the current folder."""
    packed = STATE / "mlflow.db.gz"
    (STATE / "mlflow.db").write_bytes(gzip.decompress(packed.read_bytes()))
    with closing(sqlite3.connect(STATE / "mlflow.db")) as database, database:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ):
            change = f"UPDATE {table} SET {column} = REPLACE({column}, ?, ?)"
            database.execute(change, (PLACEHOLDER, str(Path.cwd())))


def unpack_versions() -> list[Path]:
    """Put back what both registered models share, and their weights; their folders."""
    folders = [path.parent for path in sorted((STATE / "mlartifacts").rglob("MLmodel"))]
    for folder in folders:
        with tarfile.open(HERE / "code.tar.xz") as archive:
            # Python 3.11 before 3.11.4 has no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            archive.extractall(folder)
        artifacts = folder / "artifacts"
        shutil.copy(HERE / "example.mp4", artifacts)
        name = json.loads((artifacts / "model/config.json").read_text())["model"]
        shutil.copy(model_folder(name) / "model.safetensors", artifacts / "model")
    return folders


def written_audit() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((STORE / "audit").iterdir())]


def read_pointer() -> None:
    written = json.loads((STORE / "champion.json").read_text())
    registry = open_registry()
    pointer = registry.read().pointer
    assert pointer.model_dump(mode="json") == written
    assert (pointer.version, pointer.champions, pointer.withdrawn) == (1, [1, 2], [2])
    assert registry.versions.aliases() == {"champion": 1}
    assert registry.reconcile() == []


def move_pointer() -> None:
    registry = open_registry()
    before = registry.read().pointer
    command("registry", "rollback", "--to", "2", "--reason", "it was the videos")
    after = registry.read().pointer
    assert (after.sequence, after.version, after.withdrawn) == (before.sequence + 1, 2, [])
    assert registry.versions.aliases()["champion"] == 2
    assert [one.id for one in registry.history()][:-1] == [one["id"] for one in written_audit()[:3]]


def load_champion_from_python() -> None:
    """It answers as it did; one that this code cannot read is refused by its version."""
    from mrmodel import load_champion

    unpack_database()
    folders = unpack_versions()
    predictor = load_champion(REGISTERED, "cpu")
    expected = EXPECTED["predictions"][predictor.config.model]
    video = predictor.encode(HERE / "example.mp4")
    for row, result in zip(
        expected, predictor.search(video, [row["query"] for row in expected]), strict=True
    ):
        assert result.clip_scores == pytest.approx(row["pred_saliency_scores"], abs=TOLERANCE)
    for folder in folders:
        config = folder / "artifacts/model/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99}))
    rule = r"moments version 1: registered with mrmodel 0\.1\.0, cannot be read by this one .*: "
    with pytest.raises(RegistryError, match=rule + r"config\.json: written by another format"):
        load_champion(REGISTERED, "cpu")
    with pytest.raises(RegistryError, match=r"others/champion\.json: there is no champion"):
        load_champion("others")


def read_audit() -> None:
    written = written_audit()
    found = open_registry().history()
    assert [one.model_dump(mode="json") for one in found] == written
    assert [one.kind for one in found] == ["promote", "promote", "rollback"]
    assert [len(one.failed) for one in found] == [0, 0, 0]


def read_test_sets() -> None:
    (written,) = (STORE / "test_sets").iterdir()
    rows = json.loads(written.read_text())["rows"]
    found = open_registry().test_set(written.stem)
    assert [row["qid"] for row in found.rows] == [row["qid"] for row in rows]


def read_version(version: int) -> None:
    unpack_versions()
    files = open_registry().versions.files(version, Path("downloaded"))
    written = json.loads(Path("downloaded/record.json").read_text())
    assert files.record.model_dump(mode="json") == written
    assert files.record.headline == "MR-full-mAP"
    signature = yaml.safe_load((files.model / "MLmodel").read_text())["signature"]
    assert json.loads(files.signature) == signature
    assert len(files.answers) == 2


def judge_version() -> None:
    """The version that was rolled back is judged again; its own code answers in a fresh process.

    The closest two scores of its answers are 1.6e-6 apart; from one processor to the next they
    change by 1.2e-7, so the smoke gate finds their windows in the same order.
    """
    unpack_versions()
    registry = open_registry()
    before = {gate["name"]: gate for gate in written_audit()[1]["gates"]}
    with pytest.raises(PromotionRefused, match="withdrawn"):
        command("registry", "promote", "2")
    decision = registry.history()[-1]
    assert [gate.name for gate in decision.failed] == ["withdrawn"]
    assert {gate.name for gate in decision.gates} == set(before) | {"decontaminated"}
    for gate in decision.gates:
        if gate.name == "better":
            for key in ("difference", "low", "high"):
                assert gate.figures[key] == pytest.approx(before["better"]["figures"][key])
        elif gate.name.startswith("slice") and gate.figures:
            change = before[gate.name]["figures"]["change"]
            assert gate.figures["change"] == pytest.approx(change)


# ---------------------------------------------------------------- deliveries


def read_deliveries() -> None:
    from mrmodel.orchestrate.environment import RuntimeEnvironment
    from mrmodel.retrain.dvc_dataset import DvcDataset

    written, here = HERE / "deliveries", Path.cwd()
    listing = (written / "listing.json").read_bytes()
    text = (written / "clips.dvc.txt").read_text()
    md5 = yaml.safe_load(text)["outs"][0]["md5"]
    cached = Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]
    cached.parent.mkdir(parents=True)
    cached.write_bytes(listing)
    Path(".dvc/config").write_text("[core]\n    no_scm = True\n")
    Path("clips.dvc").write_text(text)
    shutil.copy(written / "clips.deliveries.json", here)
    folder_corpus = {"corpus": {"source": "folder", "folder": "clips"}}
    params = presets.overlay(Path("params.yaml").read_text(), folder_corpus)
    Path("params.yaml").write_text(params)
    environment = RuntimeEnvironment.from_environment({"MRMODEL_GIT_URL": str(here)})
    folder = DvcDataset(here, load_config(Path("params.yaml")), environment)
    (row,) = json.loads((written / "clips.deliveries.json").read_text())
    (found,) = folder.deliveries()
    assert (found.name, found.digest) == ("monday", row["digest"])
    assert (found.videos, found.rows) == (row["videos"], row["rows"])


def read_ledger() -> None:
    from mrmodel.retrain.outcomes import Ledger
    from mrmodel.storage import open_store

    files = (STORE / "deliveries").rglob("*.json")
    written = sorted((json.loads(path.read_text()) for path in files), key=lambda row: row["at"])
    ledger = Ledger(open_store(str(STATE / "registry")), REGISTERED)
    found = ledger.entries()
    assert [entry.model_dump(mode="json") for entry in found] == written
    assert {entry.delivery: (entry.outcome, entry.version) for entry in found} == {
        "monday": ("promoted", 2),
        "tuesday": ("quarantined", None),
        "wednesday": ("refused", 3),
    }
    assert ledger.withdrawn() == [2]


# ---------------------------------------------------------------- studies and runs


def open_journal() -> Any:
    from mrmodel.tune.storage import open_storage, storage_address

    return open_storage(storage_address(STATE))


def read_study() -> None:
    from mrmodel.tune.result import read_result
    from mrmodel.tune.study import TrialQueue

    expected = EXPECTED["study"]
    study = TrialQueue(open_journal(), "main")
    found = {
        one.name: [[trial.state.name, trial.values, trial.params] for trial in one.trials()]
        for one in (study, *study.later())
    }
    assert found == expected["trials"]
    best = expected["trials"]["main"][expected["best"]]
    assert study.best_value() == best[1][0]
    result = read_result(study)
    assert result.model_dump(mode="json") == expected["verdict"]
    assert result.changes == expected["changes"]
    printed = command("tune", "best", "--top", "1")
    assert printed.startswith(f"trial {expected['best']} ")


def resume_study() -> None:
    """A search goes on with the parameters that it was begun with."""
    from mrmodel.tune.local import resumed_config

    config = resumed_config(open_journal(), "main", 9, None)
    assert (config.tune.trials, config.tune.model, config.tune.run) == (9, "moment_detr", "scratch")
    assert config.models["moment_detr"]["hidden"] == 8


def apply_study() -> None:
    """What the search found is written into the parameters of this version."""
    _, candidate = EXPECTED["study"]["verdict"]["candidates"]
    command("tune", "apply", "--unconfirmed")
    config = load_config(Path("params.yaml")).model_dump()
    for path, value in candidate["changes"].items():
        found = config
        for part in path.split("."):
            found = found[part]
        assert found == value, path


def read_runs() -> None:
    from mrmodel.tracking.experiment import open_experiment

    unpack_database()
    client, experiment = open_experiment("mrmodel", STATE)
    found = {
        run.info.run_name: {
            "status": run.info.status,
            "metrics": run.data.metrics,
            "params": run.data.params,
            "stage": run.data.tags["stage"],
        }
        for run in client.search_runs([experiment])
    }
    assert found == EXPECTED["mlflow"]
    run = client.create_run(experiment)
    client.log_metric(run.info.run_id, "loss/total", 1.0)
    assert client.get_run(run.info.run_id).data.metrics == {"loss/total": 1.0}


# ---------------------------------------------------------------- parameters


def read_params(file: Path) -> None:
    shutil.copy(file, "params.yaml")
    assert load_config(Path("params.yaml")).model_dump(mode="json") == yaml.safe_load(
        file.read_text()
    )


def command(*arguments: str) -> str:
    """Standard output of a command of `mrmodel`; what it refuses is raised."""
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    return result.stdout


CASES = [
    *(
        Case("models/<kind>/<model>", name, partial(read_model, name))
        for name in EXPECTED["models"]
    ),
    *(
        Case("models/<kind>/<model>", f"{name} predict", partial(search_with_model, name))
        for name in EXPECTED["predictions"]
    ),
    *(
        Case("features/<corpus>/<stream>", name, partial(read_store, name))
        for name in EXPECTED["stores"]
    ),
    Case("champion.json", "", read_pointer),
    Case("champion.json", "rollback", move_pointer),
    Case("champion.json", "load_champion", load_champion_from_python),
    Case("audit/*.json", "", read_audit),
    Case("test_sets/*.json", "", read_test_sets),
    *(
        Case("record.json, MLmodel", f"version {version}", partial(read_version, version))
        for version in (1, 2)
    ),
    Case("record.json, MLmodel", "promote", judge_version),
    Case("<folder>.deliveries.json", "", read_deliveries),
    Case("deliveries/*/*.json", "", read_ledger),
    Case("journal.log", "best", read_study),
    Case("journal.log", "apply", apply_study),
    Case("journal.log", "resume", resume_study),
    Case("mlflow.db", "", read_runs),
    *(Case("params.yaml", name, partial(read_params, file)) for name, file in PARAMS.items()),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_it_is_read_with_the_same_result_or_refused_by_one_line(case: Case, project: Path) -> None:
    if case.id not in REFUSED:
        case.read()
        return
    with pytest.raises(MrModelError) as refused:
        case.read()
    assert str(refused.value) == REFUSED[case.id]
    assert "\n" not in REFUSED[case.id]


def test_the_guide_has_a_row_for_each_case() -> None:
    table = re.findall(r"^\| `([^`]+)` \|.*\| ([^|]+) \|$", UPGRADE.read_text(), re.MULTILINE)
    said = dict(table)
    assert len(said) == len(table)
    assert set(said) == {case.row for case in CASES}
    assert set(REFUSED) <= {case.id for case in CASES}
    for row, words in said.items():
        refused = any(case.id in REFUSED for case in CASES if case.row == row)
        assert ("refused" in words) == refused, row
        assert refused or words.startswith("read as it was"), row


def holders(tree: Any, sections: list[str]) -> list[dict[str, Any]]:
    """The sections at a dotted path, of which `<run>` is any section."""
    found = [tree]
    for part in sections:
        below = [list(one.values()) if part == "<run>" else [one.get(part, {})] for one in found]
        found = [one for some in below for one in some if isinstance(one, dict)]
    return found


def merged(tree: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    """The sections of both; what is added counts."""
    both = {key: merged(tree[key], added[key]) for key in added if isinstance(tree.get(key), dict)}
    return tree | added | both


@pytest.mark.parametrize("file", PARAMS.values(), ids=PARAMS)
def test_the_guide_makes_parameters_valid(file: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(file.read_text())
    text = UPGRADE.read_text()
    added = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    for moved in re.findall(r"^\* `([a-z_.]+)`$", text, re.MULTILINE):
        *sections, key = moved.split(".")
        holder = tree
        for part in sections:
            holder = holder.get(part, {})
        holder.pop(key, None)
    for before, now in re.findall(r"^\| `([a-z_.<>]+)` \| `([a-z_.<>]+)` \|", text, re.MULTILINE):
        *sections, key = before.split(".")
        for holder in holders(tree, sections):
            if key in holder:
                holder[now.rpartition(".")[2]] = holder.pop(key)
    params = tmp_path / "params.yaml"
    for section in added:
        tree = merged(tree, yaml.safe_load(section))
    params.write_text(yaml.safe_dump(tree))
    command("config", "check", str(params))


def test_the_folder_is_small_and_names_no_machine() -> None:
    files = [path for path in HERE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    binary = (".gz", ".mp4", ".npy", ".parquet", ".safetensors", ".xz")
    texts = [path.read_bytes() for path in files if path.suffix not in binary]
    texts.append(gzip.decompress((HERE / "project" / STATE / "mlflow.db.gz").read_bytes()))
    for text in texts:
        assert not re.search(rb"/(tmp|home|root|work|Users)/", text)
