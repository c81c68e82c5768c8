"""``mrmodel tune``: search for better loss weights, noise scales and schedules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mrmodel.cli.options import TRIALS, WORKERS
from mrmodel.errors import TuningError

if TYPE_CHECKING:
    from mrmodel.config.schema import Config
    from mrmodel.stages.paths import Paths
    from mrmodel.tune.result import SearchResult
    from mrmodel.tune.study import TrialQueue

PARAMS = Path("params.yaml")


@click.group()
def group() -> None:
    """Search for better loss weights, noise scales and schedules.

    Configured in the section `tune` of params.yaml. Studies are stored in OPTUNA_STORAGE (e.g.
    postgresql+psycopg2://host/name), by default in a journal below .mrmodel/tune.
    """


STUDY = click.option("--study", "name", help="Study name [default: tune.study].")
TRIALS_OPTION = click.option("--trials", type=TRIALS, help="[default: tune.trials]")
WORKERS_OPTION = click.option("--workers", type=WORKERS, help="[default: tune.workers]")


@group.command()
def space() -> None:
    """Print the search space: range, condition and starting value of each dimension."""
    from mrmodel.tune.space import post_hoc_plan, training_plan

    config, _ = _here()
    for title, plan in (("in training", training_plan(config)), ("after", post_hoc_plan(config))):
        click.echo(f"{title}:")
        for name, dimension in plan.space.items():
            shown = dimension.model_dump(exclude={"when", "unset"}, exclude_defaults=True)
            words = " ".join(f"{key} {value}" for key, value in shown.items())
            active = "" if plan.active(name, plan.start) else "  (switched off here)"
            click.echo(f"  {name:<28} {plan.start[name]!s:<10} {words}{active}")


@group.command()
@STUDY
@TRIALS_OPTION
@WORKERS_OPTION
def run(name: str | None, trials: int | None, workers: int | None) -> None:
    """Run a new search: trials, confirmation over seeds, post-hoc search.

    Needs the outputs of the pipeline (dvc repro). After Ctrl-C continue with `mrmodel tune resume`.
    """
    from mrmodel.tune.local import with_extent
    from mrmodel.tune.storage import open_storage, storage_address
    from mrmodel.tune.study import TrialQueue

    config, paths = _here()
    config = with_extent(config, study=name, trials=trials, workers=workers)
    if TrialQueue.exists(open_storage(storage_address(paths.state)), config.tune.study):
        raise TuningError(
            f"there is a study {config.tune.study!r} already: `mrmodel tune resume` goes on with "
            "it, --study NAME begins another one"
        )
    _search(config, paths)


@group.command()
@STUDY
@TRIALS_OPTION
@WORKERS_OPTION
def resume(name: str | None, trials: int | None, workers: int | None) -> None:
    """Continue an interrupted search, or extend it with more --trials.

    Uses the parameters with which the search was started, not the current params.yaml.
    """
    from mrmodel.tune.local import resumed_config
    from mrmodel.tune.storage import open_storage, storage_address

    config, paths = _here()
    storage = open_storage(storage_address(paths.state), create=False)
    _search(resumed_config(storage, name or config.tune.study, trials, workers), paths)


@group.command()
@STUDY
def status(name: str | None) -> None:
    """Print the progress of a search."""
    from mrmodel.tune.report import lines

    for line in lines(_study(name)):
        click.echo(line)


@group.command()
@STUDY
@click.option(
    "--top",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Number of trials to show.",
)
def best(name: str | None, top: int) -> None:
    """Print the best trials, the confirmation, and what `apply` would write."""
    from mrmodel.tune.report import best_lines

    for line in best_lines(_study(name), top):
        click.echo(line)


@group.command()
@STUDY
@click.option(
    "--unconfirmed",
    is_flag=True,
    help="Apply the best candidate even if its gain over the starting point is not confirmed.",
)
def apply(name: str | None, unconfirmed: bool) -> None:
    """Write the confirmed values to params.yaml; `dvc status dvc.yaml` shows what must run."""
    from mrmodel.tune.result import apply_changes, changes_to_apply

    study = _study(name)
    changes = changes_to_apply(study, unconfirmed)
    apply_changes(PARAMS, study, changes)
    for path, value in changes.items():
        click.echo(f"{path}: {value}")
    if all(path.startswith("postprocess.") for path in changes):
        click.echo(
            "params.yaml is written and nothing must be trained; `dvc repro package` puts the "
            "values beside the weights that are served, `dvc repro` also scores them"
        )
        return
    click.echo(
        "params.yaml is written; `dvc status dvc.yaml` shows what must run, `dvc repro` runs it"
    )


def _here() -> tuple[Config, Paths]:
    from mrmodel.config.schema import load_config
    from mrmodel.stages.paths import Paths

    config = load_config(PARAMS)
    return config, Paths(config)


def _study(name: str | None) -> TrialQueue:
    from mrmodel.tune.storage import open_storage, storage_address
    from mrmodel.tune.study import TrialQueue

    config, paths = _here()
    storage = open_storage(storage_address(paths.state), create=False)
    return TrialQueue(storage, name or config.tune.study)


def _search(config: Config, paths: Paths) -> SearchResult:
    from mrmodel.progress import RichReporter
    from mrmodel.tune.local import search_here
    from mrmodel.tune.report import sentence

    result = search_here(config, paths, RichReporter())
    click.echo(f"{config.tune.study}: {sentence(result)}")
    click.echo(f"page: {paths.reports / 'tuning' / config.tune.study}.html")
    return result
