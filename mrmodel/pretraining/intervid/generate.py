"""InterVid-MR: turns captions of single intervals into queries with windows and grades.

The pre-training set of SG-DETR (section 4.3.2): a caption of InternVid belongs to one interval, but
other clips of the video may match it as well. The clips of a segment around the interval are
compared with the caption (eq. 16); those about as similar as the annotated ones become positive
(eq. 17) and get a grade from 1 to 4 (eq. 18). The output has the format of QVHighlights.

Data flow: `filtering` (all rows) -> `selection` (in hash order) -> features -> `samples` (segments
and similarities, shard by shard) -> labels -> `output`. Memory grows with none but the number of
selected captions, by some hundred bytes each.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mrmodel.config.intervid import IntervidSettings
from mrmodel.errors import FeatureMismatch
from mrmodel.pretraining.intervid.decontaminate import Excluded
from mrmodel.pretraining.intervid.filtering import (
    REJECTS_FILE,
    FilterJob,
    filter_captions,
    kept_work,
)
from mrmodel.pretraining.intervid.labelling import (
    REASONS,
    annotated_sds,
    label,
    sd_floor,
)
from mrmodel.pretraining.intervid.output import (
    MANIFEST_FILE,
    SampleFiles,
    input_digests,
    write_rejects,
    write_report,
)
from mrmodel.pretraining.intervid.report import IntervidReport, SampleStatistics, warnings_of
from mrmodel.pretraining.intervid.samples import (
    NO_VIDEO,
    Features,
    LabelledShard,
    ScoredShard,
    assign_splits,
    score_shard,
    unused_captions,
)
from mrmodel.pretraining.intervid.selection import (
    SELECTED_FILE,
    read_selection_record,
    read_shards,
    select_captions,
)
from mrmodel.progress import Reporter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """What samples are made of, and where.

    Attributes:
        filtered: folder of `filtering.filter_captions`.
        selected: folder of `selection.select_captions`.
        features: of the selected captions; None if there are none.
        out: target folder.
        work: folder of what an interrupted run left; removed in the end.
    """

    filtered: Path
    selected: Path
    features: Features | None
    out: Path
    work: Path


def build(
    table: Path,
    excluded: Excluded,
    features: Features | None,
    out: Path,
    settings: IntervidSettings,
    clip_len_s: float,
    reporter: Reporter,
) -> IntervidReport | None:
    """All steps in one folder: ``filter/``, ``select/`` and, with features, ``samples/``.

    An interrupted run goes on where it ended.

    Args:
        table: the caption table.
        excluded: videos that must not be trained on.
        features: of the selected captions; None: end with the list of them.
        out: target folder.
        settings: the section `intervid`.
        clip_len_s: seconds of a clip.
        reporter: of progress.

    Raises:
        DataError, FeatureMismatch, OutputError: see the functions of the steps.
    """
    filtered, selected, work = out / "filter", out / "select", out / ".work"
    (out / "samples" / MANIFEST_FILE).unlink(missing_ok=True)
    job = FilterJob(table, excluded, filtered, work / "filter")
    filter_captions(job, settings, reporter)
    select_captions(filtered, settings, clip_len_s, selected)
    report = None
    if features is not None:
        samples = GenerationJob(filtered, selected, features, out / "samples", work / "samples")
        report = generate(samples, settings, reporter)
    shutil.rmtree(work, ignore_errors=True)
    return report


def generate(job: GenerationJob, settings: IntervidSettings, reporter: Reporter) -> IntervidReport:
    """Build the data set of selected captions.

    Writes train.jsonl, val.jsonl, labels.parquet (one row per sample, by qid), rejects.jsonl,
    report.json, metrics.json, plots/*.csv, card.json, card.md and, last, manifest.json: a folder
    without it is incomplete. A corpus without captions, or without any that passes, gives empty
    files and the state ``empty``; that is not an error.

    Raises:
        DataError: the filter or the selection did not end.
        FeatureMismatch: clip and caption vectors are of different spaces.
        OutputError: the disk is full.
    """
    (job.out / MANIFEST_FILE).unlink(missing_ok=True)
    selection = read_selection_record(job.selected)
    inputs = input_digests(selection, job.features)
    paths = _score(job, inputs, selection["selected"]["captions"], settings, reporter)
    sds = [annotated_sds(scored.similarities) for _, scored in _shards(job, paths)]
    floor = sd_floor(np.concatenate([np.zeros(0), *sds]), settings.labels.sd_floor_quantile)
    splits = _splits(job, paths, settings, floor)
    statistics, problems, outcomes = SampleStatistics(), Counter[str](), Counter[str]()
    unused: list[dict[str, Any]] = []
    reporter.start("labels", len(paths))
    with SampleFiles(job.out, settings.labels.annotators) as files:
        for (rows, scored), split in zip(_shards(job, paths), splits, strict=True):
            labels = label(scored.similarities, settings.labels, floor)
            clip_ms = 0 if job.features is None else job.features.clip_ms
            shard = LabelledShard.of(rows, scored, labels, split, clip_ms)
            files.add(shard)
            statistics.add(shard)
            problems.update(scored.problem.tolist())
            outcomes.update(split.tolist())
            unused += unused_captions(rows, scored, split)
            reporter.advance()
    reporter.finish()
    write_rejects(job.out, job.filtered / REJECTS_FILE, unused)
    report = _report(_counts(selection, problems, outcomes), statistics, floor, selection)
    for warning in report.warnings:
        log.warning("InterVid-MR: %s", warning)
    write_report(job.out, settings, inputs, report, floor)
    shutil.rmtree(job.work, ignore_errors=True)
    return report


def _score(
    job: GenerationJob,
    inputs: dict[str, Any],
    captions: int,
    settings: IntervidSettings,
    reporter: Reporter,
) -> list[Path]:
    """Files of the scored shards, made unless an interrupted run left them."""
    features = job.features
    if features is None:
        return []
    if features.clips.dim != features.texts.dim:
        rule = f"clips have {features.clips.dim} channels, captions {features.texts.dim}"
        raise FeatureMismatch(f"{rule}: InterVid-MR needs streams of one aligned space")
    chosen = {"segment": settings.segment.model_dump(), "seed": settings.seed}
    folder, known = kept_work(job.work, [inputs, chosen]), features.video_ids()
    paths = []
    reporter.start("similarities", captions)
    for index, rows in enumerate(read_shards(job.selected / SELECTED_FILE)):
        paths.append(folder / f"{index:06d}.npz")
        if not paths[-1].exists():
            score_shard(rows, features, known, settings).save(paths[-1])
        reporter.advance(len(rows))
    reporter.finish()
    return paths


def _shards(job: GenerationJob, paths: list[Path]) -> Iterator[tuple[pa.Table, ScoredShard]]:
    """The captions of each shard, and the shard."""
    if paths:
        tables = read_shards(job.selected / SELECTED_FILE)
        for rows, path in zip(tables, paths, strict=True):
            yield rows, ScoredShard.load(path)


def _splits(
    job: GenerationJob, paths: list[Path], settings: IntervidSettings, floor: float
) -> list[NDArray[np.str_]]:
    """The split of every segment, for which those of all shards must be known."""
    reasons, video_ids = [], []
    for rows, scored in _shards(job, paths):
        reasons.append(label(scored.similarities, settings.labels, floor).reason)
        video_ids.append(rows["video_id"].filter(pa.array(scored.usable)).to_pylist())
    return assign_splits(reasons, video_ids, settings)


def _counts(
    selection: dict[str, Any], problems: Counter[str], outcomes: Counter[str]
) -> dict[str, Any]:
    """Rows and samples by step and reason; each step starts with the rest of the previous one."""
    filtered = selection["filter"]
    others = {name: count for name, count in sorted(problems.items()) if name not in ("", NO_VIDEO)}
    return {
        "rows": filtered["rows"],
        "rules": filtered["rules"],
        "kept": filtered["kept"],
        "selected": selection["selected"],
        "segments": {"chosen": problems[""], NO_VIDEO: problems[NO_VIDEO], **others},
        "labels": {reason: outcomes[reason] for reason in REASONS[1:]},
        "samples": {split: outcomes[split] for split in ("train", "val", "reserve")},
    }


def _report(
    counts: dict[str, Any], statistics: SampleStatistics, floor: float, selection: dict[str, Any]
) -> IntervidReport:
    distributions, metrics = statistics.describe(counts, floor)
    empty = metrics["samples_train"] + metrics["samples_val"] == 0
    why = _why_empty(counts, selection) if empty else ""
    return IntervidReport(
        state="empty" if empty else "complete",
        reason=why,
        counts=counts,
        metrics=metrics,
        warnings=[f"no samples: {why}"] if empty else warnings_of(metrics),
        distributions=distributions,
    )


def _why_empty(counts: dict[str, Any], selection: dict[str, Any]) -> str:
    if selection["filter"]["table"] is None:
        return "the corpus has no caption table"
    if counts["rows"]["read"] == 0:
        return "the caption table has no rows"
    if counts["kept"]["captions"] == 0:
        return "no caption passes the rules; see `rules` in the counts"
    if counts["segments"]["chosen"] == 0:
        return "no caption has a segment with features; see `segments` in the counts"
    return "no segment passes the checks of its labels; see `labels` in the counts"
