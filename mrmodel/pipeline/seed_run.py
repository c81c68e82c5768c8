"""Study ``seed_run``: the three trainings of a model with another seed, and their test figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mrmodel.config import Config
from mrmodel.data.annotations import read_annotations
from mrmodel.files import write_json
from mrmodel.pipeline.evaluate import zero_shot_answers
from mrmodel.pipeline.layout import Layout
from mrmodel.pipeline.scoring import Judge
from mrmodel.pipeline.splits import reported_split
from mrmodel.pipeline.stage import run_stage_with
from mrmodel.pipeline.training import Job, open_features, open_set, train_model
from mrmodel.predict.inference import predict_set
from mrmodel.progress import Reporter
from mrmodel.train.checkpoint import load_model
from mrmodel.train.precision import pick_device
from mrmodel.types import Prediction


@dataclass(frozen=True, slots=True)
class SeedFolder:
    """Where the models and curves of one seed go."""

    root: Path

    def model(self, kind: str) -> Path:
        """Model folder."""
        return self.root / kind

    def figures(self, run: str) -> Path:
        """Stem of the results and curves of a run."""
        return self.root / "training" / run


def seed_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/seeds/<model>-<seed>.json``."""
    layout, model, seed = Layout(config), arguments["model"], int(arguments["seed"])
    folder = SeedFolder(layout.state / "studies" / "seeds" / f"{model}-{seed}")
    for job in jobs(layout, folder, model, seed):
        train_model(config, job, reporter)
    target = layout.root / "studies" / "reports" / "seeds" / f"{model}-{seed}.json"
    write_json(target, score(config, layout, folder))


def jobs(layout: Layout, folder: SeedFolder, model: str, seed: int) -> list[Job]:
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


def score(config: Config, layout: Layout, folder: SeedFolder) -> dict[str, dict[str, float]]:
    """Figures on the test split of each kind of weights, and of similarity alone."""
    device, judge = pick_device(config.train.device), Judge(config)
    truth = read_annotations(layout.split(reported_split(layout)), config.features.clip_len_s)
    data = open_set(config, truth, open_features(config, layout, device), config.seed)
    answers: dict[str, list[Prediction]] = zero_shot_answers(config, data)
    for kind in ("pretrained", "scratch", "finetuned"):
        model, _ = load_model(folder.model(kind), device)
        batch_size = config.train.eval_batch_size
        answers[kind] = predict_set(model, data, batch_size, judge.postprocess)
    rows = [row.as_row() for row in truth]
    scores = {
        kind: judge.score(rows, [prediction.as_row() for prediction in found])
        for kind, found in answers.items()
    }
    return {kind: judge.figures(found) for kind, found in scores.items()}


if __name__ == "__main__":
    run_stage_with(seed_run, ("model", "seed"))
