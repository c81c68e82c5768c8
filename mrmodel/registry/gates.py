"""The conditions of a promotion, as functions of measured values; see docs/explanation/gates.md.

Nothing here reads files or calls a server, so every gate can be tested with made-up metrics.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from mrmodel.components import DATASETS
from mrmodel.config.schema import PromotionSettings
from mrmodel.evaluate.significance import BootstrapSettings, PerQuery, paired_bootstrap
from mrmodel.registry.decision import Gate
from mrmodel.registry.model_record import TAG, ModelRecord

# Metrics that must not fall, if `promotion.slices` is null; a protocol not listed here has none.
SLICES = {
    "qvhighlights": (
        "MR-short-mAP",
        "MR-middle-mAP",
        "MR-long-mAP",
        "HL-min-VeryGood-mAP",
        "HL-min-VeryGood-Hit1",
    )
}
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Smoke:
    """Result of loading the model in a fresh process and running its example.

    Attributes:
        fault: empty if the predictions match those at registration.
        latency_s: median seconds per query; None without predictions.
    """

    fault: str
    latency_s: float | None


@dataclass(frozen=True, slots=True)
class ModelUnderTest:
    """One of the two models that are compared.

    Attributes:
        version: in the registry.
        record: its record.
        per_query: metrics per query of its test set.
        signature: of inputs and outputs, as canonical JSON.
        size_bytes: of all files of the registered model.
        tags: of the version.
    """

    version: int
    record: ModelRecord
    per_query: PerQuery
    signature: str
    size_bytes: int
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GateRules:
    """Requirements of the gates.

    Attributes:
        settings: the section `promotion`.
        reset_baseline: do not compare with the champion, whose test set is a different one.
        withdrawn: SHA-256 of the weights of versions that were rolled back. The same weights may
            be registered again as another version, with predictions for another test set.
    """

    settings: PromotionSettings
    reset_baseline: bool = False
    withdrawn: Collection[str] = ()


def evaluate_gates(
    candidate: ModelUnderTest, champion: ModelUnderTest | None, smoke: Smoke, rules: GateRules
) -> list[Gate]:
    """All gates of one promotion, comparisons first."""
    return [
        *_compared(candidate, champion, rules),
        _signature(candidate, champion),
        _smoke(smoke, candidate),
        _latency(smoke, rules.settings.max_latency_s),
        _size(candidate, rules.settings.max_size_mb),
        _leakage(candidate),
        _decontaminated(candidate.record),
        _withdrawn(candidate, rules.withdrawn),
    ]


def _compared(
    candidate: ModelUnderTest, champion: ModelUnderTest | None, rules: GateRules
) -> list[Gate]:
    if champion is None:
        detail = "there is no champion to compare with"
        return [Gate(name=name, passed=None, detail=detail) for name in ("test_set", "better")]
    ours, theirs = candidate.record.test_set.digest, champion.record.test_set.digest
    if ours != theirs:
        detail = f"{ours[:12]}, that of version {champion.version} is {theirs[:12]}"
        if rules.reset_baseline:
            detail += "; the baseline was reset"
            return [Gate(name="test_set", passed=None, detail=detail)]
        detail += (
            "; metrics of two test sets cannot be compared (`--reset-baseline` promotes "
            "without a comparison)"
        )
        return [Gate(name="test_set", passed=False, detail=detail)]
    same = Gate(name="test_set", passed=True, detail=f"{ours[:12]}, as version {champion.version}")
    settings = rules.settings
    slices = settings.slices
    if slices is None:
        slices = list(SLICES.get(candidate.record.test_set.protocol, ()))
    worst = -settings.max_slice_loss
    return [
        same,
        _better(candidate, champion, settings),
        *(_slice(candidate, champion, figure, worst) for figure in slices),
    ]


def _better(
    candidate: ModelUnderTest, champion: ModelUnderTest, settings: PromotionSettings
) -> Gate:
    figure = candidate.record.headline
    bootstrap = BootstrapSettings(settings.resamples, confidence=settings.confidence)
    found = paired_bootstrap(champion.per_query, candidate.per_query, figure, bootstrap)
    gain = found.difference
    detail = (
        f"{figure} {gain.value:+.2f}, interval {gain.low:+.2f} to {gain.high:+.2f} over "
        f"{gain.queries} queries of {gain.videos} videos; its lower end must be above "
        f"{settings.min_gain:+.2f}"
    )
    return Gate(
        name="better",
        passed=gain.low > settings.min_gain,
        detail=detail,
        figures=found.as_json() | {"min_gain": settings.min_gain},
    )


def _slice(candidate: ModelUnderTest, champion: ModelUnderTest, figure: str, worst: float) -> Gate:
    name = f"slice {figure}"
    known = [side.per_query.values.get(figure) for side in (champion, candidate)]
    if known[0] is None or known[1] is None:
        return Gate(name=name, passed=False, detail="the evaluation has no such metric")
    before, after = (_mean(values) for values in known if values is not None)
    if math.isnan(before) and math.isnan(after):
        return Gate(name=name, passed=None, detail="no query of the test set is in it")
    change = after - before
    # A metric that only one of the two has would mean a different test set: fail.
    passed = change >= worst
    return Gate(
        name=name,
        passed=passed,
        detail=f"{after:.2f} after {before:.2f}, {change:+.2f}; may not fall below {worst:+.2f}",
        figures={"change": change, "min_change": worst} if math.isfinite(change) else {},
    )


def _signature(candidate: ModelUnderTest, champion: ModelUnderTest | None) -> Gate:
    if champion is None:
        return Gate(name="signature", passed=None, detail="there is no champion to compare with")
    same = candidate.signature == champion.signature
    word = "equal to that" if same else f"{candidate.signature}, unlike {champion.signature}"
    return Gate(name="signature", passed=same, detail=f"{word} of version {champion.version}")


def _smoke(smoke: Smoke, candidate: ModelUnderTest) -> Gate:
    detail = smoke.fault or "a fresh process reproduces the predictions of the registration"
    if candidate.record.files is None:
        detail += (
            "; the record is of an earlier release and has no digests of the model's code: "
            "register the model again to have it checked"
        )
    return Gate(name="smoke", passed=not smoke.fault, detail=detail)


def _latency(smoke: Smoke, limit_s: float) -> Gate:
    if smoke.latency_s is None:
        return Gate(name="latency", passed=False, detail="no prediction, so no latency")
    return Gate(
        name="latency",
        passed=smoke.latency_s <= limit_s,
        detail=f"{smoke.latency_s:.2f} s for a query; at most {limit_s:g} s",
        figures={"latency_s": smoke.latency_s, "max_latency_s": limit_s},
    )


def _size(candidate: ModelUnderTest, limit_mb: float) -> Gate:
    size_mb = candidate.size_bytes / _MB
    return Gate(
        name="size",
        passed=size_mb <= limit_mb,
        detail=f"{size_mb:.1f} MB; at most {limit_mb:g} MB",
        figures={"size_mb": size_mb, "max_size_mb": limit_mb},
    )


def _leakage(candidate: ModelUnderTest) -> Gate:
    tags = {name: value for name, value in candidate.tags.items() if name.startswith(TAG)}
    found = "; ".join(f"{name} = {value}" for name, value in sorted(tags.items()))
    detail = found or "no test video is in a set that training may see"
    return Gate(name="leakage", passed=not tags, detail=detail)


def _decontaminated(record: ModelRecord) -> Gate:
    """Whether the captions behind a pre-training were freed of evaluation videos.

    A model that reports on a public data set may not have seen a video of any of them; any other
    one is asked for the rule `leak` alone, which knows the evaluation videos of its corpus.
    """
    name = "decontaminated"
    if record.pretraining is None:
        return Gate(name=name, passed=None, detail="not pre-trained on captions")
    lists = record.pretraining["excluded"]
    if lists is None:
        detail = "rule `leak` was off (intervid.captions.rules.leak)"
        return Gate(name=name, passed=False, detail=detail)
    corpus = record.params["corpus"]["name"]
    wanted = list(DATASETS) if corpus in DATASETS else [corpus]
    missing = [other for other in wanted if other not in lists]
    if missing:
        detail = f"videos of {', '.join(missing)} were not excluded (intervid.captions.benchmarks)"
        return Gate(name=name, passed=False, detail=detail)
    return Gate(name=name, passed=True, detail=f"excluded: videos of {', '.join(lists)}")


def _withdrawn(candidate: ModelUnderTest, withdrawn: Collection[str]) -> Gate:
    was = candidate.record.weights_sha256 in withdrawn
    word = "were" if was else "were not"
    return Gate(name="withdrawn", passed=not was, detail=f"these weights {word} rolled back")


def _mean(values: np.ndarray) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else math.nan
