"""InterVid-MR: turns captions of single intervals into queries with windows and grades.

The pre-training set of SG-DETR (section 4.3.2): a caption of InternVid belongs to one interval, but
other clips of the video may match it as well. The clips of a segment around the interval are
compared with the caption (eq. 16); those about as similar as the annotated ones become positive
(eq. 17) and get a grade from 1 to 4 (eq. 18). The output has the format of QVHighlights.

Data flow: `caption_table` -> `samples` (segments, similarities, labels) -> `output`.
"""

from __future__ import annotations

import logging
from collections import Counter
from operator import itemgetter
from pathlib import Path
from typing import Any

from mrmodel.config.intervid import IntervidSettings
from mrmodel.errors import DataError
from mrmodel.files import write_jsonl
from mrmodel.pretraining.intervid.caption_table import CaptionTable, filter_captions
from mrmodel.pretraining.intervid.decontaminate import base_video, in_both_forms, read_leak_files
from mrmodel.pretraining.intervid.labelling import REASONS
from mrmodel.pretraining.intervid.output import MANIFEST_FILE, GenerationResult, write_outcome
from mrmodel.pretraining.intervid.report import IntervidReport, describe_generation, warnings_of
from mrmodel.pretraining.intervid.samples import (
    Candidates,
    Dropped,
    Features,
    IntervidInputs,
    Samples,
    find_candidates,
    label_candidates,
    measure,
)
from mrmodel.progress import Reporter

__all__ = ["Features", "IntervidInputs", "IntervidReport", "generate"]

log = logging.getLogger(__name__)


def generate(
    settings: IntervidSettings, inputs: IntervidInputs, out_dir: Path, reporter: Reporter
) -> IntervidReport:
    """Build the data set.

    Writes train.jsonl, val.jsonl, labels.parquet (one row per sample, by qid), rejects.jsonl,
    report.json, metrics.json, plots/*.csv and, last, manifest.json: a folder without it is
    incomplete. A corpus without captions, or without any that passes, gives empty files and the
    state ``empty``; that is not an error.

    Raises:
        DataError: the caption table or a leak list is missing or has another format, or the
            fraction of bad rows exceeds `captions.max_bad_row_share` (rejects.jsonl is written
            then).
        FeatureMismatch: clip and caption vectors are of different spaces.
    """
    (out_dir / MANIFEST_FILE).unlink(missing_ok=True)
    outcome = _run(settings, inputs, out_dir, reporter)
    for warning in outcome.report.warnings:
        log.warning("InterVid-MR: %s", warning)
    write_outcome(out_dir, outcome)
    return outcome.report


def _run(
    settings: IntervidSettings, inputs: IntervidInputs, out_dir: Path, reporter: Reporter
) -> GenerationResult:
    """All steps except writing."""
    captions, features = inputs.captions, inputs.features
    if captions is None or features is None:
        report = _report({}, None, "the corpus has no caption table")
        return GenerationResult(settings, inputs, frozenset(), report, None, [])
    leak = _leak_videos(settings, inputs)
    table = filter_captions(captions, settings, leak, reporter)
    _check_bad_share(settings, captions, table, out_dir)
    candidates, dropped, featureless = find_candidates(captions, table.kept, features, settings)
    similarities = measure(candidates, features, reporter)
    samples = label_candidates(candidates, similarities, settings, features.clip_ms)
    counts = _counts(table, dropped, featureless, samples)
    report = _report(counts, samples, _why_empty(table, candidates))
    return GenerationResult(
        settings, inputs, leak, report, samples, _rejects(table, dropped, samples)
    )


def _leak_videos(settings: IntervidSettings, inputs: IntervidInputs) -> frozenset[str]:
    """Evaluation videos; segments are mapped to their whole video.

    Raises:
        DataError: the rule `leak` is on but no evaluation videos are given.
    """
    if not settings.captions.rules.leak:
        return frozenset()
    if inputs.leak_videos is None and not inputs.leak_files:
        raise DataError(
            "no list of evaluation videos: give one, or switch off intervid.captions.rules.leak",
            file=inputs.captions,
        )
    known = inputs.leak_videos or frozenset()
    return in_both_forms(known | set(map(base_video, known)) | read_leak_files(inputs.leak_files))


def _check_bad_share(
    settings: IntervidSettings, captions: Path, table: CaptionTable, out_dir: Path
) -> None:
    bad, most = len(table.bad_rows), settings.captions.max_bad_row_share
    if bad <= most * table.rows:
        return
    rejects = out_dir / "rejects.jsonl"
    write_jsonl(rejects, (row.as_row() for row in table.bad_rows))
    reasons = ", ".join(f"{reason} {count}" for reason, count in table.bad_counts().items())
    rule = f"{bad} of {table.rows} rows are bad, more than {most:.1%} ({reasons}); see {rejects}"
    raise DataError(rule, file=captions, line=table.bad_rows[0].line)


def _counts(
    table: CaptionTable, dropped: list[Dropped], featureless: int, samples: Samples
) -> dict[str, Any]:
    """Rows and samples by step and reason; each step starts with the rest of the previous one."""
    outcomes = Counter(map(str, samples.split))
    return {
        "rows": {"read": table.rows, "bad": table.bad_counts(), "normalised": table.normalised},
        "rules": table.removed,
        "kept": {
            "captions": len(table.kept),
            "duplicate_row": table.duplicates,
            "qid_collision": len(table.collisions),
        },
        "segments": {
            "chosen": len(samples.candidates),
            "no_video_features": featureless,
            **dict(sorted(Counter(row.reason for row in dropped).items())),
        },
        "labels": {reason: outcomes[reason] for reason in REASONS[1:]},
        "samples": {split: outcomes[split] for split in ("train", "val", "reserve")},
    }


def _report(counts: dict[str, Any], samples: Samples | None, why_empty: str) -> IntervidReport:
    distributions, metrics = describe_generation(samples)
    empty = metrics["samples_train"] + metrics["samples_val"] == 0
    return IntervidReport(
        state="empty" if empty else "complete",
        reason=why_empty if empty else "",
        counts=counts,
        metrics=metrics,
        warnings=[f"no samples: {why_empty}"] if empty else warnings_of(metrics),
        distributions=distributions,
    )


def _why_empty(table: CaptionTable, candidates: Candidates) -> str:
    if table.rows == 0:
        return "the caption table has no rows"
    if len(table.kept) == 0:
        return "no caption passes the rules; see `rules` in the counts"
    if len(candidates) == 0:
        return "no caption has a segment with features; see `segments` in the counts"
    return "no segment passes the checks of its labels; see `labels` in the counts"


def _rejects(table: CaptionTable, dropped: list[Dropped], samples: Samples) -> list[dict[str, Any]]:
    """Rows of rejects.jsonl by line; rows removed by a rule are counted, not listed."""
    rows = [row.as_row() for row in table.bad_rows]
    rows += [row.as_row() for row in (*dropped, *samples.rejected())]
    rows += [{"line": line, "reason": "qid_collision"} for line in table.collisions]
    return sorted(rows, key=itemgetter("line"))
