"""Registered versions in MLflow: their content, and the aliases that point at them."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mrmodel.config.base import flatten
from mrmodel.errors import RegistryError
from mrmodel.files import read_json, sha256_of, write_json, write_text
from mrmodel.processes import hide_user
from mrmodel.registry.model_record import (
    CARD_FILE,
    RECORD_FILE,
    TAG,
    ModelRecord,
    read_record,
    render_card,
)
from mrmodel.tracking.experiment import mlflow_faults, said_by_mlflow

if TYPE_CHECKING:  # reading versions needs no torch
    from mrmodel.registry.candidate import Candidate

MODEL_FOLDER = "model"
PREDICTIONS_FILE = "predictions.jsonl"
ANSWERS_FILE = "answers.json"
_DIGEST_TAG = "record.sha256"
_WEIGHTS_TAG = "weights.sha256"
_SAME = (_WEIGHTS_TAG, "predictions.sha256", "test_set")
_LONGEST_TAG = 4000


@dataclass(frozen=True, slots=True)
class Files:
    """Local copy of a version, with every file verified against its record.

    Attributes:
        record: see `ModelRecord`.
        model: folder of the MLflow model.
        predictions: for the test queries.
        answers: predictions for the model's example, at registration.
        signature: of inputs and outputs, as canonical JSON.
        tags: of the version.
    """

    record: ModelRecord
    model: Path
    predictions: Path
    answers: list[dict[str, Any]]
    signature: str
    tags: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """The model folder inside the MLflow model."""
        return self.model / "artifacts" / "model"


class Versions:
    """The versions of one registered model.

    Args:
        client: an `MlflowClient`.
        experiment: id of the experiment in which registrations create runs.
        name: of the registered model.
    """

    def __init__(self, client: Any, experiment: str, name: str) -> None:
        self._client, self._experiment, self.name = client, experiment, name

    def all(self) -> list[ModelVersion]:
        """Every version, oldest first."""
        found: list[ModelVersion] = []
        token = None
        while True:
            page = self._ask(
                "search_model_versions", f"name='{self.name}'", max_results=1000, page_token=token
            )
            found += page
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))

    def find_same(self, candidate: Candidate) -> int | None:
        """The version with the same weights and the same predictions for the same test set.

        Versions of earlier releases, whose files have no digests, do not count.
        """
        wanted = _tags(candidate.record)
        for version in self.all():
            if all(version.tags.get(tag) == wanted[tag] for tag in _SAME):
                number = int(version.version)
                if self.record(number).files is not None:
                    return number
        return None

    def add(self, candidate: Candidate, model: Path, answers: list[dict[str, Any]]) -> int:
        """Upload a model with its record, card and predictions, and register it as a version.

        A process that dies before the end leaves a run, but no version.
        """
        _clear(model)
        record = candidate.record
        tags = {"mlflow.runName": f"register {record.way}", "stage": "register", **record.code}
        run = self._ask("create_run", self._experiment, tags=tags)
        run_id = run.info.run_id
        with tempfile.TemporaryDirectory(prefix="mrmodel-register-") as name:
            folder = Path(name)
            write_json(folder / ANSWERS_FILE, answers)
            (folder / PREDICTIONS_FILE).write_bytes(candidate.predictions.read_bytes())
            files = _digests(folder, "") | _digests(model, f"{MODEL_FOLDER}/")
            record = record.model_copy(update={"files": files})
            write_text(folder / RECORD_FILE, record.model_dump_json(indent=2))
            write_text(folder / CARD_FILE, render_card(record, self.name))
            digest = sha256_of(folder / RECORD_FILE)
            self._ask("log_artifacts", run_id, str(folder))
        self._ask("log_artifacts", run_id, str(model), MODEL_FOLDER)
        self._log_figures(run_id, record)
        self._ask("set_terminated", run_id, "FINISHED")
        self._require_model()
        version = self._ask(
            "create_model_version",
            self.name,
            f"{run.info.artifact_uri}/{MODEL_FOLDER}",
            run_id,
            tags={**_tags(record), _DIGEST_TAG: digest},
            description=_summary(record),
        )
        return int(version.version)

    def files(self, version: int, folder: Path) -> Files:
        """Download a version and verify it.

        Raises:
            RegistryError: there is no such version, or a file differs from the registered one.
        """
        found = self.get(version)
        record = self._record(found, folder)
        predictions = self._download(found, PREDICTIONS_FILE, folder)
        model = self._download(found, MODEL_FOLDER, folder)
        _clear(model)
        answers = self._download(found, ANSWERS_FILE, folder)
        there = {ANSWERS_FILE: sha256_of(answers), PREDICTIONS_FILE: sha256_of(predictions)}
        self._verify(version, record, there | _digests(model, f"{MODEL_FOLDER}/"))
        expected = read_json(answers)
        return Files(record, model, predictions, expected, _signature(model), dict(found.tags))

    def record(self, version: int) -> ModelRecord:
        """The record of a version, without its files.

        Raises:
            RegistryError: there is no such version, or its record was changed.
        """
        with tempfile.TemporaryDirectory(prefix="mrmodel-record-") as folder:
            return self._record(self.get(version), Path(folder))

    def _record(self, version: ModelVersion, folder: Path) -> ModelRecord:
        file = self._download(version, RECORD_FILE, folder)
        where = f"{self.name} version {version.version}"
        if sha256_of(file) != version.tags.get(_DIGEST_TAG):
            raise RegistryError(f"{where}: {RECORD_FILE} was changed")
        return read_record(file.read_text(encoding="utf-8"), where)

    def _verify(self, version: int, record: ModelRecord, there: Mapping[str, str]) -> None:
        """Raise RegistryError if a file is not as registered; `there` has the digests by path."""
        known = record.files or {
            PREDICTIONS_FILE: record.predictions_sha256,
            f"{MODEL_FOLDER}/artifacts/model/model.safetensors": record.weights_sha256,
        }
        for path, digest in known.items():
            if there.get(path) != digest:
                word = "was changed" if path in there else "is missing"
                raise RegistryError(f"{self.name} version {version}: {path} {word}")
        if record.files is not None and (added := there.keys() - known.keys()):
            rule = "was added after the registration"
            raise RegistryError(f"{self.name} version {version}: {min(added)} {rule}")

    def get(self, version: int) -> ModelVersion:
        """A version; raises RegistryError when there is none."""
        try:
            return self._client.get_model_version(self.name, str(version))
        except MlflowException as error:
            raise RegistryError(
                f"{self.name} has no version {version}: {said_by_mlflow(error)}"
            ) from None

    def weights(self, versions: Iterable[int]) -> set[str]:
        """SHA-256 of the weights of the given versions."""
        return {self.get(version).tags[_WEIGHTS_TAG] for version in versions}

    def aliases(self) -> dict[str, int]:
        """Version of each alias; empty if there is no such model yet."""
        try:
            found = self._client.get_registered_model(self.name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise RegistryError(f"{self.name}: MLflow: {said_by_mlflow(error)}") from None
        return {alias: int(version) for alias, version in found.items()}

    def set_alias(self, alias: str, version: int | None) -> None:
        """Point an alias at a version; None removes it."""
        if version is None:
            self._ask("delete_registered_model_alias", self.name, alias)
        else:
            self._ask("set_registered_model_alias", self.name, alias, str(version))

    def _require_model(self) -> None:
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise RegistryError(f"{self.name}: MLflow: {said_by_mlflow(error)}") from None

    def _log_figures(self, run_id: str, record: ModelRecord) -> None:
        at, values = int(time.time() * 1000), {"parameters": float(record.parameters)}
        for name, figure in record.figures.items():
            values |= {name: figure.value, f"{name}/low": figure.low, f"{name}/high": figure.high}
        params = flatten({"way": record.way, "model": record.model["settings"]})
        self._ask(
            "log_batch",
            run_id,
            metrics=[
                Metric(key.replace("@", "_at_"), value, at, 0) for key, value in values.items()
            ],
            params=[Param(key, str(value)) for key, value in params.items()],
        )

    def _download(self, version: ModelVersion, path: str, folder: Path) -> Path:
        try:
            return Path(self._ask("download_artifacts", version.run_id, path, str(folder)))
        except RegistryError as error:
            place = hide_user(str(version.source).removesuffix(f"/{MODEL_FOLDER}"))
            rule = f"{path} cannot be read from {place}"
            if place.startswith("file:"):
                rule += "; was the project moved without its files?"
            raise RegistryError(f"{error}; version {version.version}: {rule}") from None

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        try:
            return getattr(self._client, method)(*arguments, **named)
        except mlflow_faults() as error:
            raise RegistryError(f"{self.name}: MLflow: {said_by_mlflow(error)}") from error


def _clear(model: Path) -> None:
    """Remove from a copy of a model what making or loading it leaves: MLflow's mark, bytecode."""
    (model / "registered_model_meta").unlink(missing_ok=True)
    for compiled in list(model.rglob("__pycache__")):
        shutil.rmtree(compiled)


