import re
from dataclasses import replace

from mrmodel.orchestrate.markdown import stage_markdown, stages_markdown
from mrmodel.orchestrate.result_store import StageResult
from mrmodel.orchestrate.scheduler import StageRow

RESULT = StageResult(
    stage="finetune@sg_detr",
    key="k",
    entry={"outs": [{"path": "models/finetuned/sg_detr", "md5": "12ab.dir", "size": 77}]},
    figures={"reports/training/x.json": {"best": {"mAP": 41.25}, "steps": 200, "note": "text"}},
    curves={"reports/training/x.csv": [4.0, 3.0, 2.0, 1.0]},
    began=0.0,
    seconds={"clone": 1.0, "run": 30.5},
    mlflow="http://mlflow.example/#/experiments/1/runs/2",
    worker="gpu-a",
)


def test_a_stage_shows_outputs_figures_and_curves() -> None:
    text = stage_markdown(RESULT)
    assert "| models/finetuned/sg_detr | 77 | 12ab.dir |" in text
    assert "| reports/training/x.json | best.mAP | 41.25 |" in text
    assert "| reports/training/x.csv | 4 | █▆▃▁ | 1 |" in text
    assert "(http://mlflow.example/#/experiments/1/runs/2)" in text
    long = replace(RESULT, curves={"reports/training/x.csv": [float(i) for i in range(1000)]})
    (cell,) = re.findall(r"\| 0 \| ([▁▂▃▄▅▆▇█]+) \| 999 \|", stage_markdown(long))
    assert len(cell) == 40
    assert "note" not in text, "a text is no figure"


def test_a_pipeline_shows_a_line_a_stage() -> None:
    rows = [
        StageRow("corpus", "cpu", "unchanged"),
        StageRow("finetune@sg_detr", "gpu", "ran", "parameter a|b changed", 2, "k", RESULT),
        StageRow("evaluate", "gpu", "failed", "evaluate: it broke\n  last line\n  of many", 1),
    ]
    text = stages_markdown(rows, "0123456789abcdef", "runs/x")
    assert "Code 0123456789ab, results on branch `runs/x`" in text
    assert "| corpus | unchanged |  | cpu |" in text
    assert "parameter a\\|b changed | gpu | 2 | 31.5 | gpu-a | [MLflow](http" in text
    assert "evaluate: it broke |" in text
