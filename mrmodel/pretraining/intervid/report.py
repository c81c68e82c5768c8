"""Report and data card of an InterVid-MR run: distributions, DVC metrics, warnings, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mrmodel.config.intervid import IntervidSettings
from mrmodel.pretraining.intervid.samples import LabelledShard
from mrmodel.pretraining.intervid.selection import column
from mrmodel.text import table

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


@dataclass(slots=True)
class SampleStatistics:
    """What the report says about the train and val samples, collected shard by shard.

    Attributes:
        samples: number of samples by split.
        videos: ids of their videos.
        grades: (5,) number of clips by grade; grade 0 is not counted.
        windows: number of windows of each sample.
        coverage: positive fraction of each segment.
        windows_s: length of each window.
        intervals_s: length of the caption's interval of each sample.
    """

    samples: Counter[str] = field(default_factory=Counter)
    videos: set[str] = field(default_factory=set)
    grades: NDArray[np.int64] = field(default_factory=lambda: np.zeros(5, dtype=np.int64))
    windows: list[NDArray[np.int64]] = field(default_factory=list)
    coverage: list[Floats] = field(default_factory=list)
    windows_s: list[Floats] = field(default_factory=list)
    intervals_s: list[Floats] = field(default_factory=list)

    def add(self, shard: LabelledShard) -> None:
        """Add the samples of a shard."""
        chosen = shard.indices("train", "val")
        self.samples.update(shard.split.tolist())
        rows = shard.rows.take(pa.array(chosen))
        self.videos.update(rows["video_id"].to_pylist())
        labels, offsets = shard.labels, shard.scored.similarities.offsets
        of_sample = np.zeros(len(offsets) - 1, dtype=bool)
        of_sample[chosen] = True
        clips = np.diff(offsets)
        of_clip = np.repeat(of_sample, clips)
        self.grades += np.bincount(labels.grade[of_clip], minlength=5)
        segment = np.repeat(np.arange(len(clips)), clips)
        positive = np.bincount(segment[labels.grade > 0], minlength=len(clips))
        self.coverage.append(positive[chosen] / clips[chosen])
        self.windows.append(np.bincount(labels.window_segment, minlength=len(clips))[chosen])
        lengths = (labels.window_last + 1 - labels.window_first) * shard.clip_ms / 1000
        self.windows_s.append(lengths[of_sample[labels.window_segment]])
        self.intervals_s.append((column(rows, "end_ms") - column(rows, "start_ms")) / 1000)

    def describe(
        self, counts: dict[str, Any], floor: float
    ) -> tuple[dict[str, ReportColumns], dict[str, Any]]:
        """Distributions, and flat metrics with a counter for each rule; zeros without samples.

        Args:
            counts: of the report.
            floor: the std floor of the run.
        """
        histogram = self.grades[1:]
        shares = histogram / max(int(histogram.sum()), 1)
        windows = np.concatenate([np.zeros(0, np.int64), *self.windows])
        coverage, windows_s, intervals_s = (
            np.concatenate([np.zeros(0), *parts])
            for parts in (self.coverage, self.windows_s, self.intervals_s)
        )
        distributions: dict[str, ReportColumns] = {
            "grades": [
                {"grade": grade, "clips": int(clips), "share": round(float(share), 6)}
                for grade, clips, share in zip(GRADES, histogram, shares, strict=True)
            ],
            "windows_per_query": [
                {"windows": number, "queries": int(queries)}
                for number, queries in enumerate(np.bincount(windows))
                if number
            ],
            "coverage": _coverage_table(coverage),
            "interval_length": _length_table(intervals_s, windows_s),
        }
        of_grade = zip(GRADES, shares, strict=True)
        metrics = {
            "samples_train": self.samples["train"],
            "samples_val": self.samples["val"],
            "videos": len(self.videos),
            **{f"grade_{grade}": round(float(share), 6) for grade, share in of_grade},
            "windows_per_query": _mean(windows),
            "coverage": _mean(coverage),
            "window_s": _mean(windows_s),
            "interval_s": _mean(intervals_s),
            "sd_floor": round(floor, 6),
            "rows": counts["rows"]["read"],
            "rows_malformed": sum(counts["rows"]["bad"].values()),
            **{f"rule_{name}": count for name, count in counts["rules"].items()},
        }
        return distributions, metrics


def warnings_of(metrics: dict[str, Any]) -> list[str]:
    """Issues to consider before training on these labels."""
    if not metrics["samples_train"] + metrics["samples_val"]:
        return []
    found = []
    if metrics["grade_4"] < MIN_GRADE_4:
        share, least = metrics["grade_4"], MIN_GRADE_4
        found.append(
            f"grade 4 has {share:.1%} of the positive clips (below {least:.0%}): with few clips an "
            "interval cannot reach it; raise intervid.captions.min_interval_s"
        )
    if metrics["grade_1"] > MAX_GRADE_1:
        share, most = metrics["grade_1"], MAX_GRADE_1
        found.append(
            f"grade 1 has {share:.1%} of the positive clips (above {most:.0%}): they are graded by "
            "the annotated clips alone; try intervid.labels.grade_stats: new"
        )
    if not metrics["samples_val"]:
        found.append("the val split is empty: intervid.val_share is 0 or one video is all there is")
    return found


def csv_text(rows: ReportColumns, columns: tuple[str, ...]) -> str:
    """Rows as CSV with a header, even without rows."""
    lines = [",".join(columns), *(",".join(f"{row[name]:g}" for name in columns) for row in rows)]
    return "\n".join(lines) + "\n"


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


CARD_FILE, MARKDOWN_FILE = "card.json", "card.md"
_NOT_STATED = "not stated (intervid.source.licence)"


def data_card(
    settings: IntervidSettings,
    manifest: Mapping[str, Any],
    distributions: Mapping[str, Any],
) -> dict[str, Any]:
    """The card as JSON values.

    Args:
        settings: of the build.
        manifest: content of manifest.json.
        distributions: of the report.
    """
    read, excluded = manifest["inputs"]["table"] or {}, manifest["inputs"]["excluded"]
    return {
        "format": 1,
        "source": settings.source.name or read.get("name"),
        "licence": settings.source.licence or _NOT_STATED,
        "state": manifest["state"],
        "preset": settings.preset,
        "settings_digest": manifest["settings_digest"],
        "rules": manifest["settings"]["captions"],
        "caption_words_version": manifest["caption_words_version"],
        "excluded": None if excluded is None else excluded["lists"],
        "counts": manifest["counts"],
        "distributions": dict(distributions),
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
    }


def card_rows(card: Mapping[str, Any]) -> list[list[str]]:
    """What identifies a build, as rows of a table."""
    read, excluded = card["inputs"]["table"] or {}, card["excluded"]
    lists = [f"{name} ({count} ids)" for name, count in (excluded or {}).items()]
    rules = [name for name, is_on in card["rules"]["rules"].items() if is_on]
    return [
        ["source", f"{card['source']}, SHA-256 {read.get('sha256', 'of none')}"],
        ["licence", card["licence"]],
        ["preset", f"{card['preset']}, settings {card['settings_digest'][:12]}"],
        ["rules", f"{', '.join(rules)}; word lists version {card['caption_words_version']}"],
        ["excluded videos", ", ".join(lists) or "none: rule `leak` was off"],
        *([name, f"SHA-256 {digest}"] for name, digest in card["outputs"].items()),
    ]


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card for people."""
    parts = ["# Pre-training data (InterVid-MR)", table(["", ""], card_rows(card))]
    counts = [
        [f"{step}: {name}", value]
        for step, found in card["counts"].items()
        for name, value in found.items()
        if not isinstance(value, Mapping)
    ]
    counts += [
        [f"malformed: {name}", value] for name, value in card["counts"]["rows"]["bad"].items()
    ]
    parts += ["## Counts", table(["step", "rows"], counts)]
    for name, rows in card["distributions"].items():
        columns = PLOT_COLUMNS[name]
        parts.append(f"## {name.replace('_', ' ').capitalize()}")
        parts.append(table(columns, [[row[column] for column in columns] for row in rows]))
    return "\n\n".join(parts) + "\n"
