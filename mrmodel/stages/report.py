"""Stage ``report``: one HTML page with the tables, curves and examples of a run."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mrmodel.config.schema import Config
from mrmodel.data.annotations import read_annotations
from mrmodel.evaluate.moment_retrieval import pairwise_iou
from mrmodel.evaluate.protocols import Scores
from mrmodel.evaluate.rows import Row, read_rows
from mrmodel.files import read_object, write_text
from mrmodel.lines import byte_lines
from mrmodel.names import problem_of_part
from mrmodel.pretraining.intervid.report import CARD_FILE, card_rows
from mrmodel.progress import Reporter
from mrmodel.report.build import Example, Report, ReportSection, Table, film_strip, render
from mrmodel.report.charts import Timeline, bar_chart, line_chart
from mrmodel.report.pretraining import (
    PRETRAINING,
    pretraining_charts,
    pretraining_sentences,
    pretraining_tables,
)
from mrmodel.report.studies import (
    ABLATION,
    COMPARISON,
    DIFFERENCE,
    REPORTS,
    ablation_sentences,
    ablation_tables,
    comparison_sentences,
    comparison_tables,
    difference_cells,
)
from mrmodel.stages.evaluate import ZERO_SHOT, is_served, trained_kinds
from mrmodel.stages.paths import Paths
from mrmodel.stages.runner import run_stage
from mrmodel.stages.scorer import Scorer, reported_split
from mrmodel.stages.trainer import pretraining_files
from mrmodel.types import Annotation

WAYS = {
    ZERO_SHOT: "zero-shot similarity",
    "pretrained": "pre-trained only",
    "imported": "published weights",
    "scratch": "from scratch, equal steps",
    "finetuned": "fine-tuned",
}
ALONE = {"decoder": "decoder windows alone", "anchors": "anchor windows alone"}
TOY = (
    "The sample corpus is a toy domain, pictograms over drawn scenes: its numbers prove that the "
    "pipeline works and say nothing of video understanding."
)
N_EXAMPLES = 9


class Study(NamedTuple):
    """The title of a study, and what makes sentences, tables and charts of its result."""

    title: str
    sentences: Callable[[Any], list[str]]
    tables: Callable[[Any], list[Table]]
    charts: Callable[[Any], list[str]] = lambda _: []


STUDIES = {
    COMPARISON: Study("All models", comparison_sentences, comparison_tables),
    ABLATION: Study("SG-DETR, part by part", ablation_sentences, ablation_tables),
    PRETRAINING: Study(
        "Pre-training at equal steps", pretraining_sentences, pretraining_tables, pretraining_charts
    ),
}


def report(config: Config, reporter: Reporter) -> None:
    """Write ``reports/report.html``."""
    paths = Paths(config)
    model = config.train.models[0]
    metrics = read_object(paths.reports / "metrics.json")
    comparison = read_object(paths.evaluation / "comparison.json")
    reporter.start("report", 3)
    sections = [results_section(config, metrics, comparison)]
    reporter.advance()
    sections += [training_section(config, paths), pretraining_section(paths)]
    reporter.advance()
    examples = choose_examples(config, paths, f"{model}.finetuned")
    sections.insert(1, examples_section(examples))
    for path, study in STUDIES.items():
        sections += study_sections(config, study, paths.root / path)
    sections += search_sections(config, paths.root / REPORTS)
    page = Report(
        title=f"Moment retrieval on the corpus “{config.corpus.name}”",
        lead=(TOY + " " if config.corpus.source == "sample" else "")
        + "All metrics are of the test split; the weights were chosen on the validation split.",
        headline=headline(metrics, comparison, model),
        sections=sections,
        provenance=provenance(config, paths),
    )
    write_text(paths.reports / "report.html", render(page))
    reporter.advance()
    reporter.finish()


def headline(metrics: dict[str, Any], comparison: dict[str, Any], model: str) -> dict[str, str]:
    """The summary cards at the top of the page."""
    best = metrics[f"{model}.finetuned"]
    gains = comparison["differences"]
    cards = {
        f"{name} of {model}, fine-tuned": f"{value:.1f}" for name, value in list(best.items())[:3]
    }
    for other, words in ((ZERO_SHOT, "over zero-shot"), (f"{model}.scratch", "over from scratch")):
        gain = gains.get(f"{model}.finetuned - {other}")
        if gain is not None:
            cards[f"{comparison['figure']} gained {words}"] = f"{gain['difference']:+.1f}"
    return cards


def results_section(
    config: Config, metrics: dict[str, dict[str, float]], comparison: dict[str, Any]
) -> ReportSection:
    """All variants, the interval of the headline metric, and the paired differences.

    Variants that are not served, such as the decoder windows alone, have neither intervals nor
    clip scores of their own.
    """
    columns = list(dict.fromkeys(name for row in metrics.values() for name in row))
    clips = [name for name in columns if name.startswith("HL-")]
    windows = [name for name in columns if name not in clips]
    best = f"{config.train.models[0]}.finetuned"

    def table(caption: str, shown: Sequence[str], with_interval: bool) -> Table:
        names = [name for name in metrics if with_interval or is_served(name)]
        last = [f"95 % interval of {comparison['figure']}"] if with_interval else []
        rows = [
            [_way(name), *(_cell(metrics[name].get(figure)) for figure in shown)]
            + ([_interval(comparison, name)] if with_interval else [])
            for name in names
        ]
        return Table(caption, ["", *shown, *last], rows, names.index(best))

    tables = [table("Windows, percent: means over the test queries.", windows, True)]
    if clips:
        tables.append(table("Clip scores, percent.", clips, False))
    gains = Table(
        caption=f"Difference in {comparison['figure']}: paired bootstrap, whole videos resampled.",
        columns=["", *DIFFERENCE],
        rows=[
            [" − ".join(_way(part) for part in name.split(" - ")), *difference_cells(row)]
            for name, row in comparison["differences"].items()
        ],
    )
    return ReportSection("Results", tables=[*tables, gains])


def training_section(config: Config, paths: Paths) -> ReportSection:
    """Loss and validation curves of every run; with several models, one chart per run."""
    models, runs = config.train.models, ("pretrain", "finetune", "scratch")
    charts = []
    for shown in [runs] if len(models) == 1 else [(run,) for run in runs]:
        losses: dict[str, list[tuple[float, float]]] = {}
        scores: dict[str, list[tuple[float, float]]] = {}
        for name, path in _curves(paths, models, shown).items():
            curve = pd.read_csv(path)
            losses[name] = _points(curve, "train/loss")
            validated = [column for column in curve.columns if column.startswith("val/")]
            scores[name] = _points(curve, validated[0]) if validated else []
        charts += [line_chart(losses, "training loss"), line_chart(scores, "validation mAP")]
    return ReportSection(
        "Training",
        "Mean loss of each epoch, and the metric that selects the weights on validation data "
        "(for pre-training these are generated queries, so the curves do not compare).",
        charts=charts,
    )


def _curves(paths: Paths, models: Sequence[str], runs: Sequence[str]) -> dict[str, Path]:
    """Curve name -> file."""
    return {
        f"{run} {model}": paths.training / f"{run}-{model}.csv" for model in models for run in runs
    }


def pretraining_section(paths: Paths) -> ReportSection:
    """The rows that pre-training used: the user's, captions of frames, or InterVid-MR."""
    used, _ = pretraining_files(paths)
    if used.parent == paths.intervid:
        return intervid_section(paths)
    count = sum(1 for _ in byte_lines(used))
    if used.parent == paths.corpus:
        return ReportSection("Pre-training data", f"{count} annotated rows that the user brought.")
    found = read_object(paths.video_captions / "report.json")
    rows = [[name, str(value)] for name, value in sorted(found["counts"].items())]
    return ReportSection(
        "Pre-training data (captions of frames)",
        f"{count} rows: captions of single frames, rated by the similarity of their clips "
        f"(VideoLights, Algorithm 1; captioner: {found['captioner']}).",
        tables=[Table("Intervals and what became of them", ["", "count"], rows)],
    )


