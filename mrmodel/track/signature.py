"""What a served model takes and gives, as MLflow checks and shows it."""

from __future__ import annotations

from typing import Any

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array


def model_signature() -> Any:
    """Input columns as `video_rows.Source` explains them, and the answer's fields."""
    texts = ("video", "features", "vid")
    inputs = [ColSpec(DataType.string, "query")]
    inputs += [ColSpec(DataType.string, name, required=False) for name in texts]
    outputs = [
        ColSpec(DataType.long, "qid"),
        ColSpec(DataType.string, "query"),
        ColSpec(DataType.string, "vid"),
        ColSpec(Array(Array(DataType.double)), "pred_relevant_windows"),
        ColSpec(Array(DataType.double), "pred_saliency_scores"),
        ColSpec(DataType.double, "duration"),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))
