"""Post-hoc search on cached detections (docs/models/sg_detr.md, section 13).

A model runs over a set once (`cache_detections`). Each trial of a search then repeats the steps
after its heads (scores, fusion, suppression, rounding) without a forward pass, in under a second
for 1,550 queries. The windows are bit-identical to those of a model with the same settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mrmodel.data.loader import MomentDataset
from mrmodel.errors import DataError
from mrmodel.files import atomic_path
from mrmodel.models.base import MomentModel
from mrmodel.models.sg_detr.fusion import windows_of
from mrmodel.models.sg_detr.output import RawDetections, SgDetrOutput
from mrmodel.predict.postprocess import (
    Postprocess,
    RawPredictions,
    decode,
    in_video_time,
)
from mrmodel.types import Prediction, QueryId

_FORMAT = "mrmodel detections 2"
_FIRST_FORMAT = "mrmodel detections 1"  # without `start_s`
_LOWEST = torch.finfo(torch.float32).min
# Fill values of `RawDetections` for padding along the second dimension.
_FILL = {"anchor_logits": _LOWEST, "anchor_centerness": _LOWEST, "anchor_spans_cxw": 0.0}


@dataclass(frozen=True, slots=True)
class CachedDetections:
    """Inputs of decoding for the N samples of a set, on the CPU, in the order of the set.

    Attributes:
        raw: detections, padded along the anchors; None if the model has a single list of
            windows, which is in `final`.
        final: spans (N, Q, 2) and scores (N, Q) of the prediction, if `raw` is None.
        saliency, clip_mask: (N, L) clip scores, and the mask of valid clips.
        duration_s, start_s: (N,) float64, as in `Batch`.
        clip_len_s: seconds of one clip.
        qids, queries, vids: one per sample.
    """

    raw: RawDetections | None
    final: tuple[Tensor, Tensor] | None
    saliency: Tensor
    clip_mask: Tensor
    duration_s: Tensor
    start_s: Tensor
    clip_len_s: float
    qids: list[QueryId]
    queries: list[str]
    vids: list[str]

    def save(self, path: Path) -> None:
        """Write one file, atomically."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        raw = None if self.raw is None else _tensors(self.raw)
        parts |= {"raw": raw, "format": _FORMAT}
        with atomic_path(path) as temporary:
            torch.save(parts, temporary)

    @classmethod
    def load(cls, path: Path) -> CachedDetections:
        """Read what `save` wrote.

        Raises:
            DataError: the file has other content.
        """
        parts = torch.load(path, weights_only=True)
        found = parts.pop("format", None) if isinstance(parts, dict) else None
        if found == _FIRST_FORMAT:
            parts["start_s"] = torch.zeros_like(parts["duration_s"])
        elif found != _FORMAT:
            raise DataError(f"holds no detections of the format {_FORMAT!r}", file=path)
        raw = None if parts["raw"] is None else RawDetections(**parts["raw"])
        return cls(**parts | {"raw": raw})


def cache_detections(model: MomentModel, data: MomentDataset, batch_size: int) -> CachedDetections:
    """Run `model`, in eval mode and on the device of `data`, over all samples of `data`."""
    order = data.eval_batches(batch_size)
    raws, clips = [], []
    with torch.inference_mode():
        for rows in order:
            batch, _ = data.batch(rows, epoch=0)
            output = model(batch)
            raw = output.raw if isinstance(output, SgDetrOutput) else None
            final = {"spans": output.spans_cxw.float().cpu(), "scores": output.scores.float().cpu()}
            raws.append(final if raw is None else _tensors(raw))
            clips.append((output.saliency.float().cpu(), batch.video_mask.cpu()))
    place = torch.from_numpy(np.argsort(np.concatenate(order)))
    saliency, mask = zip(*clips, strict=True)
    stacked = {
        name: _stacked([raw[name] for raw in raws], place, _FILL.get(name, 0.0)) for name in raws[0]
    }
    has_raw = raw is not None
    return CachedDetections(
        raw=RawDetections(**stacked) if has_raw else None,
        final=None if has_raw else (stacked["spans"], stacked["scores"]),
        saliency=_stacked(saliency, place),
        clip_mask=_stacked(mask, place),
        duration_s=torch.tensor([row.duration for row in data.annotations], dtype=torch.float64)
        - torch.from_numpy(data.rows.start_s),
        start_s=torch.from_numpy(data.rows.start_s),
        clip_len_s=data.builder.clip_len_s,
        qids=[row.qid for row in data.annotations],
        queries=[row.query for row in data.annotations],
        vids=[row.vid for row in data.annotations],
    )


def predict_cached(cached: CachedDetections, postprocess: Postprocess) -> list[Prediction]:
    """The result of `inference.predict_set` for the model and the set of `cached`."""
    with torch.inference_mode():
        spans, scores = _windows(cached, postprocess)
    raw = RawPredictions(
        spans_cxw=spans.numpy(),
        scores=scores.numpy(),
        saliency=cached.saliency.numpy(),
        clip_mask=cached.clip_mask.numpy(),
        duration_s=cached.duration_s.numpy(),
        clip_len_s=cached.clip_len_s,
    )
    found = in_video_time(
        decode(raw, postprocess.finish), cached.start_s.tolist(), cached.clip_len_s
    )
    names = zip(cached.qids, cached.queries, cached.vids, found, strict=True)
    return [Prediction(qid, query, vid, *answer) for qid, query, vid, answer in names]


def _windows(cached: CachedDetections, postprocess: Postprocess) -> tuple[Tensor, Tensor]:
    """Candidate windows (N, n, 2) and their scores (N, n)."""
    if cached.final is not None:
        return cached.final
    assert cached.raw is not None
    return windows_of(cached.raw, postprocess.candidates, postprocess.system)


def _tensors(raw: RawDetections) -> dict[str, Tensor]:
    """The fields that are not None, on the CPU."""
    fields = {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
    return {name: value.cpu() for name, value in fields.items() if value is not None}


def _stacked(parts: Sequence[Tensor], place: Tensor, fill: float = 0.0) -> Tensor:
    """Batches (B_i, n_i, ...) as one (N, max n, ...), whose row r is their row place[r]."""
    width = max(part.shape[1] for part in parts)
    padded = [
        F.pad(part, (0, 0) * (part.dim() - 2) + (0, width - part.shape[1]), value=fill)
        for part in parts
    ]
    return torch.cat(padded)[place]
