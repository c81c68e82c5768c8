"""Write the confirmed result of a search into params.yaml, comments kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mrmodel.config.schema import parse_config
from mrmodel.errors import TuningError
from mrmodel.files import parse_yaml, read_text, write_text
from mrmodel.orchestrate.run_branch import set_parameters
from mrmodel.tune.result import SearchResult, read_result
from mrmodel.tune.study import TrialQueue


def changes_to_apply(study: TrialQueue, unconfirmed: bool) -> dict[str, Any]:
    """Changes to params.yaml: dotted path -> value.

    Args:
        study: of the first level; its search has ended.
        unconfirmed: use the candidate with the highest mean although its gain is not clear.

    Raises:
        TuningError: no candidate was confirmed to be better.
    """
    verdict = read_result(study)
    found = verdict.changes
    if unconfirmed and verdict.winner is None:
        others = [one for one in verdict.candidates if one.gain is not None]
        if others:
            found = max(others, key=lambda one: sum(one.values)).changes | found
    if not found:
        raise TuningError(f"the search {study.name!r} has nothing to apply: {reason(verdict)}")
    return found


def reason(verdict: SearchResult) -> str:
    """Why no candidate is better."""
    if len(verdict.candidates) < 2 and not verdict.dropped:
        return f"none of {verdict.trials} trials was above the starting point"
    if len(verdict.candidates) < 2:
        return f"no candidate could be trained with every seed ({'; '.join(verdict.dropped)})"
    gains = [one for one in verdict.candidates if one.gain is not None]
    shown = ", ".join(f"trial {one.trial} {one.gain}" for one in gains)
    return f"with {len(verdict.seeds)} seeds no gain is clear ({shown})"


def apply_changes(file: Path, study: TrialQueue, changes: dict[str, Any]) -> None:
    """Write `changes` into a parameter file.

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
