"""The model as MLflow loads it, by "models from code": MLflow runs this file, without pickle.

`mlflow_model.write_mlflow_model` puts it into every logged model, with the parts of `mrmodel` that
it needs, the model folder (safetensors) and a short example video.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from mrmodel.predict.predictor import Predictor
from mrmodel.tracking.inputs import Source, VideoRows


class MomentSearch(PythonModel):  # type: ignore[misc]
    """Predicts windows and clip scores for rows of a query and a video."""

    # MLflow requires the name `context`.
    def load_context(self, context: Any) -> None:
        """Load the model folder and its encoders; ``device`` of the model config: auto, cpu ..."""
        device = (context.model_config or {}).get("device", "auto")
        self._predictor = Predictor.load(Path(context.artifacts["model"]), device)
        self._rows = VideoRows(self._predictor, Path(context.artifacts["example"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """One prediction per row, in the order of the rows; each video is decoded only once.

        Args:
            context: unused, `load_context` has loaded everything.
            model_input: the columns ``query`` and ``video``, or ``query``, ``features`` and
                ``vid`` (`inputs.Source`).
            params: unused.

        Returns:
            The output of ``mrmodel predict --json`` with all windows; ``qid`` is the row number.

        Raises:
            MrModelError: a row is incomplete, or its video cannot be read.
        """
        table = model_input.astype(object).where(model_input.notna(), None)
        records: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
        rows_of: dict[Source, list[int]] = {}
        for number, row in enumerate(records):
            rows_of.setdefault(Source.of_row(row, number + 1), []).append(number)
        answers: dict[int, dict[str, Any]] = {}
        for source, numbers in rows_of.items():
            video = self._rows.load(source)
            queries = [str(records[number]["query"]) for number in numbers]
            for number, found in zip(numbers, self._predictor.search(video, queries), strict=True):
                answers[number] = found.as_row(number)
        return [answers[number] for number in range(len(records))]


set_model(MomentSearch())
