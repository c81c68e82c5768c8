"""Report of an InterVid-MR run: distributions, DVC metrics, warnings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mrmodel.pretraining.intervid.samples import Samples

GRADES = (1, 2, 3, 4)
MIN_GRADE_4, MAX_GRADE_1 = 0.02, 0.40
COVERAGE_BINS = 20
LENGTH_BIN_S = 5

Floats = NDArray[np.float64]


# Tables of the plots. Coverage is the positive fraction of a segment; interval lengths are from
# the caption table, window lengths from the labelling.
PLOT_COLUMNS = {
    "grades": ("grade", "clips", "share"),
    "windows_per_query": ("windows", "queries"),
    "coverage": ("from", "to", "queries"),
    "interval_length": ("from_s", "to_s", "intervals", "windows"),
}

ReportColumns = list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class IntervidReport:
    """Content of report.json.

    Attributes:
        state: ``complete``, or ``empty`` if there is no sample.
        reason: why it is empty.
        counts: rows and samples by step and reason.
        metrics: flat metrics of the samples; metrics.json.
        warnings: issues to consider before training on them.
        distributions: one table per name of `PLOT_COLUMNS`; plots/*.csv.
    """

    state: Literal["complete", "empty"]
    reason: str
    counts: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    distributions: dict[str, ReportColumns] = field(default_factory=dict)


def describe_generation(samples: Samples | None) -> tuple[dict[str, ReportColumns], dict[str, Any]]:
    """Distributions and flat metrics of the train and val samples; zeros if there are none."""
    chosen = [] if samples is None else samples.indices("train", "val")
    grades, windows, intervals_s, videos = _columns(samples, chosen)
    histogram = np.bincount(np.concatenate([np.zeros(0, np.int8), *grades]), minlength=5)[1:]
    shares = histogram / max(int(histogram.sum()), 1)
    counts = np.array([len(of_query) for of_query in windows], dtype=np.int64)
    coverage = np.array([np.count_nonzero(grade) / len(grade) for grade in grades])
    lengths_s = np.array([end - start for of_query in windows for start, end in of_query])
    distributions: dict[str, ReportColumns] = {
        "grades": [
            {"grade": grade, "clips": int(clips), "share": round(float(share), 6)}
            for grade, clips, share in zip(GRADES, histogram, shares, strict=True)
        ],
        "windows_per_query": [
            {"windows": number, "queries": int(queries)}
            for number, queries in enumerate(np.bincount(counts))
            if number
        ],
        "coverage": _coverage_table(coverage),
        "interval_length": _length_table(intervals_s, lengths_s),
    }
    figures = {
        "samples_train": 0 if samples is None else len(samples.indices("train")),
        "samples_val": 0 if samples is None else len(samples.indices("val")),
        "videos": len(videos),
        **{f"grade_{grade}": round(float(s), 6) for grade, s in zip(GRADES, shares, strict=True)},
        "windows_per_query": _mean(counts),
        "coverage": _mean(coverage),
        "window_s": _mean(lengths_s),
        "interval_s": _mean(intervals_s),
        "sd_floor": 0.0 if samples is None else round(samples.floor, 6),
    }
    return distributions, figures


def warnings_of(figures: dict[str, Any]) -> list[str]:
    """Issues to consider before training on these labels."""
    if not figures["samples_train"] + figures["samples_val"]:
        return []
    found = []
    if figures["grade_4"] < MIN_GRADE_4:
        share, least = figures["grade_4"], MIN_GRADE_4
        found.append(
            f"grade 4 has {share:.1%} of the positive clips (below {least:.0%}): with few clips an "
            "interval cannot reach it; raise intervid.captions.min_interval_s"
        )
    if figures["grade_1"] > MAX_GRADE_1:
        share, most = figures["grade_1"], MAX_GRADE_1
        found.append(
            f"grade 1 has {share:.1%} of the positive clips (above {most:.0%}): they are graded by "
            "the annotated clips alone; try intervid.labels.grade_stats: new"
        )
    if not figures["samples_val"]:
        found.append("the val split is empty: intervid.val_share is 0 or one video is all there is")
    return found


def csv_text(rows: ReportColumns, columns: tuple[str, ...]) -> str:
    """Rows as CSV with a header, even without rows."""
    lines = [",".join(columns), *(",".join(f"{row[name]:g}" for name in columns) for row in rows)]
    return "\n".join(lines) + "\n"


def _columns(
    samples: Samples | None, chosen: list[int]
) -> tuple[list[NDArray[np.int8]], list[list[list[float]]], Floats, set[str]]:
    """Grades, windows, caption interval lengths, and videos of the chosen samples."""
    if samples is None:
        return [], [], np.zeros(0), set()
    rows = samples.candidates.rows.iloc[chosen]
    return (
        [samples.labels.grade[samples.clips(index)] for index in chosen],
        [samples.windows(index) for index in chosen],
        (rows["end_ms"] - rows["start_ms"]).to_numpy(np.float64) / 1000,
        {samples.candidates.captions[index].video_id for index in chosen},
    )


def _coverage_table(coverage: Floats) -> ReportColumns:
    counts, edges = np.histogram(coverage, bins=COVERAGE_BINS, range=(0.0, 1.0))
    return [
        {"from": round(float(low), 4), "to": round(float(high), 4), "queries": int(count)}
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def _length_table(intervals_s: Floats, windows_s: Floats) -> ReportColumns:
    longest = max(intervals_s.max(initial=0.0), windows_s.max(initial=0.0))
    edges = np.arange(0, longest + 2 * LENGTH_BIN_S, LENGTH_BIN_S)
    intervals, windows = (
        np.histogram(values, bins=edges)[0] for values in (intervals_s, windows_s)
    )
    return [
        {
            "from_s": int(low),
            "to_s": int(low) + LENGTH_BIN_S,
            "intervals": int(a),
            "windows": int(b),
        }
        for low, a, b in zip(edges, intervals, windows, strict=False)
    ]


def _mean(values: NDArray[Any]) -> float:
    return round(float(values.mean()), 6) if len(values) else 0.0