def intervid_section(paths: Paths) -> ReportSection:
    """Statistics of the caption rules and the generated samples."""
    found = read_object(paths.intervid / "report.json")
    if found["state"] == "empty":
        return ReportSection("Pre-training data", f"No generated queries: {found['reason']}.")
    counts = found["counts"]
    rows = [["captions read", str(counts["rows"]["read"])]]
    rows += [[f"removed by rule “{name}”", str(count)] for name, count in counts["rules"].items()]
    rows += [[f"queries for {name}", str(count)] for name, count in counts["samples"].items()]
    card = Table("Data card", ["", ""], card_rows(read_object(paths.intervid / CARD_FILE)))
    tables = found["distributions"]
    grades = {f"grade {row['grade']:g}": float(row["clips"]) for row in tables["grades"]}
    windows = {f"{row['windows']:g}": float(row["queries"]) for row in tables["windows_per_query"]}
    return ReportSection(
        "Pre-training data (InterVid-MR)",
        "Captions of loose intervals become queries with windows and grades, by the similarity of "
        "clips and caption (SG-DETR, section 4.3.2). " + " ".join(found["warnings"]),
        tables=[Table("Captions and what became of them", ["", "count"], rows), card],
        charts=[bar_chart(grades, "clips by grade"), bar_chart(windows, "queries by windows")],
    )


def study_sections(config: Config, study: Study, result: Path) -> list[ReportSection]:
    """A study of studies/dvc.yaml, if it was run on this corpus.

    Without the last table (all metrics), which is too wide; it is in the study's Markdown.
    """
    found = _table_of_study(config, result)
    if found is None:
        return []
    tables, charts = study.tables(found)[:-1], study.charts(found)
    text = " ".join(study.sentences(found))
    return [ReportSection(study.title, text, tables=tables, charts=charts)]


