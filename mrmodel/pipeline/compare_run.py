"""Study ``compare_run``: one model trained from fresh weights for a fixed number of steps.

The model has its size in params.yaml. Beside its figures the result says what they cost and what
each test query got, from which `compare` tells whether two models differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mrmodel.config import Config
from mrmodel.errors import ConfigError, nearest_names
from mrmodel.evaluate.per_query import PerQuery
from mrmodel.files import write_json
from mrmodel.models.base import MomentModel
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.stage import run_stage_with
from mrmodel.pipeline.study import ControlRun, ReportedSplit, train_control, with_steps
from mrmodel.progress import Reporter
from mrmodel.train.precision import pick_device

# Passes over the test split that are timed; the fastest counts: other work only adds to a pass.
PASSES = 5


def compare_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/compare/<model>-<seed>.json``: figures, costs, and single queries."""
    model, seed = arguments["model"], int(arguments["seed"])
    if model not in config.models:
        near = nearest_names(model, config.models)
        raise ConfigError("compare.models", model, "has no section below `models`", near)
    config = with_steps(config, int(arguments["steps"]))
    run = ControlRun("compare", f"{model}-{seed}", model, seed)
    trained = train_control(config, run, reporter)
    test = ReportedSplit(config, Layout(config))
    network = test.model(trained.folder)
    scores = test.score(test.answers(network))
    result = {
        **trained.facts,
        "headline": test.headline,
        "figures": test.figures(scores),
        "device": str(pick_device(config.train.device)),
        "threads": torch.get_num_threads(),
        "training_seconds": trained.seconds,
        "queries_per_second": queries_per_second(test, network),
        "queries": queries_of(scores.per_query, test.headline),
    }
    write_json(run.result(), result)


def queries_per_second(test: ReportedSplit, model: MomentModel) -> float:
    """Queries of the split a second of forward pass and decoding; the model has answered before."""
    seconds = [test.seconds(model) for _ in range(PASSES)]
    return len(test.data) / min(seconds)


def queries_of(per_query: PerQuery, figure: str) -> dict[str, Sequence[object]]:
    """Ids, videos and values of one figure, as JSON has them; null does not enter the mean."""
    values = per_query.values[figure].tolist()
    return {
        "qids": per_query.qids,
        "vids": per_query.vids,
        "values": [None if value != value else value for value in values],
    }


if __name__ == "__main__":
    run_stage_with(compare_run, ("model", "seed", "steps"))
