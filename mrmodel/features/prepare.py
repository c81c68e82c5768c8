"""Preparation of feature rows for a model, shared by training and serving.

The rows of each stream are L2-normalised, the streams are concatenated in order, and video rows
get the temporal endpoint features (TEF) of their clip as the last two channels, as in Moment-DETR
and its descendants. Input is float16, output float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NORM_EPS = 1e-5
TEF_DIM = 2


def prepare_video(streams: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Build a model's clip input.

    Args:
        streams: (B, L, D_i) float16 or float32 rows of each stream, padding arbitrary.
        mask: (B, L) bool, valid clips first.

    Returns:
        (B, L, sum of D_i + 2) float32, on the device of the input: x / (||x|| + 1e-5) of each
        stream, then (t / n, (t + 1) / n) for clip t of the sample's own n; padded rows are zero.
    """
    prepared = _normalised(streams, mask, TEF_DIM)
    counts = mask.sum(dim=1, keepdim=True)
    clip = torch.arange(mask.shape[1], device=mask.device)
    prepared[..., -2] = torch.where(mask, clip / counts, 0.0)
    prepared[..., -1] = torch.where(mask, (clip + 1) / counts, 0.0)
    return prepared


def prepare_text(streams: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Build a model's token input: as `prepare_video`, without TEF.

    Args:
        streams: (B, N, D_i) float16 or float32 rows of each stream.
        mask: (B, N) bool, valid tokens first.

    Returns:
        (B, N, sum of D_i) float32; padded rows are zero.
    """
    return _normalised(streams, mask, 0)


def _normalised(streams: Sequence[Tensor], mask: Tensor, spare: int) -> Tensor:
    """Normalised, concatenated rows with `spare` unset channels at the end."""
    width = sum(stream.shape[-1] for stream in streams) + spare
    prepared = torch.empty((*mask.shape, width), dtype=torch.float32, device=mask.device)
    if mask.device.type == "cpu":
        _fill_by_sample(prepared, streams, mask)
    else:
        _fill_at_once(prepared, streams, mask)
    return prepared


def _fill_at_once(prepared: Tensor, streams: Sequence[Tensor], mask: Tensor) -> None:
    """For GPUs: few large operations, and no synchronisation for the counts."""
    first = 0
    for stream in streams:
        last = first + stream.shape[-1]
        _normalise_into(prepared[..., first:last], stream)
        first = last
    prepared.masked_fill_(~mask[..., None], 0.0)


def _fill_by_sample(prepared: Tensor, streams: Sequence[Tensor], mask: Tensor) -> None:
    """For CPUs: one sample at a time, so rows stay in the cache and padding costs nothing."""
    for sample, count in enumerate(mask.sum(dim=1).tolist()):
        first = 0
        for stream in streams:
            last = first + stream.shape[-1]
            _normalise_into(prepared[sample, :count, first:last], stream[sample, :count])
            first = last
        if count < prepared.shape[1]:
            prepared[sample, count:] = 0.0


def _normalise_into(target: Tensor, rows: Tensor) -> None:
    values = rows.float()
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    torch.div(values, norm + NORM_EPS, out=target)
