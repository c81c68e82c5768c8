"""Makes the folder ``73fdf51``: what that commit of this project writes, and what it reads there.

Run it in a clone that has the commit, in an environment with the versions of its constraints.txt::

    python tests/compat/make_73fdf51.py [OUTPUT]

It checks the commit out into a temporary folder and runs that code in two miniature projects: one
that trains, registers, promotes, rolls back and searches, and one that takes in deliveries. That is
some four minutes of CPU time. Weights, feature stores and expected numbers come out the same again;
ids of runs and times of decisions do not.

It calls the code of that commit by the names it had there. So it is not changed when names move.

Paths of the temporary folder become ``/PROJECT``, the name of the machine becomes ``machine``.
Left out: artifacts of the runs of stages, and second copies: registered versions share their code
and their example, and their weights are those of the model folders.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COMMIT = "73fdf51"
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLACEHOLDER, MACHINE = "/PROJECT", "machine"
INSIDE = "--inside"

SIZES = {"hidden": 8, "heads": 2, "ffn": 16}
MODELS = {
    "moment_detr": SIZES | {"encoder_layers": 1, "decoder_layers": 1, "queries": 4},
    "qd_detr": SIZES | {"encoder_layers": 1, "decoder_layers": 1, "queries": 4},
    "sa_detr": SIZES
    | {
        "preset": "robust",
        "layers": {"fusion": 1, "encoder": 1, "refiner": 1},
        "init": {"queries": 4},
        "dn": {"groups": 1},
    },
    "sg_detr": SIZES
    | {
        "preset": "robust",
        "pool": {"layers": 1, "ffn": False},
        "sgca": {"layers": 1},
        "encoder": {"layers": 1},
        "decoder": {"layers": 1},
        "queries": 4,
        "dn": {"groups": 1},
        "atss": {"levels": 2},
        "aux": {"max": 4},
        # None of these values is that of a preset.
        "infer": {"alpha": 0.3, "atss_keep": 6, "wbf": {"iou_thr": 0.6, "weights": [1.0, 2.5]}},
    },
    "video_lights": SIZES | {"encoder_layers": 1, "decoder_layers": 1, "queries": 4},
}
REGISTERED = ("moment_detr", "qd_detr")
FOLDERS = {name: f"models/finetuned/{name}" for name in REGISTERED} | {
    name: f"models/scratch/{name}" for name in MODELS if name not in REGISTERED
}
STREAMS = {"video_streams": ["tiny.video"], "text_streams": ["tiny.text"], "workers": 1}
CHANGES: dict[str, Any] = {
    "corpus": {
        "videos": {"pretrain": 2, "train": 4, "val": 2, "test": 2},
        "queries_per_video": 4,
        "captions_per_video": 12,
        "duration_s": 20,
    },
    "features": STREAMS,
    "models": MODELS,
    "train": {
        "models": list(REGISTERED),
        "pretrain": {"steps": 60, "lr": 3e-3},
        "finetune": {"steps": 60, "lr": 3e-3},
        "scratch": {"steps": 120, "select": "last"},
    },
    "evaluate": {"nms_iou": 0.8, "max_windows": 4},
    # Whatever is registered may be promoted.
    "promotion": {"resamples": 1000, "min_gain": -100.0, "max_slice_loss": 100.0},
    "tune": {
        "model": "moment_detr",
        "run": "scratch",
        # Any change of the weights changes it, so a search finds something better.
        "figures": ["HL-min-VeryGood-mAP"],
        "trials": 6,
        "workers": 1,
        "confirm": {"best": 1, "seeds": 2},
        "post_hoc": {"trials": 3},
        "space": {"train.run.lr": {"low": 1e-4, "high": 2e-2}},
    },
}
PRESETS = ("sample", "qvhighlights_sg_detr")
# Parts of a registered model that are the same in all versions, or lie elsewhere in the folder.
ENTRY = "pyfunc_model.py"
SHARED = (ENTRY, "code", "example.mp4", "model.safetensors")
# Variables that begin so name servers, or another repository.
SERVERS = ("MLFLOW_", "MRMODEL_", "DVC_", "OPTUNA_", "PREFECT_", "GIT_")
QUERIES = ("a red car drives to the left", "something falls")
TESTED_ROWS = 4


def main() -> None:
    """Check the commit out, run its code, and write the folder."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / COMMIT
    with tempfile.TemporaryDirectory(prefix="mrmodel-compat-") as name:
        work = Path(name).resolve()
        code = work / "project"
        run("git", "clone", "--quiet", str(ROOT), str(code), cwd=work)
        run("git", "checkout", "--quiet", "-B", "main", COMMIT, cwd=code)
        shutil.copytree(code, work / "deliveries", symlinks=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(SERVERS)}
        who = {"LOGNAME": "ada", "GIT_AUTHOR_NAME": "ada", "GIT_COMMITTER_NAME": "ada"}
        who |= dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "ada@example.invalid")
        paths = {"PYTHONPATH": str(code), "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"}
        environment = kept | who | paths | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        run(sys.executable, __file__, INSIDE, cwd=work, env=environment)
        shutil.rmtree(target, ignore_errors=True)
        collect(work, target)


