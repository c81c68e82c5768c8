"""Shared by the summaries of studies: reading runs, means over seeds, tables as text.

A run of a study is one JSON file ``<what>-<seed>.json`` below ``studies/reports/<study>/``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.errors import DataError
from mrmodel.evaluate.significance import PerQuery
from mrmodel.files import read_json
from mrmodel.report.studies import REPORTS
from mrmodel.tracking.mlflow_client import code_tags

# {figure: {"mean": ..., "sd": ...}}
Summary = dict[str, dict[str, float]]
# {what: results of its seeds}
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def runs_of(study: str, reports: Path = REPORTS) -> dict[str, list[Any]]:
    """The finished runs of a study, sorted: ``{what: [content of the file of each seed]}``."""
    runs: dict[str, list[Any]] = defaultdict(list)
    for path in sorted((reports / study).glob("*.json")):
        runs[path.stem.rpartition("-")[0]].append(read_json(path))
    return dict(runs)


def shared_values(study: str, runs: Runs, keys: Sequence[str]) -> dict[str, Any]:
    """The values of `keys`, which must be equal in all runs of a study.

    Raises:
        DataError: there are no runs, or they differ in one of `keys`.
    """
    shared = {}
    for key in keys:
        found = {name: {run[key] for run in of_seeds} for name, of_seeds in runs.items()}
        values = set().union(*found.values())
        if len(values) != 1:
            rule = f"rows of one table need one {key}, found {found}; delete the runs of old ones"
            raise DataError(rule, file=REPORTS / study)
        shared[key] = values.pop()
    return shared


def mean_and_sd(runs: Sequence[Mapping[str, float]]) -> Summary:
    """Mean and standard deviation over runs, for the metrics that all of them have.

    The sample standard deviation (n - 1) is used; it is written as 0 for a single run.
    """
    summary = {}
    for name in (name for name in runs[0] if all(name in run for run in runs)):
        values = np.array([run[name] for run in runs], dtype=np.float64)
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        summary[name] = {"mean": float(values.mean()), "sd": spread}
    return summary


def queries_of(per_query: PerQuery, figure: str) -> dict[str, Sequence[object]]:
    """Ids, videos and values of one metric for JSON; null is excluded from the mean."""
    values = per_query.values[figure].tolist()
    return {
        "qids": per_query.qids,
        "vids": per_query.vids,
        "values": [None if value != value else value for value in values],
    }


def per_query_of(run: Mapping[str, Any], figure: str) -> PerQuery:
    """`queries_of` of a run, read again."""
    queries = run["queries"]
    values = np.array(queries["values"], dtype=np.float64)  # null becomes NaN
    return PerQuery(queries["qids"], queries["vids"], {figure: values})


def made_with() -> dict[str, str]:
    """The current commit, as part of a study's result; empty outside of git."""
    revision = code_tags().get("git.revision")
    return {} if revision is None else {"commit": revision[:12]}
