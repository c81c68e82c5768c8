"""A search as plots, tables and text: for MLflow, HTML pages and the command line."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mrmodel.errors import TuningError
from mrmodel.files import write_json, write_text
from mrmodel.report.build import Report, ReportSection, Table, render
from mrmodel.report.studies import REPORTS
from mrmodel.stages.paths import Paths
from mrmodel.text import four_digits
from mrmodel.tracking.run import TrackedRun
from mrmodel.tune.result import SearchResult, read_result, reason
from mrmodel.tune.study import RETRY_OF, SOURCE, TrialQueue, is_feasible, owner_of

log = logging.getLogger(__name__)

_SHOWN_TRIALS = 15
# Plots that need the full page width: title, and size in inches.
_WIDE = {
    "parallel_coordinates": ("Parallel coordinates", (13.0, 5.0)),
    "slices": ("Slices", (16.0, 3.5)),
}


def record_search(
    record: TrackedRun, study: TrialQueue, result: SearchResult, paths: Paths
) -> Path:
    """Write the HTML page of a search; log page, plots, tables and result to its MLflow run.

    Returns:
        The page, ``reports/tuning/<study>.html``; the report section is in ``studies/reports``.
    """
    charts = plots(study)
    page = paths.reports / "tuning" / f"{study.name}.html"
    write_text(page, render(report_of(study, result, charts)))
    write_json(paths.root / report_part(study.name), summary_of(study, result))
    record.text("search.html", page.read_text(encoding="utf-8"))
    for name, svg in charts.items():
        record.text(f"views/{name}.svg", svg)
    record.table("trials.json", trial_columns(study.trials()))
    states = [trial.state.name.lower() for trial in study.trials()]
    record.log({f"trials/{state}": states.count(state) for state in sorted(set(states))}, 0)
    for name in ("start", "best"):
        value = getattr(result, name)
        if value is not None:
            record.log({f"{name}": value}, 0)
    record.tags({"verdict": sentence(result), "study": study.name})
    record.params({"found": result.changes})
    return page


def report_part(study: str) -> Path:
    """File with a search's section of the pipeline report, relative to the repository's root."""
    return REPORTS / f"tune-{study}.json"


def summary_of(study: TrialQueue, result: SearchResult) -> dict[str, Any]:
    """A search's section of the pipeline report."""
    best, history = None, []
    for trial in study.trials(TrialState.COMPLETE):
        if is_feasible(trial):
            best = trial.values[0] if best is None else max(best, trial.values[0])
            history.append([trial.number, best])
    return {
        "study": study.name,
        "corpus": study.facts.config["corpus"]["name"],
        "figure": result.figure,
        "sentence": sentence(result),
        "history": history,
        "tables": [asdict(table) for table in result_tables(result)],
    }


def sentence(result: SearchResult) -> str:
    """The result in words."""
    winner, after = result.winner, result.after_training
    parts = []
    if winner is not None:
        runs = f"{len(result.seeds)} seeds"
        parts.append(f"trial {winner.trial} is better: {winner.gain} {result.figure}, {runs}")
    else:
        parts.append(f"nothing was confirmed to be better: {reason(result)}")
    if after is not None:
        clear = "" if after.gain.is_clear else ", which is not clear and not applied"
        parts.append(f"what is chosen after training adds {after.gain}{clear}")
    return "; ".join(parts)


