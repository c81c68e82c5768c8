"""Results of queries about a video as a picture: frames, clip scores, windows over the seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mrmodel.files import atomic_path
from mrmodel.report.build import thumbnails
from mrmodel.types import QueryResult

CURVE, WINDOW = "#1f6f8b", "#d1495b"
_WIDTH_IN, _FRAMES_IN, _QUERY_IN = 10.0, 1.1, 1.9
_SHOWN_WINDOWS = 3


def save_timeline(path: Path, video: Path, results: Sequence[QueryResult]) -> None:
    """Write a PNG (or what the suffix says): a row of frames, and below it each query.

    Args:
        path: of the picture.
        video: file; without readable frames their row stays empty.
        results: of this video, at least one; the best three moments of each are drawn.
    """
    heights = [_FRAMES_IN, *([_QUERY_IN] * len(results))]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    frames, *queries = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights})
    _draw_frames(frames, thumbnails(video, results[0].duration_s))
    for axes, result in zip(queries, results, strict=True):
        _draw_query(axes, result)
    queries[-1].set_xlabel("seconds")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:])


def _draw_frames(axes: Axes, frames: Sequence[np.ndarray]) -> None:
    axes.set_axis_off()
    if frames:
        axes.imshow(np.concatenate(list(frames), axis=1), aspect="auto")


def _draw_query(axes: Axes, result: QueryResult) -> None:
    duration_s = result.duration_s
    scores = np.asarray(result.clip_scores, dtype=np.float64)
    low, high = float(scores.min()), float(scores.max())
    curve = (scores - low) / ((high - low) or 1.0)
    edges = np.linspace(0.0, duration_s, len(scores) + 1)
    axes.stairs(curve, edges, fill=True, color=CURVE, alpha=0.25)
    axes.stairs(curve, edges, color=CURVE, linewidth=1.5)
    for rank, moment in enumerate(result.moments[:_SHOWN_WINDOWS]):
        start, end = moment.start_s, moment.end_s
        y, strong = -0.16 - 0.24 * rank, rank == 0
        axes.barh(y, end - start, 0.17, start, color=WINDOW, alpha=1.0 if strong else 0.45)
        text = f" {start:.1f} to {end:.1f} s, {moment.score:.2f}"
        right = end + 0.22 * duration_s > duration_s
        place, side = (start, "right") if right else (end, "left")
        axes.text(place, y, text + " ", va="center", ha=side, fontsize=8)
    axes.set_title(f"“{result.query}”", fontsize=10, loc="left")
    axes.set(xlim=(0.0, duration_s), ylim=(-0.24 * _SHOWN_WINDOWS - 0.1, 1.08), yticks=())
    axes.spines[["top", "left", "right"]].set_visible(False)
