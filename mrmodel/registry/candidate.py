"""Collects the registry record of a model that was trained and evaluated in this repository."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mrmodel.components import ENCODERS
from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.config.schema import Config
from mrmodel.data.ingest.summary import PRETRAINING
from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.user_weights import WeightSet
from mrmodel.errors import CheckpointError, DataError
from mrmodel.evaluate.rows import read_rows
from mrmodel.evaluate.significance import BootstrapSettings, confidence_interval
from mrmodel.features.index import INDEX_FILE
from mrmodel.files import read_object, read_yaml, sha256_of
from mrmodel.lines import byte_lines
from mrmodel.predict.serving import read_serving
from mrmodel.pretraining.intervid.report import CARD_FILE
from mrmodel.registry.model_record import ModelRecord, RecordedMetric, TestSet, find_leaks
from mrmodel.stages.paths import Paths
from mrmodel.stages.scorer import Scorer
from mrmodel.stages.test_set import TestSetContents, video_contents
from mrmodel.stages.trainer import pretraining_files
from mrmodel.tracking.mlflow_client import code_tags
from mrmodel.train.checkpoint import CONFIG, WEIGHTS

_PACKAGES = ("mrmodel", "torch", "numpy", "av", "mlflow", "dvc")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to register.

    Attributes:
        record: see `ModelRecord`.
        folder: the model folder.
        predictions: its predictions for the test queries.
        frozen: the test set.
        postprocess: how predictions were made from the model's output.
    """

    record: ModelRecord
    folder: Path
    predictions: Path
    frozen: TestSetContents
    postprocess: PostprocessConfig


def gather(config: Config, paths: Paths, model: str, kind: str) -> Candidate:
    """Collect the record of ``models/<kind>/<model>`` and check that its metrics belong to it.

    Raises:
        CheckpointError: there is no such model, or it was not evaluated.
        DataError: the evaluation is of other weights, or its test set was changed.
    """
    way, folder = f"{model}.{kind}", paths.model(kind, model)
    predictions = paths.evaluation / f"{way}.jsonl"
    if not (folder / CONFIG).exists() or not predictions.exists():
        raise CheckpointError(
            f"{folder}: was not trained and evaluated here ({predictions} is its evaluation); "
            f"run `dvc repro`, with {model!r} among train.models"
        )
    _require_evaluated(paths, way, sha256_of(folder / WEIGHTS))
    frozen_file = paths.evaluation / "test_set.json"
    frozen = TestSetContents.from_json(frozen_file.read_text(encoding="utf-8"), str(frozen_file))
    record = ModelRecord(
        way=way,
        model=_json(folder / CONFIG),
        weights_sha256=sha256_of(folder / WEIGHTS),
        config_sha256=sha256_of(folder / CONFIG),
        parameters=_parameters(folder / WEIGHTS),
        code=code_tags(),
        params=config.model_dump(mode="json"),
        lock=_lock(paths.root / "dvc.lock"),
        corpus=_json(paths.corpus / "corpus.json"),
        test_set=TestSet(
            digest=frozen.digest,
            split=frozen.split,
            queries=len(frozen.rows),
            videos=len(frozen.videos),
            protocol=config.evaluate.protocol,
            mode=config.evaluate.mode,
        ),
        headline=Scorer(config).protocol.headline,
        figures=metrics_of(config, frozen, predictions),
        confidence=config.promotion.confidence,
        predictions_sha256=sha256_of(predictions),
        streams=_json(paths.evaluation / "streams.json"),
        leaks=leaks_of(config, paths, frozen),
        environment=_environment(),
        licences=_licences(config),
        limits=config.promotion.card.limits,
        pretraining=pretraining_card(config, paths, kind),
    )
    postprocess = read_serving(paths.served(model))
    return Candidate(record, folder, predictions, frozen, postprocess)


def needed_files(config: Config, paths: Paths, model: str, kind: str) -> list[Path]:
    """The DVC outputs that `gather` reads: the model and small files, no videos or features."""
    files = [paths.corpus / "corpus.json", *(paths.split(split) for split in ("train", "val"))]
    files += [*read_before(paths).values(), paths.intervid / CARD_FILE]
    files.append(paths.stream(config.features.video_streams[0]) / INDEX_FILE)
    folders = [paths.model(kind, model), paths.served(model), paths.evaluation]
    return [*folders, *files]


