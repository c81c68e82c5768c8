"""Second level: tunes post-processing on the detections of the confirmed runs.

A trial decodes and evaluates the stored validation detections of every seed again, in seconds; its
metric is the mean over the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrmodel.config.schema import Config, parse_config
from mrmodel.data.annotations import read_annotations
from mrmodel.evaluate.protocols import Scores
from mrmodel.evaluate.significance import BootstrapSettings, Comparison, PerQuery, paired_bootstrap
from mrmodel.predict.post_hoc import predict_cached
from mrmodel.stages.scorer import Scorer
from mrmodel.storage import open_store
from mrmodel.tune.confirm import read_detections
from mrmodel.tune.objective import job_of
from mrmodel.tune.space import changed_config, objectives_of, post_hoc_plan
from mrmodel.tune.study import Facts
from mrmodel.tune.worker import ClaimedTrial, Objective, TrialResult


class PostHocObjective(Objective):
    """Evaluates one choice of settings; `facts.about` has the candidate and its seeds."""

    def __init__(self, facts: Facts) -> None:
        self._raw, self._config = facts.config, parse_config(facts.config)
        self._plan = post_hoc_plan(self._config)
        self._runs = ConfirmedRuns(self._config, facts.store, facts.about)

    @staticmethod
    def needs(facts: Facts) -> list[Path]:
        """The annotations; detections come from the store."""
        return [scored_file(parse_config(facts.config))]

    def __call__(self, claimed: ClaimedTrial) -> TrialResult:
        """Decode and evaluate the detections of every seed."""
        changes = self._plan.changes(self._plan.suggest(claimed.trial))
        claimed.trial.set_user_attr("changes", changes)
        metrics = self._runs.main_metrics(changed_config(self._raw, changes))
        return TrialResult([metrics[objectives_of(self._config)[0]]], {"figures": metrics})


class ConfirmedRuns:
    """Stored validation detections of one candidate, one set per seed.

    Args:
        config: with the changes of the candidate.
        store: address of the study's store.
        about: ``candidate``: its number; ``seeds``.
    """

    def __init__(self, config: Config, store: str, about: Mapping[str, Any]) -> None:
        place = open_store(store)
        self._sets = [read_detections(place, about["candidate"], seed) for seed in about["seeds"]]
        truth = read_annotations(scored_file(config), config.features.clip_len_s)
        self._truth = [row.as_row() for row in truth]
        self._scorer = Scorer(config)

    def main_metrics(self, config: Config) -> dict[str, float]:
        """Mean metrics over the seeds, decoded with `config`."""
        found = [self._scorer.main_metrics(scores) for scores in self._scores(config)]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    def compare(self, before: Config, after: Config) -> Comparison:
        """Gain of decoding with `after` over decoding with `before`, across videos.

        Both decode the same networks, so each query's mean over the seeds is compared.
        """
        figure = objectives_of(before)[0]
        settings = BootstrapSettings(before.evaluate.bootstrap_resamples, before.seed)
        means = [_mean(self._scores(one), figure) for one in (before, after)]
        return paired_bootstrap(means[0], means[1], figure, settings)

    def _scores(self, config: Config) -> list[Scores]:
        postprocess = Scorer(config).postprocess(config.postprocess)
        found = []
        for cached in self._sets:
            rows = [row.as_row() for row in predict_cached(cached, postprocess)]
            found.append(self._scorer.score(self._truth, rows))
        return found


def _mean(runs: list[Scores], figure: str) -> PerQuery:
    """One metric per query, averaged over the runs."""
    first = runs[0].per_query
    values = np.mean([run.per_query.values[figure] for run in runs], axis=0)
    return PerQuery(first.qids, first.vids, {figure: values})


def scored_file(config: Config) -> Path:
    """The annotations used for validation."""
    return job_of(config, Path(), "", config.seed).val


def post_hoc_facts(config: Config, candidate: int, seeds: list[int], facts: Facts) -> Facts:
    """The facts of the second level's study, from those of the confirmation."""
    return Facts(
        objective=f"{PostHocObjective.__module__}:{PostHocObjective.__name__}",
        config=config.model_dump(),
        about={"candidate": candidate, "seeds": seeds},
        store=facts.store,
        title=facts.title.replace("confirmation", "after training"),
        attempts=facts.attempts,
    )
