"""A search for better values as a Prefect flow, with workers on a pool.

``python -m flows.tune`` starts one on the pools of PREFECT_API_URL and waits for its end; a search
without servers is `mrmodel tune run`.
"""

from __future__ import annotations

from typing import Any

import click
from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.crew import FlowCrew
from mrmodel.orchestrate.places import Places
from mrmodel.tune.ends import BETTER, NOT_BETTER
from mrmodel.tune.revision import Found, Wish, search_revision
from mrmodel.tune.views import sentence


@flow(flow_run_name="tune {rev}")
def tune(
    rev: str = "HEAD",
    study: str | None = None,
    trials: int | None = None,
    workers: int | None = None,
    pool: str | None = None,
) -> State[Any]:
    """Search for better values, confirm them, and push them as a branch for review.

    Args:
        rev: what is tuned, of the repository that `Places` names; its dvc.lock names the data.
        study: its name; one that exists is gone on with. None: tune.study of params.yaml.
        trials: so many end. None: tune.trials.
        workers: flow runs at once. None: tune.workers.
        pool: their work pool. None: that of the stage that is tuned.

    Ends as Better, with the name of the branch, or as NotBetter.
    """
    places = Places.from_environment()
    with get_client(sync_client=True) as client:
        found = search_revision(
            places,
            rev,
            Wish(study, trials, workers),
            lambda work: FlowCrew(client, work, pool, places.handover),
            FlowReporter(),
        )
    create_markdown_artifact(markdown(found), "tuning", "What the search found")
    get_run_logger().info("\n%s", "\n".join(found.lines))
    message = sentence(found.verdict) + (f"; branch {found.branch}" if found.branch else "")
    end = BETTER if found.verdict.changes else NOT_BETTER
    state: State[Any] = Completed(name=end, message=message)
    return state


def markdown(found: Found) -> str:
    """The verdict for people, what it changes, and how many trials there were."""
    changes = [f"* `{path}`: {value}" for path, value in found.verdict.changes.items()]
    branch = [f"On the branch `{found.branch}`:", "", *changes, ""] if found.branch else []
    counts = [f"* {line}" for line in found.lines]
    return "\n".join([f"**{sentence(found.verdict)}**", "", *branch, *counts])


class FlowReporter:
    """Progress as lines of the flow run's log."""

    def __init__(self) -> None:
        self._log, self._name, self._total, self._done = get_run_logger(), "", 0, 0

    def start(self, name: str, total: int, done: int = 0) -> None:
        """A study begins."""
        self._name, self._total, self._done = name, total, done
        self._log.info("%s: %d trials", name, total)

    def advance(self, steps: int = 1, **info: object) -> None:
        """Trials have ended."""
        self._done += steps
        shown = "".join(f", {key} {value:.2f}" for key, value in info.items())
        self._log.info("%s: %d/%d%s", self._name, self._done, self._total, shown)

    def finish(self) -> None:
        """The next study says so."""


@click.command()
@click.option("--rev", default="HEAD", show_default=True, help="Revision that is tuned.")
@click.option("--study", help="Its name; an existing one goes on [default: tune.study].")
@click.option("--trials", type=click.IntRange(1), help="[default: tune.trials]")
@click.option("--workers", type=click.IntRange(1), help="Flow runs at once [default: tune.workers]")
@click.option("--pool", help="Their work pool [default: that of the tuned stage].")
def main(
    rev: str, study: str | None, trials: int | None, workers: int | None, pool: str | None
) -> None:
    """Search for better values on the work pools of PREFECT_API_URL."""
    state = tune(rev, study, trials, workers, pool, return_state=True)
    if not state.is_completed():
        raise click.ClickException(state.message or str(state.name))
    click.echo(f"{state.name}: {state.message}")


if __name__ == "__main__":
    main()
