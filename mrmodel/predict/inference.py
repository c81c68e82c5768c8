"""Predictions of a model for a whole annotated set, from cached features."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrmodel.data.loader import MomentDataset
from mrmodel.models.base import MomentModel
from mrmodel.predict.postprocess import Decoded, PostprocessSettings, RawPredictions, decode
from mrmodel.types import Batch, ModelOutput, Prediction


def predict_set(
    model: MomentModel, data: MomentDataset, batch_size: int, settings: PostprocessSettings
) -> list[Prediction]:
    """One prediction a row of `data`, in the order of its annotations.

    `model` must be in eval mode and on the device of `data`.
    """
    decoded: dict[int, Decoded] = {}
    with torch.inference_mode():
        for rows in data.eval_batches(batch_size):
            batch, _ = data.batch(rows, epoch=0)
            found = decode_output(model(batch), batch, settings)
            decoded.update(zip(rows.tolist(), found, strict=True))
    return [
        Prediction(row.qid, row.query, row.vid, decoded[place].windows, decoded[place].saliency)
        for place, row in enumerate(data.annotations)
    ]


def seconds_of_answers(
    model: MomentModel, data: MomentDataset, batch_size: int, settings: PostprocessSettings
) -> float:
    """Seconds that forward pass and decoding of a whole set take; loading is not counted.

    `model` as for `predict_set`. The first call for a set also pays what is paid once.
    """
    seconds = 0.0
    with torch.inference_mode():
        for rows in data.eval_batches(batch_size):
            batch, _ = data.batch(rows, epoch=0)
            started = time.perf_counter()
            decode_output(model(batch), batch, settings)
            seconds += time.perf_counter() - started
    return seconds


def decode_output(
    output: ModelOutput, batch: Batch, settings: PostprocessSettings
) -> list[Decoded]:
    """Windows in seconds and clip scores of each sample of a batch."""
    return decode(raw_predictions(output, batch), settings)


def raw_predictions(output: ModelOutput, batch: Batch) -> RawPredictions:
    """Model output as the arrays that post-processing reads."""
    return RawPredictions(
        spans_cxw=_array(output.spans_cxw),
        scores=_array(output.scores),
        saliency=_array(output.saliency),
        clip_mask=batch.video_mask.cpu().numpy(),
        duration_s=torch.tensor(batch.duration_s, dtype=torch.float64).numpy(),
        clip_len_s=batch.clip_len_s,
    )


def _array(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.float().cpu().numpy()
    return array
