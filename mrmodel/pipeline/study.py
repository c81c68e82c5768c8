"""What the studies share: folders of their models, figures on the test split, means over seeds.

A run of a study is one JSON file ``<what>-<seed>.json`` below ``studies/reports/<study>/``; its
models and curves go below ``.mrmodel/studies/``, so that DVC caches figures only.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.config import Config
from mrmodel.data.annotations import read_annotations
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.scoring import Judge
from mrmodel.pipeline.splits import reported_split
from mrmodel.pipeline.training import open_features, open_set
from mrmodel.predict.inference import predict_set
from mrmodel.train.checkpoint import load_model
from mrmodel.train.precision import pick_device
from mrmodel.types import Prediction

REPORTS = Path("studies") / "reports"

# {figure: {"mean": ..., "sd": ...}}
Summary = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Where the models and curves of one run of a study go."""

    root: Path

    def model(self, kind: str) -> Path:
        """Model folder."""
        return self.root / kind

    def figures(self, run: str) -> Path:
        """Stem of the results and curves of a training."""
        return self.root / "training" / run


class ReportedSplit:
    """The split that figures are reported on, with its features (`data`) and its judge.

    `headline` is the figure by which models are chosen.
    """

    def __init__(self, config: Config, layout: Layout) -> None:
        self._device, self._judge = pick_device(config.train.device), Judge(config)
        self._batch_size = config.train.eval_batch_size
        split = layout.split(reported_split(layout))
        truth = read_annotations(split, config.features.clip_len_s)
        self._truth = [row.as_row() for row in truth]
        self.headline = self._judge.protocol.headline
        self.data = open_set(
            config, truth, open_features(config, layout, self._device), config.seed
        )

    def figures_of(self, folder: Path) -> dict[str, float]:
        """Figures of the model in a model folder."""
        model, _ = load_model(folder, self._device)
        found = predict_set(model, self.data, self._batch_size, self._judge.postprocess)
        return self.figures(found)

    def figures(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Figures of predictions for its rows, the headline first."""
        rows = [prediction.as_row() for prediction in predictions]
        return self._judge.figures(self._judge.score(self._truth, rows))


def runs_of(study: str, reports: Path = REPORTS) -> dict[str, list[Any]]:
    """The finished runs of a study: ``{what: [content of its file of each seed]}``, by name."""
    runs: dict[str, list[Any]] = defaultdict(list)
    for path in sorted((reports / study).glob("*.json")):
        runs[path.stem.rpartition("-")[0]].append(json.loads(path.read_text(encoding="utf-8")))
    return dict(runs)


def mean_and_sd(runs: Sequence[Mapping[str, float]]) -> Summary:
    """Mean and standard deviation over runs, of the figures that all of them have.

    The standard deviation is that of a sample (n - 1); one run has none, which is written as 0.
    """
    summary = {}
    for name in (name for name in runs[0] if all(name in run for run in runs)):
        values = np.array([run[name] for run in runs], dtype=np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        summary[name] = {"mean": float(values.mean()), "sd": spread}
    return summary


def cell(figure: Mapping[str, float] | None) -> str:
    """``mean ± standard deviation``, or a dash."""
    return "–" if figure is None else f"{figure['mean']:.2f} ± {figure['sd']:.2f}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
