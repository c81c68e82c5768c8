"""Study ``pretraining``: what the rows of pre-training are worth, at equal steps.

A row is a model and what it is pre-trained on: nothing, the first samples of InterVid-MR or all of
them, or captions of frames (VideoLights' Algorithm 1). It is then fine-tuned on the annotated
queries. The row without pre-training takes all of its steps on these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mrmodel.config.schema import Config
from mrmodel.errors import DataError
from mrmodel.evaluate.significance import BootstrapSettings, bootstrap_over_seeds
from mrmodel.experiments.control_run import ReportedSplit, StudyFolder, with_steps
from mrmodel.experiments.tables import (
    Runs,
    made_with,
    mean_and_sd,
    per_query_of,
    queries_of,
    runs_of,
    shared_values,
)
from mrmodel.files import read_json, write_json, write_jsonl, write_text
from mrmodel.lines import byte_lines
from mrmodel.names import PRETRAINING_ROW
from mrmodel.pretraining.intervid.selection import selected_texts
from mrmodel.progress import Reporter
from mrmodel.report.pretraining import (
    NONE,
    PRETRAINING,
    SOURCES,
    pretraining_sentences,
    pretraining_tables,
)
from mrmodel.report.studies import REPORTS, markdown_page
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_command
from mrmodel.stages.trainer import TrainingJob, train_model
from mrmodel.stages.video_captions import caption_rows

STUDY = "pretraining"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the study.

    Attributes:
        name: ``<model>.<source>``, or ``<model>.<source>.<samples>``.
        model: name below `models`.
        source: one of `SOURCES`.
        samples: number of samples to pre-train on, the first ones; None: all.
    """

    name: str
    model: str
    source: str
    samples: int | None

    @classmethod
    def of(cls, name: str) -> Row:
        """The row of this name.

        Raises:
            ConfigError: it is none.
        """
        PRETRAINING_ROW.require(f"{STUDY}.rows", name)
        model, source, *samples = name.split(".")
        return cls(name, model, source, int(samples[0]) if samples else None)


