"""The origin of a registered model, and its reproduction from scratch."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo

from mrmodel.errors import RegistryError
from mrmodel.files import read_yaml, sha256_of
from mrmodel.orchestrate.checkout import fresh_clone
from mrmodel.orchestrate.dvc_transfer import Transfer
from mrmodel.orchestrate.environment import RuntimeEnvironment
from mrmodel.orchestrate.result_store import ResultStore
from mrmodel.pretraining.intervid.report import card_rows
from mrmodel.processes import run_python
from mrmodel.registry.model_record import ModelRecord
from mrmodel.train.checkpoint import CONFIG, WEIGHTS

log = logging.getLogger(__name__)

_STAGES = {"finetuned": "finetune", "scratch": "scratch", "pretrained": "pretrain"}
# These name servers, which a reproduction must not write to.
_SERVERS = ("MLFLOW_", "PREFECT_", "MRMODEL_", "AWS_", "DVC_")


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Result of reproducing a model.

    Attributes:
        differences: each output and file that differs; empty if all are identical byte for byte.
        outputs: how many outputs were compared.
    """

    differences: list[str]
    outputs: int


def stage_of(record: ModelRecord) -> str:
    """The stage that made a model.

    Raises:
        RegistryError: no stage did, its weights were imported.
    """
    model, _, kind = record.way.rpartition(".")
    if kind not in _STAGES or f"{_STAGES[kind]}@{model}" not in record.lock:
        raise RegistryError(f"{record.way}: no stage of its dvc.lock made it")
    return f"{_STAGES[kind]}@{model}"


def upstream(lock: Mapping[str, Any], stage: str) -> list[str]:
    """`stage` and all its upstream stages, each before those that it depends on."""
    order: list[str] = []
    waiting = [stage]
    while waiting:
        name = waiting.pop(0)
        if name in order:
            order.remove(name)
        order.append(name)
        waiting += [other for other in lock if other != name and _feeds(lock[other], lock[name])]
    return order


def describe_lineage(record: ModelRecord) -> Iterator[str]:
    """Human-readable lines: code, then each stage with the data it read, the last one first."""
    for name, value in record.code.items():
        yield f"{name}: {value}"
    yield f"weights: sha256 {record.weights_sha256}"
    test_set = record.test_set
    yield f"test set: {test_set.digest} ({test_set.split}, {test_set.queries} queries)"
    for stream, digest in record.streams.items():
        yield f"features {stream}: {digest}"
    yield "made with: " + ", ".join(f"{name} {what}" for name, what in record.environment.items())
    if record.pretraining is not None:
        for what, value in card_rows(record.pretraining):
            yield f"pre-training data, {what}: {value}"
    for name in upstream(record.lock, stage_of(record)):
        stage = record.lock[name]
        yield f"stage {name}: {stage['cmd']}"
        for word, entries in (("wrote", stage.get("outs", [])), ("read", stage.get("deps", []))):
            for entry in entries:
                yield f"  {word} {entry['path']}  md5 {entry['md5']}"


def reproduce(record: ModelRecord, environment: RuntimeEnvironment) -> Reproduction:
    """Reproduce a model in a temporary clone of its revision, with an empty cache.

    The parameters are those of the record. User videos come from the revision if DVC tracks them,
    else from this repository, where they must not have changed. On different hardware, or with
    other library versions, the last bits may differ.

    Args:
        record: of the version.
        environment: where the repository and the videos are; no stage outputs are reused.

    Raises:
        RegistryError: the code had uncommitted changes, or a stage failed.
        OrchestrationError: the revision is not available.
    """
    changed = record.unsaved_files()
    if changed or "git.revision" not in record.code:
        what = ", ".join(changed) or "everything"
        raise RegistryError(f"{record.way}: no commit holds what it was made with ({what})")
    stage = stage_of(record)
    with tempfile.TemporaryDirectory(prefix="mrmodel-lineage-") as name:
        work = Path(name)
        apart = dataclasses.replace(
            environment,
            remote=None,
            cache=work / "cache",
            state=work / "state",
            clones=work / "clones",
        )
        with fresh_clone(apart, record.code["git.revision"], {}) as folder:
            # Key order of the record is kept: config.json of a model folder depends on it.
            quiet = record.params | {"tracking": record.params["tracking"] | {"enabled": False}}
            params = yaml.safe_dump(quiet, sort_keys=False)
            (folder / "params.yaml").write_text(params, encoding="utf-8")
            (folder / "dvc.lock").unlink(missing_ok=True)
            _bring_own_videos(record, environment, folder)
            _run(folder, stage)
            return compare_outputs(record, folder)


def compare_outputs(record: ModelRecord, folder: Path) -> Reproduction:
    """Differences in a folder where the stages of a record have run again."""
    stage = stage_of(record)
    made = read_yaml(folder / "dvc.lock")["stages"]
    differences, outputs = [], 0
    # Upstream first: a difference there causes the later ones.
    for name in reversed(upstream(record.lock, stage)):
        found = {entry["path"]: entry["md5"] for entry in made.get(name, {}).get("outs", [])}
        for entry in record.lock[name].get("outs", []):
            outputs += 1
            if found.get(entry["path"]) != entry["md5"]:
                now = found.get(entry["path"], "not made")
                differences.append(f"{name}: {entry['path']} is {now}, was {entry['md5']}")
    model, _, kind = record.way.rpartition(".")
    for file, expected in ((WEIGHTS, record.weights_sha256), (CONFIG, record.config_sha256)):
        digest = sha256_of(folder / "models" / kind / model / file)
        if digest != expected:
            differences.append(f"{file} has SHA-256 {digest}, was {expected}")
    return Reproduction(differences, outputs)


def _feeds(giver: Mapping[str, Any], taker: Mapping[str, Any]) -> bool:
    outs = [entry["path"] for entry in giver.get("outs", [])]
    deps = [entry["path"] for entry in taker.get("deps", [])]
    return any(
        dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/")
        for out in outs
        for dep in deps
    )


def _bring_own_videos(record: ModelRecord, environment: RuntimeEnvironment, folder: Path) -> None:
    """Copy the videos of the revision if DVC tracks them, else those of the repository here."""
    if record.params["corpus"]["source"] != "folder":
        return
    name = record.params["corpus"]["folder"].rstrip("/")
    target = folder / name
    if target.with_name(f"{target.name}.dvc").exists():
        with fresh_clone(environment, record.code["git.revision"], {}) as clone:
            transfer = Transfer(
                environment, ResultStore(environment.result_store, environment.endpoint)
            )
            transfer.fetch(Repo(str(clone)), [name])
            shutil.copytree(clone / name, target, dirs_exist_ok=True)
        return
    source = (Path(environment.git) / name).resolve()
    if not source.is_dir():
        raise RegistryError(f"{source}: the videos that {record.way} was made of are not there")
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if not (target / path.name).exists():
            (target / path.name).symlink_to(path)


def _run(folder: Path, stage: str) -> None:
    """Run `dvc repro` in the clone, with the clone's own code."""
    ended = run_python("dvc", "repro", stage, folder=folder, without=_SERVERS)
    if ended.code:
        said = "\n".join(ended.last)
        raise RegistryError(f"`dvc repro {stage}` ended with {ended.code}:\n{said}")