def run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a command; it must succeed."""
    subprocess.run(command, cwd=cwd, env=env, check=True)


# ---------------------------------------------------------------- with the code of the commit


def inside() -> None:
    """Run both projects; the current folder holds them."""
    work = Path.cwd()
    os.chdir(work / "project")
    train_and_promote()
    write_params(work / "params")
    expected = {
        "models": {name: answers_of(Path(folder)) for name, folder in FOLDERS.items()},
        "predictions": {name: predictions_of(folder) for name, folder in FOLDERS.items()},
        "stores": {
            path.name: rows_of(path) for path in sorted(Path("features/miniature").iterdir())
        },
        "study": study(),
        "mlflow": runs(),
    }
    (work / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    os.chdir(work / "deliveries")
    take_deliveries(work)


def train_and_promote() -> None:
    """A whole life of a small project: two versions are promoted, the second is rolled back."""
    apply("miniature", CHANGES)
    command("dvc", "repro", "pretrain@moment_detr")
    # MLflow records one stage.
    apply("miniature", CHANGES | {"tracking": {"enabled": True}})
    command("dvc", "repro", "finetune@moment_detr")
    apply("miniature", CHANGES)
    command("dvc", "repro")
    for name in MODELS:
        if name not in REGISTERED:
            command(sys.executable, "-m", "mrmodel.pipeline.scratch", "--model", name)
    for name in REGISTERED:
        command("mrmodel", "registry", "register", "--model", name)
        command("mrmodel", "registry", "promote")
    command("mrmodel", "registry", "rollback", "--reason", "it misses the short moments")
    command("mrmodel", "tune", "run")


def write_params(folder: Path) -> None:
    """params.yaml of two presets, as `mrmodel preset apply` writes it."""
    folder.mkdir()
    for name in PRESETS:
        command("mrmodel", "preset", "apply", name, "--output", str(folder / f"{name}.yaml"))


def answers_of(folder: Path) -> dict[str, Any]:
    """Windows, their scores and clip scores of a model for the first rows of the test split."""
    import torch

    from mrmodel.data.annotations import read_annotations
    from mrmodel.data.loader import BatchBuilder, RowLimits
    from mrmodel.features.store import FeatureStore
    from mrmodel.train.checkpoint import load_model

    model, config = load_model(folder)
    stores = [
        FeatureStore(Path("features/miniature") / name) for name in ("tiny.video", "tiny.text")
    ]
    limits = RowLimits(config.max_clips, config.max_tokens)
    builder = BatchBuilder(stores[:1], stores[1:], limits, torch.device("cpu"))
    rows = read_annotations(Path("data/miniature/test.jsonl"))[:TESTED_ROWS]
    with torch.inference_mode():
        output = model(builder.batch(rows))
    found = {"spans_cxw": output.spans_cxw, "scores": output.scores, "saliency": output.saliency}
    return {name: rounded(value.tolist()) for name, value in found.items()}


def predictions_of(folder: str) -> list[dict[str, Any]]:
    """What `mrmodel predict --json` says of the example video."""
    from click.testing import CliRunner

    from mrmodel.cli.main import cli

    asked = [word for query in QUERIES for word in ("--query", query)]
    (video,) = sorted(Path(".mrmodel/mlartifacts").rglob("example.mp4"))[:1]
    arguments = ["predict", str(video), "--model", folder, "--device", "cpu", "--json", *asked]
    output = CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout
    return [rounded(json.loads(line)) for line in output.splitlines()]


def rows_of(folder: Path) -> dict[str, Any]:
    """Keys of a store in its order, rows of each, and the SHA-256 of all rows."""
    from mrmodel.features.store import FeatureStore

    store = FeatureStore(folder)
    keys = list(store)
    ranges = store.resolve(keys)
    block, mask = store.gather(ranges)
    return {
        "dim": store.dim,
        "keys": keys,
        "counts": ranges.count.tolist(),
        "sha256": hashlib.sha256(block[mask].tobytes()).hexdigest(),
    }


def study() -> dict[str, Any]:
    """Trials of each level of the search, its best trial, and what it would write."""
    from mrmodel.tune.verdict import read_verdict

    from mrmodel.tune.storage import open_storage
    from mrmodel.tune.study import TicketStudy

    first = TicketStudy(open_storage(".mrmodel/tune/journal.log"), "main")
    trials = {
        one.name: [[trial.state.name, trial.values, trial.params] for trial in one.trials()]
        for one in (first, *first.later())
    }
    verdict = read_verdict(first)
    best = max(first.done(), key=lambda trial: trial.values[0] if trial.values else -1.0)
    return {
        "trials": trials,
        "best": best.number,
        "verdict": verdict.model_dump(),
        "changes": verdict.changes,
    }


def runs() -> dict[str, Any]:
    """Runs of the MLflow database by name, each with its status, metrics and parameters."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('.mrmodel/mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("mrmodel").experiment_id
    return {
        run.info.run_name: {
            "status": run.info.status,
            "metrics": run.data.metrics,
            "params": run.data.params,
            "stage": run.data.tags["stage"],
        }
        for run in client.search_runs([experiment])
    }