def report_of(study: TrialQueue, result: SearchResult, charts: dict[str, str]) -> Report:
    """The page."""
    facts = study.facts
    started = {"starting point": result.start, "best trial": result.best}
    shown = {name: f"{value:.2f}" for name, value in started.items() if value is not None}
    sections = [ReportSection("Verdict", sentence(result) + ".", tables=result_tables(result))]
    sections.append(ReportSection("Trials", tables=[trial_table(study, result.figure)]))
    sections.append(
        ReportSection(
            "Views",
            "Of all finished trials. The importance of a value is how far the best trials' values "
            "differ from what was drawn (PED-ANOVA); with few trials it says little.",
            charts=[svg for name, svg in charts.items() if name not in _WIDE],
        )
    )
    for name, (title, _) in _WIDE.items():
        if name in charts:  # Alone in its section, it has the full page width.
            sections.append(ReportSection(title, charts=[charts[name]]))
    return Report(
        title=f"Search “{study.name}” for {result.figure}",
        lead="All metrics are of validation data; the test split was not read.",
        headline={**shown, "trials": str(result.trials)},
        sections=sections,
        provenance={"study": study.name, "begun with parameters": facts.digest[:12]},
    )


def result_tables(result: SearchResult) -> list[Table]:
    """The confirmation and the post-processing choice as tables."""
    tables = []
    if result.candidates:
        rows = []
        for one in result.candidates:
            name = "starting point" if one.trial is None else f"trial {one.trial}"
            values = [f"{value:.2f}" for value in one.values]
            mean = f"{sum(one.values) / len(one.values):.2f}"
            rows.append([name, mean, *values, str(one.gain) if one.gain is not None else "–"])
        seeds = [f"seed {seed}" for seed in result.seeds]
        caption = (
            f"{result.figure} of trainings with several seeds; difference to the starting point "
            "with its 95 % interval over videos and seeds."
        )
        columns = ["", "mean", *seeds, "difference"]
        winner = result.winner
        strong = result.candidates.index(winner) if winner is not None else None
        tables.append(Table(caption, columns, rows, strong))
    if result.changes:
        rows = [[path, str(value)] for path, value in result.changes.items()]
        tables.append(Table("To write into params.yaml.", ["parameter", "value"], rows))
    return tables


