"""What an import found, as text for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from mrmodel.components import MODELS
from mrmodel.models.official import Fit
from mrmodel.official.settings import Setting, default_of, nested
from mrmodel.train.checkpoint import ModelConfig, ModelStream


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import found; the model folder was written only if `fit.misfits` is empty.

    Attributes:
        config: of the model folder.
        settings: of the model, with their sources.
        limits: ``clip_len_s``, ``max_clips`` and ``max_tokens``, with their sources.
        fit: tensors that fit, are not used, or do not fit.
        notes: what the user should know about the file.
    """

    config: ModelConfig
    settings: tuple[Setting, ...]
    limits: tuple[Setting, ...]
    fit: Fit
    notes: tuple[str, ...]

    @property
    def section(self) -> dict[str, Any]:
        """``models.<model>`` of params.yaml for this model: the values that are not published."""
        kind = MODELS.get(self.config.model).Settings
        return nested([s for s in self.settings if s.value != default_of(kind, s.name)])


def format_report(report: ImportReport) -> str:
    """The report as lines: sizes and their sources, streams, what was left out or does not fit."""
    config, fit = report.config, report.fit
    params = {"features": nested(list(report.limits)), "models": {config.model: report.section}}
    settings = [*report.settings, *(replace(s, name=f"features.{s.name}") for s in report.limits)]
    lines = [
        f"{config.model}: {len(fit.state)} tensors fit",
        *_table(("setting", "value", "from"), ((s.name, s.value, s.source) for s in settings)),
        f"video streams: {_streams(config.video_streams)}",
        f"text streams: {_streams(config.text_streams)}",
        f"params.yaml: {yaml.safe_dump(params, default_flow_style=True, width=10_000).strip()}",
    ]
    if fit.unused:
        lines.append(f"left out, no result depends on it: {_by_module(fit.unused)}")
    lines += [f"note: {note}" for note in report.notes]
    if fit.misfits:
        rows = [(misfit.name, misfit.found, misfit.expected) for misfit in fit.misfits]
        lines += _table(("tensor that does not fit", "in the file", "in the model"), rows)
        lines.append(f"{len(rows)} tensors do not fit: nothing is written")
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [list(head), *(["-" if cell is None else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [map(str.ljust, row, widths) for row in cells]
    return [f"  {'  '.join(row).rstrip()}" for row in padded]


def _streams(streams: Iterable[ModelStream]) -> str:
    return ", ".join(f"{stream.name} ({stream.dim}, {_maker(stream)})" for stream in streams)


def _maker(stream: ModelStream) -> str:
    return "of another program" if stream.fingerprint is None else "registered encoder"


def _by_module(names: Iterable[str]) -> str:
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{module} ({count} tensors)" for module, count in counts.items())