def search_sections(config: Config, folder: Path) -> list[ReportSection]:
    """Hyperparameter searches on this corpus (`mrmodel tune`), one section each."""
    found = [_table_of_study(config, path) for path in sorted(folder.glob("tune-*.json"))]
    return [
        ReportSection(
            f"Search “{one['study']}”",
            f"On validation data: {one['sentence']}.",
            tables=[Table(**table) for table in one["tables"]],
            charts=[line_chart({"best so far": one["history"]}, one["figure"], "trial")],
        )
        for one in found
        if one is not None
    ]


def _table_of_study(config: Config, result: Path) -> Any:
    if not result.exists():
        return None
    table = read_object(result)
    return table if table["corpus"] == config.corpus.name else None


def examples_section(examples: Sequence[Example]) -> ReportSection:
    """Example predictions."""
    return ReportSection(
        "What the model finds",
        "Test queries at the top, in the middle and at the bottom of the ranking by average "
        "precision, evenly drawn: good and bad predictions, not hand-picked.",
        examples=examples,
    )


def choose_examples(config: Config, paths: Paths, way: str) -> list[Example]:
    """`N_EXAMPLES` test queries, evenly spaced in the ranking by headline metric."""
    scorer = Scorer(config)
    truth = read_annotations(paths.split(reported_split(paths)), config.features.clip_len_s)
    predictions = {row["qid"]: row for row in read_rows(paths.evaluation / f"{way}.jsonl")}
    scores = scorer.score([row.as_row() for row in truth], list(predictions.values()))
    values = np.nan_to_num(_values(scores, scorer), nan=-1.0)
    order = np.argsort(-values, kind="stable")
    answered = [index for index in order.tolist() if truth[index].qid in predictions]
    places = np.linspace(0, len(answered) - 1, min(N_EXAMPLES, len(answered))).round().astype(int)
    return [
        _example(config, paths, truth[answered[place]], predictions, rank=int(place) + 1)
        for place in dict.fromkeys(places.tolist())
    ]


def _example(
    config: Config,
    paths: Paths,
    row: Annotation,
    predictions: Mapping[Any, Row],
    rank: int,
) -> Example:
    found = predictions[row.qid]
    windows = [tuple(window) for window in found["pred_relevant_windows"]]
    ratings = [0.0] * len(found["pred_saliency_scores"])
    for clip, votes in zip(row.relevant_clip_ids, row.saliency_scores, strict=False):
        if clip < len(ratings):
            ratings[clip] = float(np.mean(votes))
    timeline = Timeline(
        duration_s=row.duration,
        clip_len_s=config.features.clip_len_s,
        truth=row.relevant_windows,
        found=windows[:3],
        saliency=found["pred_saliency_scores"],
        ratings=ratings,
    )
    # Where features are imported, nobody has looked for a file of that name.
    is_name = problem_of_part(row.vid) is None
    files = sorted(paths.videos.glob(f"{glob.escape(row.vid)}.*")) if is_name else []
    video = next((path for path in files if path.stem == row.vid), None)
    return Example(
        title=f"rank {rank}",
        qid=str(row.qid),
        query=row.query,
        vid=row.vid,
        iou=_best_iou(windows[:1], row.relevant_windows),
        timeline=timeline,
        frames=[] if video is None else film_strip(video, row.duration),
    )


def provenance(config: Config, paths: Paths) -> dict[str, str]:
    """Features and models of the page, read from declared dependencies only."""
    streams = read_object(paths.evaluation / "streams.json")
    kinds = ", ".join(trained_kinds(config))
    return {
        **{f"features {name}": digest[:12] for name, digest in streams.items()},
        "models": ", ".join(f"{name} ({kinds})" for name in config.train.models),
    }


def _values(scores: Scores, scorer: Scorer) -> np.ndarray[Any, Any]:
    return scores.per_query.values[scorer.protocol.headline]


def _best_iou(found: Sequence[Sequence[float]], truth: Sequence[tuple[float, float]]) -> float:
    first, second = (np.reshape([one[:2] for one in part], (1, -1, 2)) for part in (found, truth))
    return float(pairwise_iou(first, second).max(initial=0.0))


def _points(curve: pd.DataFrame, column: str) -> list[tuple[float, float]]:
    kept = curve[["step", column]].dropna()
    return [(float(step), float(value)) for step, value in kept.itertuples(index=False)]


def _way(name: str) -> str:
    if not is_served(name):
        name, _, system = name.rpartition(".")
        return f"{_way(name)}: {ALONE[system]}"
    model, _, kind = name.rpartition(".")
    return f"{model}, {WAYS[kind]}" if model else WAYS[kind]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(comparison: dict[str, Any], name: str) -> str:
    row = comparison["intervals"].get(name)
    return "–" if row is None else f"{row['low']:.1f} to {row['high']:.1f}"


if __name__ == "__main__":
    run_stage(report)
