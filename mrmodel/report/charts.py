"""Small SVG charts as strings: lines over steps, bars, and the timeline of one query.

SVG keeps the report a single file without scripts or fonts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#787774")
TRUTH, FOUND, GRID, INK = "#448361", "#d9730d", "#e3e2de", "#5f5e5b"

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """The drawing area: outer size and margins, in pixels, and the value ranges."""

    width: int
    height: int
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: int = 46
    right: int = 12
    top: int = 12
    bottom: int = 28

    def x(self, value: float) -> float:
        """Horizontal pixel of a value."""
        low, high = self.x_range
        inner = self.width - self.left - self.right
        return round(self.left + inner * (value - low) / ((high - low) or 1.0), 1)

    def y(self, value: float) -> float:
        """Vertical pixel of a value."""
        low, high = self.y_range
        inner = self.height - self.top - self.bottom
        return round(self.height - self.bottom - inner * (value - low) / ((high - low) or 1.0), 1)


def line_chart(
    series: Mapping[str, Sequence[Point]],
    y_label: str,
    x_label: str = "step",
    single: Mapping[str, Sequence[Point]] | None = None,
) -> str:
    """Lines with a legend; series without points are omitted; empty text if none is left.

    `single` are points without a line, in the colour of the series of their name: the values whose
    means a line shows.
    """
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return ""
    loose = {name: (single or {}).get(name, ()) for name in drawn}
    every = [point for points in (*drawn.values(), *loose.values()) for point in points]
    xs, ys = [x for x, _ in every], [y for _, y in every]
    frame = Frame(560, 240, (min(0.0, *xs, xs[0]), max(xs)), _padded(min(ys), max(ys)))
    parts = [_axes(frame, x_label, y_label)]
    for number, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in points)
        parts.append(_curve(path, colour))
        if len(points) == 1:
            parts.append(_dot(frame, points[0], 3, colour))
        parts += [_dot(frame, point, 2, colour) for point in loose[name]]
        parts.append(_legend_entry(frame, number, name, colour))
    return _svg(frame, parts, f"{y_label} over {x_label}")


def bar_chart(bars: Mapping[str, float], y_label: str) -> str:
    """One bar per name, with its value above it."""
    if not bars:
        return ""
    frame = Frame(560, 200, (0.0, float(len(bars))), (0.0, max(*bars.values(), 1e-9) * 1.15))
    parts = [_axes(frame, "", y_label, x_ticks=False)]
    for number, (name, value) in enumerate(bars.items()):
        left, right = frame.x(number + 0.15), frame.x(number + 0.85)
        top, middle = frame.y(value), frame.x(number + 0.5)
        height = round(frame.y(0) - top, 1)
        parts.append(
            f'<rect x="{left}" y="{top}" width="{round(right - left, 1)}" height="{height}" '
            f'fill="{COLOURS[0]}" rx="2"/>'
            f'<text x="{middle}" y="{top - 4}" text-anchor="middle">{_number(value)}</text>'
            f'<text x="{middle}" y="{frame.height - 10}" text-anchor="middle">{escape(name)}</text>'
        )
    return _svg(frame, parts, y_label)


@dataclass(frozen=True, slots=True)
class Timeline:
    """Timeline of one query: true windows, predicted windows, and clip scores.

    `truth` windows (start, end), `found` windows (start, end, score) best first, `saliency` the
    model's clip scores, `ratings` the mean rating per clip (0..4), `clip_len_s` seconds of a clip.
    """

    duration_s: float
    clip_len_s: float
    truth: Sequence[tuple[float, float]]
    found: Sequence[tuple[float, float, float]]
    saliency: Sequence[float]
    ratings: Sequence[float]

    def svg(self) -> str:
        """Columns of ratings, the saliency line, a row of true windows, a row per predicted one."""
        rows = 1 + len(self.found)
        bottom = 30 + 17 * rows
        frame = Frame(
            920, 110 + bottom, (0.0, self.duration_s), (0.0, 1.05), left=62, bottom=bottom
        )
        parts = [_axes(frame, "seconds", "", y_ticks=False), self._clip_scores(frame)]
        y = frame.height - bottom + 26
        parts.append(_row_label(y, "truth"))
        parts += [_span(frame, y, start, end, TRUTH, 1.0, "") for start, end in self.truth]
        for rank, (start, end, score) in enumerate(self.found):
            y += 17
            parts.append(_row_label(y, f"found {rank + 1}"))
            opacity = 1.0 if rank == 0 else 0.55
            label = f"{start:.0f}-{end:.0f} s, {score:.2f}"
            parts.append(_span(frame, y, start, end, FOUND, opacity, label))
        return _svg(frame, parts, "timeline of one query")

    def _clip_scores(self, frame: Frame) -> str:
        columns = []
        for clip, rating in enumerate(self.ratings):
            left, right = frame.x(clip * self.clip_len_s), frame.x((clip + 1) * self.clip_len_s)
            top = frame.y(rating / 4.0)
            columns.append(
                f'<rect x="{left}" y="{top}" width="{round(right - left - 0.5, 1)}" '
                f'height="{round(frame.y(0) - top, 1)}" fill="{TRUTH}" opacity="0.25"/>'
            )
        low, high = min(self.saliency, default=0.0), max(self.saliency, default=1.0)
        scale = (high - low) or 1.0
        points = " ".join(
            f"{frame.x((clip + 0.5) * self.clip_len_s)},{frame.y((value - low) / scale)}"
            for clip, value in enumerate(self.saliency)
        )
        return "".join(columns) + _curve(points, FOUND)


def standalone(chart: str) -> str:
    """A chart as the text of an SVG file, with the style that the page otherwise provides."""
    space = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    head, _, body = chart.partition(">")
    return f"{head.replace('<svg', f'<svg {space}', 1)}>{background}{body}"


def _axes(
    frame: Frame, x_label: str, y_label: str, x_ticks: bool = True, y_ticks: bool = True
) -> str:
    parts = []
    low, high = frame.y_range
    for share in (0.0, 0.25, 0.5, 0.75, 1.0) if y_ticks else ():
        value = low + (high - low) * share
        y = frame.y(value)
        parts.append(
            f'<line x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y}" y2="{y}" '
            f'stroke="{GRID}"/><text x="{frame.left - 5}" y="{y + 4}" text-anchor="end">'
            f"{_number(value)}</text>"
        )
    low, high = frame.x_range
    base = frame.y(frame.y_range[0])
    for share in (0.0, 0.25, 0.5, 0.75, 1.0) if x_ticks else ():
        value = low + (high - low) * share
        anchor = "end" if share == 1.0 else "middle"
        parts.append(
            f'<text x="{frame.x(value)}" y="{base + 14}" text-anchor="{anchor}">'
            f"{_number(value)}{' ' + escape(x_label) if share == 1.0 else ''}</text>"
        )
    parts.append(
        f'<line x1="{frame.left}" x2="{frame.width - frame.right}" y1="{base}" y2="{base}" '
        f'stroke="{INK}"/>'
    )
    if y_label:
        parts.append(f'<text x="{frame.left}" y="10" font-weight="600">{escape(y_label)}</text>')
    return "".join(parts)


def _curve(points: str, colour: str) -> str:
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


def _dot(frame: Frame, point: Point, radius: int, colour: str) -> str:
    x, y = point
    return f'<circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="{radius}" fill="{colour}"/>'


def _span(
    frame: Frame, y: float, start: float, end: float, colour: str, opacity: float, label: str
) -> str:
    left, right = frame.x(max(start, 0.0)), frame.x(min(end, frame.x_range[1]))
    width = max(round(right - left, 1), 2.0)
    bar = (
        f'<rect x="{left}" y="{y}" width="{width}" height="11" rx="2" fill="{colour}" '
        f'opacity="{opacity}"/>'
    )
    if not label:
        return bar
    fits_right = left + width + 90 < frame.width
    x, anchor = (left + width + 5, "start") if fits_right else (left - 5, "end")
    return bar + f'<text x="{x}" y="{y + 9.5}" text-anchor="{anchor}">{label}</text>'


def _row_label(y: float, text: str) -> str:
    return f'<text x="56" y="{y + 9.5}" text-anchor="end">{text}</text>'


def _legend_entry(frame: Frame, number: int, name: str, colour: str) -> str:
    x, y = frame.width - frame.right - 150, frame.top + 6 + 15 * number
    return (
        f'<rect x="{x}" y="{y - 7}" width="12" height="4" fill="{colour}"/>'
        f'<text x="{x + 17}" y="{y}">{escape(name)}</text>'
    )


def _svg(frame: Frame, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = (high - low) * 0.06 or 0.5
    return low - margin if low < 0 else max(0.0, low - margin), high + margin


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