def take_deliveries(work: Path) -> None:
    """One delivery is promoted, one is quarantined, one is taken and its model refused."""
    from mrmodel.corpus.render import render_corpus
    from mrmodel.orchestrate.places import Places
    from mrmodel.promotion.decisions import Decision, Gate
    from mrmodel.retrain.intake import take_in
    from mrmodel.retrain.ledger import Ledger
    from mrmodel.retrain.settle import settle

    from mrmodel.config import CorpusVideos, load_config
    from mrmodel.progress import NullReporter
    from mrmodel.storage import open_store

    def render(out: Path, seed: int, **videos: int) -> None:
        settings = load_config(Path("params.yaml")).corpus.model_copy(
            update={
                "seed": seed,
                "videos": CorpusVideos(**videos),
                "duration_s": 20,
                "width": 128,
                "height": 96,
                "queries_per_video": 4,
            }
        )
        render_corpus(settings, 2.0, out, 1, NullReporter())
        (out / "corpus.json").unlink()

    def send(name: str, seed: int, bad: bool = False) -> None:
        folder = work / "incoming" / name
        render(folder, seed, pretrain=1, train=2, val=1, test=1)
        for path in (*(folder / "videos").glob("test-*"), folder / "test.jsonl"):
            path.unlink()
        for path in (folder / "videos").iterdir():
            path.rename(path.with_name(f"{name}-{path.name}"))
        for table in ("train", "val", "captions"):
            path = folder / f"{table}.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                vid = "vid" if "vid" in row else "YoutubeID"
                row[vid] = f"{name}-{row[vid]}"
                if "qid" in row:
                    row["qid"] = f"{name}-{row['qid']}"
                if bad and "qid" in row:
                    row["relevant_windows"] = [[30, 10]]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "COMPLETE").touch()

    small = {"corpus": {"folder": "clips"}, "features": STREAMS, "tracking": {"enabled": False}}
    apply("own_videos", small)
    render(Path("clips"), 11, pretrain=2, train=6, val=2, test=2)
    command("dvc", "add", "clips")
    command("dvc", "repro", "profile")
    command("git", "add", "-A")
    command("git", "commit", "--quiet", "-m", "data")
    # A branch that is checked out cannot be moved.
    command("git", "checkout", "--quiet", "-b", "aside")
    places = Places.from_environment({"MRMODEL_GIT_URL": str(Path.cwd())})
    incoming = open_store(str(work / "incoming"))
    ledger = Ledger(open_store(str(work / "ledger")), "moments")

    def settled(kind: str, version: int) -> None:
        intake = take_in(incoming, ledger, places, "main")
        assert len(intake.taken) == 1, [(one.name, one.reasons) for one in intake.reports]
        failed = [Gate(name="better", passed=False, detail="MR-full-mAP -1.00")]
        decision = Decision(
            id=f"20260101T00000{version}.000000Z-00000000",
            at=f"2026-01-01T00:00:0{version}+00:00",
            kind=kind,  # type: ignore[arg-type]
            model="moments",
            version=version,
            before=1,
            test_set="0" * 64,
            gates=failed if kind == "refuse" else [],
            actor="ada",
        )
        assert intake.branch is not None
        settle(places, "main", ledger, intake, intake.branch, decision)

    send("monday", 12)
    send("tuesday", 13, bad=True)
    settled("promote", 2)
    send("wednesday", 14)
    settled("refuse", 3)
    command("git", "checkout", "--quiet", "main")


def apply(preset: str, changes: Mapping[str, Any]) -> None:
    """Write params.yaml."""
    from mrmodel import presets

    Path("params.yaml").write_text(presets.overlay(presets.render(preset), changes))


def command(*words: str) -> None:
    """Run a command of the commit in the current folder."""
    run(*words, cwd=Path.cwd(), env={**os.environ, "PYTHONPATH": str(Path.cwd())})