def pretraining_card(config: Config, paths: Paths, kind: str) -> dict[str, Any] | None:
    """The data card of the InterVid-MR queries behind a kind of weights; None if there are none."""
    is_after = kind == "pretrained" or (kind == "finetuned" and config.train.start == "pretrained")
    if not is_after or pretraining_files(paths)[0].parent != paths.intervid:
        return None
    card: dict[str, Any] = _json(paths.intervid / CARD_FILE)
    return card if card["state"] == "complete" else None


def metrics_of(
    config: Config, frozen: TestSetContents, predictions: Path
) -> dict[str, RecordedMetric]:
    """Every metric of the protocol that has a confidence interval, the headline first."""
    scorer = Scorer(config)
    scores = scorer.score(frozen.rows, read_rows(predictions))
    settings = BootstrapSettings(
        config.promotion.resamples, config.seed, config.promotion.confidence
    )
    found = {}
    for name in scorer.main_metrics(scores):
        if name in scores.per_query.values:
            interval = confidence_interval(scores.per_query, name, settings)
            found[name] = RecordedMetric(
                value=interval.value,
                low=interval.low,
                high=interval.high,
                queries=interval.queries,
                videos=interval.videos,
            )
    return found


def read_before(paths: Paths) -> dict[str, Path]:
    """The sets that a pre-training may have seen, by name."""
    own = {name: paths.split(name) for name in PRETRAINING}
    generated = {f"intervid_mr.{s}": paths.intervid / f"{s}.jsonl" for s in ("train", "val")}
    captioned = {"video_captions": paths.video_captions / "train.jsonl"}
    return own | captioned | generated


def leaks_of(config: Config, paths: Paths, frozen: TestSetContents) -> dict[str, list[str]]:
    """Sets that training or model selection may have seen and that contain test videos."""
    files = {split: paths.split(split) for split in ("train", "val") if split != frozen.split}
    files |= read_before(paths)
    others = {name: _vids(path) for name, path in files.items()}
    return find_leaks(
        frozen, others, video_contents(paths.stream(config.features.video_streams[0]))
    )


def _require_evaluated(paths: Paths, way: str, weights: str) -> None:
    path = paths.evaluation / "weights.json"
    known: dict[str, str] = _json(path)
    if known.get(way) != weights:
        rule = f"the evaluation of {way} is of weights {known.get(way)}, here are {weights}"
        raise DataError(f"{rule}; run `dvc repro evaluate`", file=path)


def _vids(path: Path) -> set[str]:
    """Video ids of an annotation file.

    Raises:
        DataError: the file is missing, so leakage cannot be checked.
    """
    if not path.exists():
        raise DataError("is not there; run `dvc pull`, or `dvc repro`", file=path)
    lines = byte_lines(path)
    return {str(json.loads(line)["vid"]) for line in lines if line.strip()}


def _json(path: Path) -> Any:
    try:
        return read_object(path)
    except FileNotFoundError:
        raise DataError("is not there; run `dvc repro`", file=path) from None


def _lock(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    stages: dict[str, Any] = read_yaml(path)["stages"]
    return stages


def _parameters(weights: Path) -> int:
    """Number of values in all tensors, buffers included."""
    with safe_open(weights, framework="numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _environment() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


def _licences(config: Config) -> dict[str, str]:
    """Licences of the code, the data, and each weight file of the encoders."""
    licences = {"code": "Apache-2.0"}
    if config.corpus.source == "sample":
        licences["data"] = "rendered from Noto Color Emoji artwork, Apache-2.0 (NOTICE)"
    else:
        stated = config.promotion.card.data_licence
        licences["data"] = stated or "not stated (promotion.card.data_licence of params.yaml)"
    locked = WeightsLock().files
    if config.features.has_imports:
        licences["features"] = f"of other programs, as {config.features.imports} has them"
        return licences
    for stream in (*config.features.video_streams, *config.features.text_streams):
        weights: Mapping[str, str] = ENCODERS.get(stream)().fingerprint().get("weights", {})
        for name in weights:
            if name not in locked:  # a file of a weight set, named <set>/<file>
                licences[name] = WeightSet(name.partition("/")[0]).lock().licence
                continue
            note = f"; {locked[name].note}" if locked[name].note else ""
            licences[f"{name} ({locked[name].package})"] = f"{locked[name].licence}{note}"
    return licences
