"""Stage ``evaluate``: scores and compares all variants on the test queries.

``zero_shot`` uses similarity alone; ``pretrained`` was trained without annotated queries (or, if
`train.start` is ``imported``, on its authors' data); ``scratch`` on the annotated queries of this
corpus only; ``finetuned`` on both. Fine-tuned models are compared with the other variants, and the
first one with the other fine-tuned models, by a paired bootstrap over videos.

SG-DETR's decoder and anchor windows are also scored alone, as ``<model>.<weights>.decoder`` and
``.anchors``, from the same forward pass. What is compared, plotted and shown is what is served.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mrmodel.config.postprocess import SYSTEMS
from mrmodel.config.schema import Config
from mrmodel.data.annotations import read_annotations
from mrmodel.data.loader import MomentDataset
from mrmodel.devices import pick_device
from mrmodel.evaluate.protocols import Scores
from mrmodel.evaluate.significance import (
    BootstrapSettings,
    confidence_interval,
    paired_bootstrap,
)
from mrmodel.features.manifest import has_sentence_row
from mrmodel.features.store import FeatureStore
from mrmodel.files import atomic_path, digest_of, sha256_of, write_json, write_jsonl
from mrmodel.predict.inference import predict_systems
from mrmodel.predict.serving import read_serving
from mrmodel.predict.zero_shot import predict_zero_shot
from mrmodel.progress import Reporter
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage
from mrmodel.stages.scorer import Scorer, reported_split
from mrmodel.stages.test_set import freeze
from mrmodel.stages.trainer import open_features, open_set
from mrmodel.tracking.run import current_run
from mrmodel.tracking.stage_metrics import record_evaluation
from mrmodel.train.checkpoint import WEIGHTS, load_model
from mrmodel.train.optim import set_threads
from mrmodel.types import Annotation, Prediction

log = logging.getLogger(__name__)

ZERO_SHOT = "zero_shot"
TRAINED = ("pretrained", "scratch", "finetuned")
IMPORTED = "imported"


def evaluate(config: Config, reporter: Reporter) -> None:
    """Write ``reports/evaluation``, ``metrics.json``, ``metrics/`` and ``recall.csv`` there.

    All weights of a model use the post-processing with which it is served.
    """
    paths = Paths(config)
    set_threads(config.train.threads)
    scorer = Scorer(config)
    split = reported_split(paths)
    truth = read_annotations(paths.split(split), config.features.clip_len_s)
    scored: dict[str, Scores] = {}
    answers = _answers(config, paths, truth, scorer, reporter)
    for name, predictions in answers.items():
        rows = [prediction.as_row() for prediction in predictions]
        scored[name] = scorer.score([row.as_row() for row in truth], rows)
        write_jsonl(paths.evaluation / f"{name}.jsonl", rows)
    results = {name: found for name, found in scored.items() if is_served(name)}
    write_json(
        paths.evaluation / "metrics.json", {name: found.metrics for name, found in scored.items()}
    )
    write_json(paths.evaluation / "comparison.json", compare_variants(config, scorer, results))
    write_json(paths.evaluation / "streams.json", stream_digests(config, paths))
    write_json(paths.evaluation / "weights.json", weight_digests(config, paths))
    frozen = freeze(split, truth, paths.stream(config.features.video_streams[0]))
    write_json(paths.evaluation / "test_set.json", frozen.as_json())
    metrics = {name: scorer.main_metrics(found) for name, found in scored.items()}
    write_json(paths.reports / "metrics.json", metrics)
    for name in results:
        write_json(paths.metrics / f"{name}.json", scorer.protocol.shown(metrics[name]))
    _write_recall(paths.reports / "recall.csv", results)
    record_evaluation(current_run(), paths.reports)


def _answers(
    config: Config, paths: Paths, truth: list[Annotation], scorer: Scorer, reporter: Reporter
) -> dict[str, list[Prediction]]:
    """Predictions by name: ``zero_shot``, ``<model>.pretrained`` and its systems, and so on."""
    device = pick_device(config.train.device)
    builder = open_features(config, paths, device)
    data = open_set(config, truth, builder, config.seed)
    answers = zero_shot_predictions(config, data)
    kinds = trained_kinds(config)
    reporter.start("evaluate", len(config.train.models) * len(kinds))
    for name in config.train.models:
        postprocess = scorer.postprocess(read_serving(paths.served(name)))
        for kind in kinds:
            model, _ = load_model(model_folder(paths, kind, name), device)
            batch_size = config.train.eval_batch_size
            for system, found in predict_systems(model, data, batch_size, postprocess).items():
                answers[".".join(filter(None, (name, kind, system)))] = found
            reporter.advance(model=name, weights=kind)
    reporter.finish()
    return answers


def is_served(name: str) -> bool:
    """Whether a scored variant is not one of `SYSTEMS` alone."""
    return name.rpartition(".")[2] not in SYSTEMS


def stream_digests(config: Config, paths: Paths) -> dict[str, str]:
    """Fingerprint digest of each feature stream used."""
    names = (*config.features.video_streams, *config.features.text_streams)
    return {name: digest_of(FeatureStore(paths.stream(name)).info.fingerprint) for name in names}


def weight_digests(config: Config, paths: Paths) -> dict[str, str]:
    """SHA-256 of the weights of each variant that has weights."""
    return {
        f"{name}.{kind}": sha256_of(model_folder(paths, kind, name) / WEIGHTS)
        for name in config.train.models
        for kind in trained_kinds(config)
    }


def model_folder(paths: Paths, kind: str, name: str) -> Path:
    """Folder of a model's weights of one kind; for the fine-tuned ones the served folder."""
    return paths.served(name) if kind == "finetuned" else paths.model(kind, name)