def _digests(folder: Path, prefix: str) -> dict[str, str]:
    """SHA-256 of all files below a folder, by path with the prefix."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {f"{prefix}{path.relative_to(folder).as_posix()}": sha256_of(path) for path in files}


def _tags(record: ModelRecord) -> dict[str, str]:
    tags = {
        "way": record.way,
        "test_set": record.test_set.digest,
        _WEIGHTS_TAG: record.weights_sha256,
        "predictions.sha256": record.predictions_sha256,
        "git.revision": record.code.get("git.revision", "unknown"),
    }
    leaks = {f"{TAG}{name}": ", ".join(vids) for name, vids in record.leaks.items()}
    return {name: value[:_LONGEST_TAG] for name, value in {**tags, **leaks}.items()}


def _summary(record: ModelRecord) -> str:
    figure = record.figures[record.headline]
    return (
        f"{record.way}: {record.headline} {figure.value:.2f} ({figure.low:.2f} to "
        f"{figure.high:.2f}) on test set {record.test_set.digest[:12]}; its card is the artifact "
        f"{CARD_FILE} of the run."
    )


def _signature(model: Path) -> str:
    signature = Model.load(str(model)).signature
    return json.dumps(signature.to_dict() if signature else None, sort_keys=True, allow_nan=False)