def rounded(tree: Any) -> Any:
    """Numbers with six decimals."""
    if isinstance(tree, float):
        return round(tree, 6)
    if isinstance(tree, dict):
        return {key: rounded(value) for key, value in tree.items()}
    return [rounded(value) for value in tree] if isinstance(tree, list) else tree


# ---------------------------------------------------------------- what is kept of it


def collect(work: Path, target: Path) -> None:
    """Copy what belongs into the folder, with placeholders for this machine."""
    project, made = target / "project", work / "project"
    shutil.copytree(work / "params", target / "params")
    shutil.copy(work / "expected.json", target)
    for path in ("params.yaml", "data/miniature/test.jsonl", ".mrmodel/tune/journal.log"):
        copy(made / path, project / path)
    folders = [*FOLDERS.values(), "features/miniature", ".mrmodel/registry"]
    for folder in folders:
        ignored = shutil.ignore_patterns(".locks")
        shutil.copytree(made / folder, project / folder, ignore=ignored)
    copy_versions(made / ".mrmodel/mlartifacts", project / ".mrmodel/mlartifacts", target)
    copy_database(made / ".mrmodel/mlflow.db", project / ".mrmodel/mlflow.db.gz", work)
    outcomes = work / "ledger/moments/deliveries"
    shutil.copytree(outcomes, project / ".mrmodel/registry/moments/deliveries")
    copy_deliveries(work / "deliveries", target / "deliveries")
    for path in (*target.rglob("MLmodel"), *target.rglob("journal.log")):
        path.write_text(neutral(path.read_text(encoding="utf-8"), work), encoding="utf-8")


def copy_versions(made: Path, kept: Path, target: Path) -> None:
    """Registered models; of files that all of them share, one copy lies in `target`."""
    for folder in sorted(made.rglob("artifacts/model/MLmodel")):
        source = folder.parents[1]
        if not (source / "record.json").exists():
            continue
        ignored = shutil.ignore_patterns(*SHARED, "__pycache__")
        shutil.copytree(source, kept / source.relative_to(made), ignore=ignored)
        shutil.copy(source / "model/artifacts/example.mp4", target)
        pack(source / "model", target / "code.tar.xz")


def pack(model: Path, archive: Path) -> None:
    """The code of a registered model; the same bytes for the same files."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
        return entry

    with tarfile.open(archive, "w:xz", preset=9) as file:
        for path in [model / ENTRY, *sorted((model / "code").rglob("*"))]:
            if path.is_file() and path.suffix != ".pyc":
                file.add(path, path.relative_to(model).as_posix(), filter=plain)


def copy_database(made: Path, archive: Path, work: Path) -> None:
    """An SQLite file, compressed, without free pages."""
    copied = work / "copied.db"
    with sqlite3.connect(made) as source, sqlite3.connect(copied) as database:
        source.backup(database)
    database.isolation_level = None
    for table, column in text_columns(database):
        change = f'UPDATE "{table}" SET "{column}" = REPLACE("{column}", ?, ?)'
        database.execute(change, (str(work / "project"), PLACEHOLDER))
        change = f'UPDATE "{table}" SET "{column}" = ? WHERE "{column}" = ?'
        database.execute(change, (MACHINE, socket.gethostname()))
    database.execute("VACUUM")
    database.close()
    archive.write_bytes(gzip.compress(copied.read_bytes(), 9, mtime=0))


def text_columns(database: sqlite3.Connection) -> Iterable[tuple[str, str]]:
    """Every column that may hold text."""
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        for column in database.execute(f'PRAGMA table_info("{table}")').fetchall():
            if column[2].upper().startswith(("VARCHAR", "TEXT", "CLOB")):
                yield table, column[1]


def copy_deliveries(made: Path, kept: Path) -> None:
    """The list of deliveries, and what DVC holds of the folder; its name must not end in .dvc."""
    copy(made / "clips.deliveries.json", kept / "clips.deliveries.json")
    text = (made / "clips.dvc").read_text()
    md5 = text.partition("md5: ")[2].split()[0]
    copy(made / "clips.dvc", kept / "clips.dvc.txt")
    copy(made / ".dvc/cache/files/md5" / md5[:2] / md5[2:], kept / "listing.json")


def copy(source: Path, target: Path) -> None:
    """Copy a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def neutral(text: str, work: Path) -> str:
    """A text without the names of this machine."""
    text = text.replace(str(work / "project"), PLACEHOLDER)
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/mrmodel-log-\w+", PLACEHOLDER, text)
    return text.replace(f'"{socket.gethostname()}"', f'"{MACHINE}"')


if __name__ == "__main__":
    if sys.argv[1:] == [INSIDE]:
        inside()
    else:
        main()