def trained_kinds(config: Config) -> tuple[str, ...]:
    """Kinds of weights scored per model: start of fine-tuning, control, fine-tuned."""
    return (config.train.start, *TRAINED[1:])


def zero_shot_predictions(config: Config, data: MomentDataset) -> dict[str, list[Prediction]]:
    """Predictions by similarity alone; empty if clips and sentences have no joint space."""
    video, text = data.builder.video[0], data.builder.text[0]
    apart = isinstance(text, FeatureStore) and not has_sentence_row(text.info)
    if apart or video.dim != text.dim:
        return {}
    threshold = config.evaluate.zero_shot_std
    return {ZERO_SHOT: predict_zero_shot(data.annotations, video, text, threshold)}


def compare_variants(config: Config, scorer: Scorer, results: dict[str, Scores]) -> dict[str, Any]:
    """Intervals of the headline metric, and of the differences between `pairs`."""
    figure = scorer.protocol.headline
    settings = BootstrapSettings(resamples=config.evaluate.bootstrap_resamples, seed=config.seed)
    intervals, differences = {}, {}
    for name, scores in results.items():
        found = confidence_interval(scores.per_query, figure, settings)
        intervals[name] = {"value": found.value, "low": found.low, "high": found.high}
    for better, other in pairs(config.train.models, results):
        found_pair = paired_bootstrap(
            results[other].per_query, results[better].per_query, figure, settings
        )
        differences[f"{better} - {other}"] = found_pair.as_json()
    return {"figure": figure, "intervals": intervals, "differences": differences}


def pairs(models: Sequence[str], ways: Container[str]) -> list[tuple[str, str]]:
    """Variants to compare: (fine-tuned model, other variant).

    Each fine-tuned model with zero-shot and with its own other weights, and the first one with the
    other fine-tuned models; all pairs would be too many to read. Variants that were not scored are
    omitted.
    """
    found = []
    for model in models:
        tuned = f"{model}.finetuned"
        others = [ZERO_SHOT, *(f"{model}.{kind}" for kind in (IMPORTED, *TRAINED))]
        if model == models[0]:
            others += [f"{other}.finetuned" for other in models]
        found += [(tuned, other) for other in others if other in ways and other != tuned]
    return found


def _write_recall(path: Path, results: dict[str, Scores]) -> None:
    """R1 over IoU thresholds, one row per variant and threshold, for ``dvc plots``."""
    rows = []
    for name, scores in results.items():
        block = scores.metrics.get("full", scores.metrics)
        recall = block.get("MR-R1", block.get("R1", {}))
        rows += [{"way": name, "iou": float(iou), "R1": value} for iou, value in recall.items()]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows, columns=["way", "iou", "R1"]).to_csv(temporary, index=False)


if __name__ == "__main__":
    run_stage(evaluate)
