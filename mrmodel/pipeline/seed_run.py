"""Study ``seed_run``: the three trainings of a model with another seed, and their test figures."""

from __future__ import annotations

from mrmodel.config import Config
from mrmodel.files import write_json
from mrmodel.pipeline.evaluate import TRAINED, zero_shot_answers
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.stage import run_stage_with
from mrmodel.pipeline.study import ReportedSplit, StudyFolder
from mrmodel.pipeline.study_tables import REPORTS
from mrmodel.pipeline.training import Job, train_model
from mrmodel.progress import Reporter


def seed_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/seeds/<model>-<seed>.json``: figures of each kind of weights."""
    layout, model, seed = Layout(config), arguments["model"], int(arguments["seed"])
    folder = StudyFolder.of(layout, "seeds", f"{model}-{seed}")
    for job in jobs(layout, folder, model, seed):
        train_model(config, job, reporter)
    test = ReportedSplit(config, layout)
    zero_shot = zero_shot_answers(config, test.data)
    figures = {way: test.figures(test.score(found)) for way, found in zero_shot.items()}
    figures |= {kind: test.figures_of(folder.model(kind)) for kind in TRAINED}
    write_json(REPORTS / "seeds" / f"{model}-{seed}.json", figures)


def jobs(layout: Layout, folder: StudyFolder, model: str, seed: int) -> list[Job]:
    """The same three trainings as in the main job, in its order."""
    generated = (layout.intervid / "train.jsonl", layout.intervid / "val.jsonl")
    annotated = (layout.split("train"), layout.split("val"))
    plans = [
        ("pretrain", generated, None, "pretrained"),
        ("finetune", annotated, folder.model("pretrained"), "finetuned"),
        ("scratch", annotated, None, "scratch"),
    ]
    return [
        Job(run, model, seed, *rows, start, folder.model(kind), folder.figures(run))
        for run, rows, start, kind in plans
    ]


if __name__ == "__main__":
    run_stage_with(seed_run, ("model", "seed"))
