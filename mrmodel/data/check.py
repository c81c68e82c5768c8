"""`mrmodel data check`: all errors of an annotation file, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from mrmodel.data.annotations import (
    DEFAULT_CLIP_LEN_S,
    SCORED_SPLITS,
    Unscorable,
    scan_annotations,
    truth_problem,
)
from mrmodel.data.ingest.videos import VideoLibrary
from mrmodel.errors import DataError
from mrmodel.features.keys import normalise_query
from mrmodel.text import four_digits
from mrmodel.types import Annotation

# Upper limits of short and middle windows in seconds, as in the QVHighlights evaluation.
_SHORT_S, _MIDDLE_S = 10.0, 30.0


@dataclass(slots=True)
class CheckReport:
    """Summary and errors of an annotation file.

    `summary` maps names to values: a number, a text, or a mapping of those.
    """

    path: Path
    summary: dict[str, Any]
    errors: list[DataError] = field(default_factory=list)
    warnings: list[DataError] = field(default_factory=list)


def check_file(
    path: Path,
    videos_dir: Path | None = None,
    clip_len_s: float = DEFAULT_CLIP_LEN_S,
    unscorable: Unscorable | None = None,
) -> CheckReport:
    """Check a whole annotation file by the rules of the stage `corpus`; continues after errors.

    Args:
        path: the JSONL file.
        videos_dir: if given, must hold every video as ``<vid>.mp4`` (or another container, or a
            pointer to a video in S3, which is not opened). Each is opened.
        clip_len_s: seconds of one clip.
        unscorable: of the project's protocol, for ``val.jsonl`` and ``test.jsonl``; None: any row
            can be scored.

    Raises:
        DataError: the file cannot be opened, or the folder is missing or holds no video.
    """
    scan = scan_annotations(path, clip_len_s)
    library = None if videos_dir is None else VideoLibrary(videos_dir, opens_remote=False)
    usable = []
    for line, row in zip(scan.lines, scan.rows, strict=True):
        problem = truth_problem(row)
        if problem is None and library is not None:
            problem = library.row_problem(row, clip_len_s)
        if problem is not None:
            scan.errors.append(DataError(problem, file=path, line=line, qid=row.qid))
        else:
            usable.append((line, row))
    if unscorable is not None and path.stem in SCORED_SPLITS:
        for place, rule in unscorable([row for _, row in usable]).items():
            line, row = usable[place]
            scan.errors.append(DataError(rule, file=path, line=line, qid=row.qid))
    if library is not None and library.unopened:
        rule = f"{len(library.unopened)} videos in S3 were not opened; the stage `corpus` does it"
        scan.warnings.append(DataError(rule, file=videos_dir))
    errors = sorted(scan.errors, key=lambda error: error.line or 0)
    return CheckReport(path, summarise_annotations(scan.rows, clip_len_s), errors, scan.warnings)


def summarise_annotations(rows: Sequence[Annotation], clip_len_s: float) -> dict[str, Any]:
    """Summary statistics of annotations, by name."""
    if not rows:
        return {"queries": 0}
    lengths = [end - start for row in rows for start, end in row.relevant_windows]
    words = [len(row.query.split()) for row in rows]
    summary: dict[str, Any] = {
        "queries": len(rows),
        "distinct queries": len({normalise_query(row.query) for row in rows}),
        "videos": len({row.vid for row in rows}),
        "same query and video again": len(rows)
        - len({(normalise_query(row.query), row.vid) for row in rows}),
        "duration in s": _range(row.duration for row in rows),
        "query length in words": _range(words),
        "queries without windows": sum(not row.relevant_windows for row in rows),
        "windows": len(lengths),
    }
    if lengths:
        per_query = Counter(len(row.relevant_windows) for row in rows)
        summary["windows per query"] = dict(sorted(per_query.items()))
        summary["window length in s"] = _range(lengths)
        summary["window lengths"] = _length_classes(lengths)
        summary["share of the video in windows"] = _range(
            _covered_s(row) / row.duration for row in rows if row.relevant_windows
        )
    summary.update(_saliency_summary(rows, clip_len_s))
    return summary


def format_report(report: CheckReport) -> str:
    """The report as text: errors with their lines, then the summary."""
    lines = [f"error: {error}" for error in report.errors]
    lines += [f"warning: {warning}" for warning in report.warnings]
    for name, value in report.summary.items():
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(f"{key}: {four_digits(item)}" for key, item in value.items())
        lines.append(f"{name}: {four_digits(shown)}")
    lines.append(f"{len(report.errors)} errors, {len(report.warnings)} warnings")
    return "\n".join(lines)


def _saliency_summary(rows: Sequence[Annotation], clip_len_s: float) -> dict[str, Any]:
    ratings = Counter(rating for row in rows for clip in row.saliency_scores for rating in clip)
    shares = [
        len(row.relevant_clip_ids) * clip_len_s / row.duration
        for row in rows
        if row.relevant_clip_ids
    ]
    if not shares:
        return {"relevant clips": 0}
    raters = Counter(len(clip) for row in rows for clip in row.saliency_scores)
    return {
        "relevant clips": sum(len(row.relevant_clip_ids) for row in rows),
        "share of the video in relevant clips": _range(shares),
        "raters": dict(sorted(raters.items())),
        "ratings": {f"{rating:g}": count for rating, count in sorted(ratings.items())},
    }


def _length_classes(lengths: list[float]) -> dict[str, int]:
    short = sum(length <= _SHORT_S for length in lengths)
    long = sum(length > _MIDDLE_S for length in lengths)
    return {
        f"short (to {_SHORT_S:g} s)": short,
        f"middle (to {_MIDDLE_S:g} s)": len(lengths) - short - long,
        "long": long,
    }


def _covered_s(row: Annotation) -> float:
    """Seconds of the video that lie in at least one window."""
    covered, reached = 0.0, 0.0
    for start, end in sorted(row.relevant_windows):
        covered += max(0.0, min(end, row.duration) - max(start, reached))
        reached = max(reached, end)
    return covered


def _range(values: Iterable[float]) -> dict[str, float]:
    numbers = list(values)
    return {
        "min": min(numbers),
        "median": median(numbers),
        "mean": mean(numbers),
        "max": max(numbers),
    }
