"""The result of a search, stored in its study: `mrmodel tune best` shows it, `apply` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mrmodel.config.base import Section
from mrmodel.config.schema import parse_config
from mrmodel.errors import TuningError
from mrmodel.files import parse_yaml, read_text, write_text
from mrmodel.orchestrate.run_branch import set_parameters

if TYPE_CHECKING:  # Names of flow states need no Optuna, which takes a second.
    from mrmodel.tune.study import TrialQueue

_VERDICT = "verdict"


class Gain(Section):
    """Mean difference from the starting point, in points, and its 95 % confidence interval."""

    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether a gain is expected with another validation set and other seeds too."""
        return self.low > 0.0

    def __str__(self) -> str:
        return f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Confirmed(Section):
    """A candidate with its confirmation runs.

    Attributes:
        trial: number in the search; None: the starting point.
        changes: dotted path -> value.
        values: the first metric for each seed.
        gain: None for the starting point.
        others: metric -> gain, for the second metric.
    """

    trial: int | None
    changes: dict[str, Any]
    values: list[float]
    gain: Gain | None
    others: dict[str, Gain] = Field(default={})

    @property
    def is_better(self) -> bool:
        """A clear gain, and no clear loss in another metric."""
        if self.gain is None or not self.gain.is_clear:
            return False
        return all(other.high >= 0.0 for other in self.others.values())


class PostHocSelection(Section):
    """The best post-processing settings, and their gain over the configured ones, on equal runs."""

    trial: int
    changes: dict[str, Any]
    gain: Gain


class SearchResult(Section):
    """The result of a search.

    Attributes:
        figure: metric of all numbers, on validation data; of two metrics the first.
        start: value of the search's starting point with the seed of the main job.
        best: the best value of a trial.
        trials: number with a result.
        seeds: of the confirmation.
        candidates: the starting point first, and alone if no trial was better; empty if there was
            no post-processing to tune either.
        dropped: candidates that could not be trained with every seed, and why.
        after_training: None: not searched, or nothing better was found.
    """

    figure: str
    start: float | None
    best: float | None
    trials: int
    seeds: list[int]
    candidates: list[Confirmed]
    dropped: list[str] = Field(default=[])
    after_training: PostHocSelection | None

    @property
    def winner(self) -> Confirmed | None:
        """The candidate with the highest mean, if it is clearly better."""
        others = [one for one in self.candidates if one.gain is not None]
        best = max(others, key=lambda one: sum(one.values), default=None)
        return best if best is not None and best.is_better else None

    @property
    def changes(self) -> dict[str, Any]:
        """Changes to params.yaml: dotted path -> value; empty: nothing is better."""
        found = dict(self.winner.changes) if self.winner is not None else {}
        if self.after_training is not None and self.after_training.gain.is_clear:
            found |= self.after_training.changes
        return found


def save_result(study: TrialQueue, result: SearchResult) -> None:
    """Write the result to the study."""
    study.handle.set_user_attr(_VERDICT, result.model_dump())


def discard_result(study: TrialQueue) -> None:
    """Delete the result, which is outdated when the search continues."""
    study.handle.set_user_attr(_VERDICT, None)


def read_result(study: TrialQueue) -> SearchResult:
    """The result of a study.

    Raises:
        TuningError: the search has not finished.
    """
    raw = study.handle.user_attrs.get(_VERDICT)
    if raw is None:
        rule = "has not come to its end; `mrmodel tune status` shows how far it is"
        raise TuningError(f"the search {study.name!r} {rule}")
    return SearchResult.model_validate(raw)


BETTER, NOT_BETTER = "Better", "NotBetter"
# Names of the final states of search flow runs, on which automations can be triggered.
ENDS = (BETTER, NOT_BETTER)


def changes_to_apply(study: TrialQueue, unconfirmed: bool) -> dict[str, Any]:
    """Changes to params.yaml: dotted path -> value.

    Args:
        study: of the first level; its search has ended.
        unconfirmed: use the candidate with the highest mean although its gain is not clear.

    Raises:
        TuningError: no candidate was confirmed to be better.
    """
    result = read_result(study)
    found = result.changes
    if unconfirmed and result.winner is None:
        others = [one for one in result.candidates if one.gain is not None]
        if others:
            found = max(others, key=lambda one: sum(one.values)).changes | found
    if not found:
        raise TuningError(f"the search {study.name!r} has nothing to apply: {reason(result)}")
    return found


def reason(result: SearchResult) -> str:
    """Why no candidate is better."""
    if len(result.candidates) < 2 and not result.dropped:
        return f"none of {result.trials} trials was above the starting point"
    if len(result.candidates) < 2:
        return f"no candidate could be trained with every seed ({'; '.join(result.dropped)})"
    gains = [one for one in result.candidates if one.gain is not None]
    shown = ", ".join(f"trial {one.trial} {one.gain}" for one in gains)
    return f"with {len(result.seeds)} seeds no gain is clear ({shown})"


def apply_changes(file: Path, study: TrialQueue, changes: dict[str, Any]) -> None:
    """Write `changes` into a parameter file, comments kept.

    Raises:
        TuningError: a value in the file is not the one that the search started with.
        ConfigError: the new values are invalid there.
    """
    text = read_text(file)
    before, now = study.facts.config, parse_config(parse_yaml(text, file)).model_dump()
    for path in changes:
        was, found = value_at(before, path), value_at(now, path)
        if was != found and found != changes[path]:
            raise TuningError(
                f"{file}: {path} = {found!r}, but the search began with {was!r}; set it back, or "
                "search again"
            )
    changed = set_parameters(text, changes)
    parse_config(parse_yaml(changed, file))
    write_text(file, changed)


def value_at(tree: dict[str, Any], path: str) -> Any:
    """Value at a dotted path; None where nothing is written there."""
    found: Any = tree
    for part in path.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found
