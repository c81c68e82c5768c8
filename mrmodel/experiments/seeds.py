"""Study ``seeds``: the trainings with other seeds; mean and standard deviation of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mrmodel.config.schema import Config
from mrmodel.experiments.control_run import ReportedSplit, StudyFolder
from mrmodel.experiments.tables import Summary, mean_and_sd, runs_of
from mrmodel.files import write_json, write_text
from mrmodel.progress import Reporter
from mrmodel.report.studies import REPORTS, cell
from mrmodel.stages.evaluate import TRAINED, zero_shot_predictions
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_command
from mrmodel.stages.trainer import TrainingJob, pretraining_files, train_model
from mrmodel.text import table as markdown_table


def seeds(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/seeds.json`` and ``seeds.md``."""
    runs = runs_of("seeds")
    table = {model: seeds_table(found) for model, found in runs.items()}
    write_json(REPORTS / "seeds.json", table)
    counts = {model: len(found) for model, found in runs.items()}
    write_text(REPORTS / "seeds.md", as_markdown(table, counts))


def seeds_table(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Summary]:
    """The summary of each variant."""
    return {way: mean_and_sd([run[way] for run in runs]) for way in runs[0]}


def as_markdown(table: Mapping[str, Mapping[str, Summary]], counts: Mapping[str, int]) -> str:
    """One table per model."""
    lines = []
    for model, ways in table.items():
        metrics = list(next(iter(ways.values())))
        lines += [f"**{model}**, mean ± standard deviation over {counts[model]} seeds", ""]
        rows = [[way, *(cell(row.get(name)) for name in metrics)] for way, row in ways.items()]
        lines += [markdown_table(["", *metrics], rows), ""]
    return "\n".join(lines)


def seed_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/seeds/<model>-<seed>.json``: metrics of each kind of weights."""
    paths, model, seed = Paths(config), arguments["model"], int(arguments["seed"])
    folder = StudyFolder.of(paths, "seeds", f"{model}-{seed}")
    for job in jobs(paths, folder, model, seed):
        train_model(config, job, reporter)
    test = ReportedSplit(config, paths)
    zero_shot = zero_shot_predictions(config, test.data)
    metrics = {way: test.main_metrics(test.score(found)) for way, found in zero_shot.items()}
    metrics |= {kind: test.main_metrics_of(folder.model(kind)) for kind in TRAINED}
    write_json(REPORTS / "seeds" / f"{model}-{seed}.json", metrics)


def jobs(paths: Paths, folder: StudyFolder, model: str, seed: int) -> list[TrainingJob]:
    """The same three trainings as in the main job, in its order."""
    annotated = (paths.split("train"), paths.split("val"))
    plans = [
        ("pretrain", pretraining_files(paths), None, "pretrained"),
        ("finetune", annotated, folder.model("pretrained"), "finetuned"),
        ("scratch", annotated, None, "scratch"),
    ]
    return [
        TrainingJob(run, model, seed, *rows, start, folder.model(kind), folder.metrics_path(run))
        for run, rows, start, kind in plans
    ]


if __name__ == "__main__":
    run_command({"table": (seeds, ()), "run": (seed_run, ("model", "seed"))})
