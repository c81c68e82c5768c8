"""Fill the report's template: metrics in, one self-contained HTML file out."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from mrmodel.errors import VideoError
from mrmodel.report.charts import Timeline
from mrmodel.types import clips_before
from mrmodel.video.frames import FrameSource
from mrmodel.video.sampling import FrameSampling

THUMBNAIL = (112, 84)
THUMBNAILS = 8


@dataclass(frozen=True, slots=True)
class Example:
    """One query of the test split in the report."""

    title: str
    qid: str
    query: str
    vid: str
    iou: float
    timeline: Timeline
    frames: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a caption; the row with index `strong` is highlighted."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: int | None = None


@dataclass(frozen=True, slots=True)
class ReportSection:
    """A heading, text, then tables, charts (SVG) and examples."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[str] = ()
    examples: Sequence[Example] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Content of the page."""

    title: str
    lead: str
    headline: Mapping[str, str]
    sections: Sequence[ReportSection]
    provenance: Mapping[str, str] = field(default_factory=dict)


def render(report: Report) -> str:
    """The page as HTML text; all values except our own SVG are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mrmodel", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(report=report)


def thumbnails(video: Path, duration_s: float) -> list[np.ndarray]:
    """`THUMBNAILS` frames spread evenly over a video; empty if it cannot be read.

    The time before the first picture, which a player counts, is black.
    """
    sampling = FrameSampling(frames_per_clip=1, size=THUMBNAIL, rule="middle", resize="bilinear")
    source, step_s = FrameSource(video), duration_s / THUMBNAILS
    try:
        frames = [clip.frames[0] for clip in source.clips(step_s, sampling)]
    except VideoError:
        return []
    before = clips_before(source.report.start_s, step_s)
    return ([np.zeros_like(frames[0])] * before + frames)[:THUMBNAILS] if frames else []


def film_strip(video: Path, duration_s: float) -> list[str]:
    """`thumbnails` as data URLs."""
    return [_data_url(frame) for frame in thumbnails(video, duration_s)]


def _data_url(frame: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