def pretraining(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/pretraining.json`` and ``pretraining.md``."""
    settings = BootstrapSettings(resamples=config.evaluate.bootstrap_resamples, seed=config.seed)
    table = pretraining_table(runs_of(STUDY), settings) | made_with()
    write_json(PRETRAINING, table)
    write_text(
        PRETRAINING.with_suffix(".md"),
        markdown_page(pretraining_sentences(table), pretraining_tables(table)),
    )


def pretraining_table(runs: Runs, settings: BootstrapSettings) -> dict[str, Any]:
    """The table: shared values, and one row per model and set with its difference to no set.

    Rows are ordered by model, set and number of samples.

    Args:
        runs: the results of ``pretraining_run`` by row, one per seed.
        settings: of the bootstrap.

    Raises:
        DataError: there are no runs, or none without pre-training of a model; corpora, metrics,
            numbers of steps or queries differ; or the samples of a row differ between seeds.
    """
    shared = shared_values(STUDY, runs, ("corpus", "headline", "steps"))
    pretrained = {name: found for name, found in runs.items() if Row.of(name).source != NONE}
    lengths = shared_values(STUDY, pretrained, ("pretrain_steps",)) if pretrained else {}
    order = sorted(runs, key=lambda name: _place(name, runs[name]))
    rows = {name: _row(Row.of(name), runs[name], shared["headline"]) for name in order}
    differences = {
        name: _difference(name, runs, shared["headline"], settings)
        for name in order
        if name in pretrained
    }
    return {
        **shared,
        **lengths,
        "rows": rows,
        "resamples": settings.resamples,
        "differences": differences,
    }


def _place(name: str, runs: Sequence[Mapping[str, Any]]) -> tuple[str, int, int]:
    row = Row.of(name)
    return row.model, SOURCES.index(row.source), runs[0]["samples"]


def _row(row: Row, runs: Sequence[Mapping[str, Any]], headline: str) -> dict[str, Any]:
    found = {
        "model": row.model,
        "source": row.source,
        **shared_values(STUDY, {row.name: runs}, ("samples", "parameters")),
        "seeds": len(runs),
    }
    for key in ("pretrained", "figures"):
        of_seeds = [run[key] for run in runs if run[key] is not None]
        found[key] = mean_and_sd(of_seeds) if of_seeds else None
        found[f"{key}_of_seeds"] = [figures[headline] for figures in of_seeds]
    return found


def _difference(
    name: str, runs: Runs, headline: str, settings: BootstrapSettings
) -> dict[str, float]:
    """Difference of a row to its model without pre-training, both fine-tuned."""
    control = f"{Row.of(name).model}.{NONE}"
    if control not in runs:
        rule = (
            f"no run of {control!r}, which {name!r} is compared with (runs: {', '.join(runs)}); "
            f"name it in `{STUDY}.rows` of studies/params.yaml"
        )
        raise DataError(rule, file=REPORTS / STUDY)
    first, second = ([per_query_of(run, headline) for run in runs[one]] for one in (control, name))
    return bootstrap_over_seeds(first, second, headline, settings).as_json()


def pretraining_run(config: Config, reporter: Reporter, arguments: dict[str, str]) -> None:
    """Write ``studies/reports/pretraining/<row>-<seed>.json``: metrics of both kinds of weights."""
    row, seed = Row.of(arguments["row"]), int(arguments["seed"])
    first, second = (int(arguments[f"{run}_steps"]) for run in ("pretrain", "finetune"))
    for run, steps in (("pretrain", first), ("finetune", second), ("scratch", first + second)):
        config = with_steps(config, steps, run)
    folder = StudyFolder.of(Paths(config), STUDY, f"{row.name}-{seed}")
    plan = jobs(config, row, seed, folder, reporter)
    for job in plan:
        train_model(config, job, reporter)
    trained = [read_json(job.metrics_path.with_suffix(".json")) for job in plan]
    test = ReportedSplit(config, Paths(config))
    scores = test.score(test.answers(test.model(plan[-1].out)))
    has_pretraining = row.source != NONE
    result = {
        "model": row.model,
        "row": row.name,
        "seed": seed,
        "corpus": config.corpus.name,
        "samples": sum(1 for _ in byte_lines(plan[0].train)) if has_pretraining else 0,
        "steps": sum(found["steps"] for found in trained),
        "pretrain_steps": trained[0]["steps"] if has_pretraining else 0,
        "parameters": trained[-1]["parameters"],
        "headline": test.headline,
        "pretrained": test.main_metrics_of(plan[0].out) if has_pretraining else None,
        "figures": test.main_metrics(scores),
        "queries": queries_of(scores.per_query, test.headline),
    }
    write_json(REPORTS / STUDY / f"{row.name}-{seed}.json", result)


def jobs(
    config: Config, row: Row, seed: int, folder: StudyFolder, reporter: Reporter
) -> list[TrainingJob]:
    """The trainings of a row: pre-training and fine-tuning, or the control of the main job."""
    paths = Paths(config)
    annotated = (paths.split("train"), paths.split("val"))
    plans: list[tuple[str, tuple[Path, Path], Path | None, str]]
    plans = [("scratch", annotated, None, "scratch")]
    if row.source != NONE:
        generated = rows_to_pretrain_on(config, row, folder.root, reporter)
        plans = [
            ("pretrain", generated, None, "pretrained"),
            ("finetune", annotated, folder.model("pretrained"), "finetuned"),
        ]
    return [
        TrainingJob(
            run,
            row.model,
            seed,
            *files,
            start,
            folder.model(kind),
            folder.metrics_path(run),
            label=f"{STUDY}-{row.name}-{seed}-{run}",
        )
        for run, files, start, kind in plans
    ]


def rows_to_pretrain_on(
    config: Config, row: Row, folder: Path, reporter: Reporter
) -> tuple[Path, Path]:
    """The annotation files to pre-train on and to validate with.

    Raises:
        DataError: there are fewer samples than the row takes, or none.
    """
    paths = Paths(config)
    if row.source == "video_captions":
        return captions_of_frames(config, paths, folder, reporter)
    train, val = paths.intervid / "train.jsonl", paths.intervid / "val.jsonl"
    if row.samples is None:
        if train.stat().st_size == 0:
            raise DataError(f"has no sample for {row.name!r}", file=train)
        return train, val
    return first_samples(train, row, folder / "train.jsonl"), val


def first_samples(train: Path, row: Row, out: Path) -> Path:
    """Write the first samples of InterVid-MR, as `intervid.max_samples` chooses them.

    They are in the order of a hash, so a smaller set is random, and part of every larger one.

    Raises:
        DataError: there are fewer than the row takes.
    """
    lines = list(islice(byte_lines(train), row.samples))
    if row.samples is not None and len(lines) < row.samples:
        rule = (
            f"has {len(lines)} samples, and {row.name!r} takes {row.samples}: "
            f"choose fewer in `{STUDY}.rows` of studies/params.yaml"
        )
        raise DataError(rule, file=train)
    write_text(out, "".join(f"{line.decode()}\n" for line in lines))
    return out


def captions_of_frames(
    config: Config, paths: Paths, folder: Path, reporter: Reporter
) -> tuple[Path, Path]:
    """The rows of the stage ``video_captions``; if it has no captioner, rows made here.

    The captioner is then ``phrases``, which chooses among the captions of InterVid-MR: text
    features exist of those alone.
    """
    made = paths.video_captions
    if (made / "train.jsonl").stat().st_size == 0:
        made = folder / "video_captions"
        settings = config.video_captions
        if settings is not None:
            settings = settings.model_copy(update={"captioner": "phrases"})
        config = config.model_copy(update={"video_captions": settings})
        phrases = list(dict.fromkeys(selected_texts(paths.intervid_select)))
        rows, _ = caption_rows(config, phrases, made / "work", reporter)
        write_jsonl(made / "train.jsonl", rows)
        write_jsonl(made / "val.jsonl", [])
    return made / "train.jsonl", made / "val.jsonl"


if __name__ == "__main__":
    options = ("row", "seed", "pretrain_steps", "finetune_steps")
    run_command({"table": (pretraining, ()), "run": (pretraining_run, options)})
