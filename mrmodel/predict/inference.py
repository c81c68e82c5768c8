"""Predictions of a model for an annotated set, from cached features."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.data.loader import MomentDataset
from mrmodel.errors import DataError
from mrmodel.models.base import MomentModel
from mrmodel.predict.postprocess import (
    Decoded,
    Postprocess,
    RawPredictions,
    decode,
    in_video_time,
)
from mrmodel.types import Batch, ModelOutput, Prediction


def predict_set(
    model: MomentModel, data: MomentDataset, batch_size: int, postprocess: Postprocess
) -> list[Prediction]:
    """One prediction per sample of `data`, in the order of its annotations.

    `model` must be in eval mode and on the device of `data`.
    """
    return predict_systems(model, data, batch_size, postprocess, alone=False)[None]


def predict_systems(
    model: MomentModel,
    data: MomentDataset,
    batch_size: int,
    postprocess: Postprocess,
    *,
    alone: bool = True,
) -> dict[str | None, list[Prediction]]:
    """The result of `predict_set` under None and, if `alone`, that of each system of the model.

    The model runs once.
    """
    decoded: dict[str | None, dict[int, Decoded]] = {None: {}}
    with torch.inference_mode():
        for rows in data.eval_batches(batch_size):
            batch, _ = data.batch(rows, epoch=0)
            output = model(batch)
            for system in (None, *(output.systems if alone else ())):
                found = decode_output(output, batch, postprocess.alone(system))
                decoded.setdefault(system, {}).update(zip(rows.tolist(), found, strict=True))
    return {
        system: [
            Prediction(row.qid, row.query, row.vid, *answers[place])
            for place, row in enumerate(data.annotations)
        ]
        for system, answers in decoded.items()
    }


def seconds_of_predictions(
    model: MomentModel, data: MomentDataset, batch_size: int, postprocess: Postprocess
) -> float:
    """Seconds of forward pass and decoding for a whole set, without loading.

    `model` as for `predict_set`. The first call for a set includes one-time costs.
    """
    seconds = 0.0
    with torch.inference_mode():
        for rows in data.eval_batches(batch_size):
            batch, _ = data.batch(rows, epoch=0)
            started = time.perf_counter()
            decode_output(model(batch), batch, postprocess)
            seconds += time.perf_counter() - started
    return seconds


def decode_output(output: ModelOutput, batch: Batch, postprocess: Postprocess) -> list[Decoded]:
    """Windows in a player's seconds and clip scores of each sample of a batch.

    Raises:
        DataError: a number of them is not finite, which spoilt features or weights cause.
    """
    raw = raw_predictions(output, batch, postprocess.candidates, postprocess.system)
    clips = np.where(raw.clip_mask, raw.saliency, 0.0)
    for sample, values in enumerate(zip(raw.spans_cxw, raw.scores, clips, strict=True)):
        if not all(np.isfinite(value).all() for value in values):
            rule = f"the model's answer about {batch.vids[sample]} holds NaN or infinity"
            raise DataError(rule, qid=batch.qids[sample])
    return in_video_time(decode(raw, postprocess.finish), batch.start_s, batch.clip_len_s)


def raw_predictions(
    output: ModelOutput, batch: Batch, settings: PostprocessConfig, system: str | None = None
) -> RawPredictions:
    """Model output, or one system of it, as the arrays that post-processing reads."""
    spans_cxw, scores = output.candidates(settings, system)
    return RawPredictions(
        spans_cxw=_array(spans_cxw),
        scores=_array(scores),
        saliency=_array(output.saliency),
        clip_mask=batch.video_mask.cpu().numpy(),
        duration_s=torch.tensor(batch.duration_s, dtype=torch.float64).numpy(),
        clip_len_s=batch.clip_len_s,
    )


def _array(values: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = values.float().cpu().numpy()
    return array