def trial_table(study: TrialQueue, figure: str) -> Table:
    """The best trials and their changes."""
    complete = [one for one in study.trials(TrialState.COMPLETE) if is_feasible(one)]
    best = sorted(complete, key=lambda one: -one.values[0])[:_SHOWN_TRIALS]
    names = list(dict.fromkeys(name for one in best for name in one.params))
    rows = [
        [
            " ".join(filter(None, (str(one.number), one.user_attrs.get(SOURCE)))),
            *(f"{value:.2f}" for value in one.values),
            *(four_digits(one.params[name]) if name in one.params else "–" for name in names),
        ]
        for one in best
    ]
    states = [trial.state.name.lower() for trial in study.trials()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    others = [f"figure {number}" for number in range(2, len(study.directions) + 1)]
    columns = ["trial", figure, *others, *names]
    return Table(f"The best of {len(states)} trials ({counts}).", columns, rows)


def changes_of(trial: FrozenTrial) -> str:
    """The changes of a trial, in one line."""
    changes = trial.user_attrs.get("changes", {})
    source = trial.user_attrs.get(SOURCE)
    shown = [f"{_short(path)} {four_digits(value)}" for path, value in changes.items()]
    return ", ".join([f"values of {source}", *shown] if source else shown)


def trial_columns(trials: list[FrozenTrial]) -> dict[str, list[Any]]:
    """Columns with one entry per trial."""
    owners = [owner_of(trial) for trial in trials]
    names = sorted({name for trial in trials for name in trial.params})
    return {
        "trial": [trial.number for trial in trials],
        "state": [trial.state.name.lower() for trial in trials],
        "value": [trial.values[0] if trial.values else None for trial in trials],
        "why": [trial.user_attrs.get("reason") for trial in trials],
        "source": [trial.user_attrs.get(SOURCE) for trial in trials],
        "retry_of": [trial.user_attrs.get(RETRY_OF) for trial in trials],
        "seconds": [one.duration.total_seconds() if one.duration else None for one in trials],
        "machine": [owner.machine if owner else None for owner in owners],
        **{name: [trial.params.get(name) for trial in trials] for name in names},
    }


def plots(study: TrialQueue) -> dict[str, str]:
    """Name -> SVG of each plot for which there are enough trials."""
    from optuna.visualization import matplotlib as views

    handle, pareto = study.handle, len(study.directions) > 1
    first = _first if pareto else None
    drawn: dict[str, Callable[[], Any]] = {
        "pareto_front": lambda: views.plot_pareto_front(handle),
        "history": lambda: views.plot_optimization_history(handle, target_name="figure"),
        "curves": lambda: views.plot_intermediate_values(handle),
        # PED-ANOVA ranks the lowest values as best, but here the highest are.
        "importance": lambda: views.plot_param_importances(
            handle, target=_lowest, target_name="figure"
        ),
        "parallel_coordinates": lambda: views.plot_parallel_coordinate(
            handle, target=first, target_name="figure"
        ),
        "slices": lambda: views.plot_slice(handle, target=first, target_name="figure"),
    }
    for other in ("history", "curves") if pareto else ("pareto_front",):
        del drawn[other]
    found = {}
    with _quiet():
        for key, draw in drawn.items():
            try:
                found[key] = _svg(draw(), _WIDE[key][1] if key in _WIDE else None)
            except (ValueError, RuntimeError) as error:  # Too few trials, or all alike.
                log.info("no view %r of %s: %s", key, study.name, error)
    return found


def _first(trial: FrozenTrial) -> float:
    return float(trial.values[0])


def _lowest(trial: FrozenTrial) -> float:
    return -float(trial.values[0])


def _svg(axes: Any, inches: tuple[float, float] | None) -> str:
    import matplotlib.pyplot as plt

    figure = (axes.flat[0] if hasattr(axes, "flat") else axes).get_figure()
    if inches is not None:
        figure.set_size_inches(inches)
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight")
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's experimental warnings; keep matplotlib from opening windows."""
    import matplotlib

    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", module="matplotlib")
        warnings.filterwarnings("ignore", module="optuna")
        yield


def _short(path: str) -> str:
    """A dotted path without the common prefix."""
    parts = path.split(".")
    return ".".join(parts[2:] if parts[0] == "models" else parts[1:])


def lines(study: TrialQueue) -> Iterator[str]:
    """The progress of each level, running trials and workers, and the result if there is one."""
    for one in [study, *study.later()]:
        states = [trial.state.name.lower() for trial in one.trials()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        best = one.best_value()
        yield f"{one.name}: {counts}" + ("" if best is None else f"; best {best:.2f}")
        for trial in one.trials(TrialState.RUNNING):
            owner, step = owner_of(trial), trial.last_step
            where = f" on {owner.machine}" if owner else ""
            reached = (
                "" if step is None else f": epoch {step}, {trial.intermediate_values[step]:.2f}"
            )
            yield f"  trial {trial.number} runs{where}{reached}"
    result = _result(study)
    if result is not None:
        yield sentence(result)


def best_lines(study: TrialQueue, top: int) -> Iterator[str]:
    """The best trials, the confirmation, and the values to be written into params.yaml."""
    complete = [one for one in study.trials(TrialState.COMPLETE) if is_feasible(one)]
    for trial in sorted(complete, key=lambda one: -one.values[0])[:top]:
        values = " ".join(f"{value:6.2f}" for value in trial.values)
        yield f"trial {trial.number:<4} {values}  {changes_of(trial)}"
    result = _result(study)
    if result is None:
        yield "not confirmed yet: the search has not come to its end"
        return
    for one in result.candidates:
        name = "starting point" if one.trial is None else f"trial {one.trial}"
        values = " ".join(f"{value:.2f}" for value in one.values)
        yield f"confirmed: {name:<15} {values}" + (f"  {one.gain}" if one.gain else "")
    yield sentence(result)
    for path, value in result.changes.items():
        yield f"  {path}: {value}"


def _result(study: TrialQueue) -> SearchResult | None:
    try:
        return read_result(study)
    except TuningError:
        return None
