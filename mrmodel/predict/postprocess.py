"""From raw model outputs to ranked windows in seconds; NumPy, whole batches at once.

There are two paths: the default converts with the model's number of clips and clamps windows to the
video; `official` reproduces the published evaluation path (annotated duration, a fixed clamp,
rounding to clips half-to-even, scores with four decimals, float16 saliency) to the last digit.
Shapes: ``B`` samples, ``Q`` windows, ``L`` clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mrmodel.config.postprocess import PostprocessConfig
from mrmodel.types import clips_before

Reals = NDArray[np.floating[Any]]
Move = Literal["left", "right", "center"]

DECIMALS = 4
# Shorter windows are dropped: models pad with empty windows, and clamping creates some.
MIN_WINDOW_S = 1e-3


@dataclass(frozen=True, slots=True)
class PostprocessSettings:
    """Post-processing of windows.

    Attributes:
        official: the published path instead of the default one.
        by_clips: the official path converts fractions with the number of clips that the model
            read too, as SG-DETR's code does.
        as_given: windows keep the order and the scores that they come with.
        clamp_s: fixed range of times; None: the default path clamps to [0, duration], the
            official one does not clamp.
        round_to_s: times become multiples of this, halves go to the even one; None: no rounding.
            On the default path a window that would become empty becomes the clip that contains
            its middle, and a truncated last clip ends with the video.
        min_window_s, max_window_s: limits of window lengths (None: no limit). They come first on
            the default path and last on the official one.
        move: which end is moved for that: ``left`` keeps the start, ``right`` keeps the end.
        max_windows: maximum number of windows.
        nms_iou: NMS threshold: drop a window with a higher IoU with a better one; below 0: off.
    """

    official: bool = False
    by_clips: bool = False
    as_given: bool = False
    clamp_s: tuple[float, float] | None = None
    round_to_s: float | None = None
    min_window_s: float | None = None
    max_window_s: float | None = None
    move: Move = "left"
    max_windows: int = 10
    nms_iou: float = -1.0


@dataclass(frozen=True, slots=True)
class Postprocess:
    """Complete post-processing of a model.

    Attributes:
        candidates: settings of the candidate windows (`ModelOutput.candidates`).
        finish: settings of the steps after that.
        system: one of `SYSTEMS`; None: the windows that are served.
    """

    candidates: PostprocessConfig
    finish: PostprocessSettings
    system: str | None = None

    @classmethod
    def of(cls, config: PostprocessConfig, clip_len_s: float) -> Postprocess:
        """From the section ``postprocess``."""
        finish = PostprocessSettings(
            round_to_s=clip_len_s if config.round_to_clips else None,
            max_windows=config.max_windows,
            nms_iou=config.nms_iou,
        )
        return cls(config, finish)

    @classmethod
    def published(cls, config: PostprocessConfig, finish: PostprocessSettings) -> Postprocess:
        """In mode ``official``: `finish` is that of the data set, used unless `config` has one."""
        own = config.official
        if own is not None:
            finish = PostprocessSettings(
                official=True,
                by_clips=True,
                clamp_s=(0.0, own.max_end_s),
                round_to_s=own.round_to_s,
                min_window_s=own.min_window_s,
                move="center",
                max_windows=config.max_windows,
            )
        return cls(config, finish)

    def alone(self, system: str | None) -> Postprocess:
        """That of one system; the decoder's windows keep their published order."""
        finish = dataclasses.replace(self.finish, as_given=system == "decoder")
        return dataclasses.replace(self, finish=finish, system=system)


@dataclass(frozen=True, slots=True)
class RawPredictions:
    """Model outputs of a batch, as arrays.

    Attributes:
        spans_cxw: (B, Q, 2) centre and width, fractions of the video.
        scores: (B, Q) confidence of each window.
        saliency: (B, L) score of each clip.
        clip_mask: (B, L) bool, valid clips.
        duration_s: (B,) seconds from the first picture to the end of the video.
        clip_len_s: seconds of one clip.
    """

    spans_cxw: Reals
    scores: Reals
    saliency: Reals
    clip_mask: NDArray[np.bool_]
    duration_s: Reals
    clip_len_s: float


class Decoded(NamedTuple):
    """One sample's prediction: (start, end, score) best first, and one score per valid clip."""

    windows: tuple[tuple[float, float, float], ...]
    saliency: tuple[float, ...]


def decode(raw: RawPredictions, settings: PostprocessSettings) -> list[Decoded]:
    """Rank, convert and post-process the windows of a batch.

    Windows are ranked by score unless they come `as_given`. Equal scores are ranked by start time
    and then in the model's order, on the official path in the model's order alone. The default path
    drops windows with less than `MIN_WINDOW_S` inside the video, so a sample may have none left.
    """
    windows, scores = _ranked(raw, settings)
    windows, usable = _finish(windows, scores, raw.duration_s, settings)
    kept = keep_best(windows, scores, settings.nms_iou, settings.max_windows, usable)
    saliency = raw.saliency
    if settings.official:
        # The published files hold float16 scores: the cast creates ties, which affect the metrics.
        with np.errstate(over="ignore"):
            saliency = saliency.astype(np.float16)
    triples = np.concatenate([windows.astype(np.float64), scores[..., None]], axis=2)
    return [
        Decoded(
            tuple(map(tuple, sample[mask].tolist())),
            tuple(clip_scores[clips].tolist()),
        )
        for sample, mask, clip_scores, clips in zip(
            triples, kept, saliency, raw.clip_mask.astype(bool), strict=True
        )
    ]


def in_video_time(
    found: Sequence[Decoded], starts_s: Sequence[float], clip_len_s: float
) -> list[Decoded]:
    """Answers in a player's seconds and clips, from answers that count from the first picture.

    Args:
        found: of B samples.
        starts_s: B seconds from the start of the file to the first picture.
        clip_len_s: seconds of one clip.

    Returns:
        Windows moved by it. The clips before the first picture get the lowest score.
    """
    moved = []
    for answer, start_s in zip(found, starts_s, strict=True):
        if start_s:
            before = (min(answer.saliency),) * clips_before(start_s, clip_len_s)
            windows = tuple((low + start_s, high + start_s, s) for low, high, s in answer.windows)
            answer = Decoded(windows, before + answer.saliency)
        moved.append(answer)
    return moved


def clamp_windows(windows: Reals, low: float | Reals, high: float | Reals) -> Reals:
    """Clamp (..., 2) windows to [low, high]; a window entirely outside becomes empty."""
    clamped: Reals = np.clip(windows, low, high).astype(windows.dtype)
    return clamped


def round_windows(windows: Reals, unit_s: float) -> Reals:
    """Round (..., 2) windows to multiples of `unit_s`, halves to the even multiple."""
    unit = windows.dtype.type(unit_s)
    rounded: Reals = np.rint(windows / unit) * unit
    return rounded


def limit_lengths(windows: Reals, shortest: float, longest: float, move: Move) -> Reals:
    """Extend or shorten (..., 2) windows to a length in [shortest, longest].

    ``left`` keeps the start and moves the end, ``right`` keeps the end, ``center`` the middle.
    """
    start, end = windows[..., 0], windows[..., 1]
    length = end - start
    wanted = np.clip(length, shortest, longest).astype(windows.dtype)
    if move == "left":
        moved = np.stack([start, start + wanted], axis=-1)
    elif move == "right":
        moved = np.stack([end - wanted, end], axis=-1)
    else:
        middle, half = (start + end) / 2, wanted / 2
        moved = np.stack([middle - half, middle + half], axis=-1)
    limited: Reals = np.where((wanted != length)[..., None], moved, windows)
    return limited


def keep_best(
    windows: Reals,
    scores: Reals,
    nms_iou: float,
    max_windows: int,
    usable: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Greedy non-maximum suppression: (B, Q, 2) and (B, Q), both best first -> (B, Q) kept.

    A window is dropped if its IoU with a better kept one is above `nms_iou` (not if equal). Below 0
    nothing is suppressed. Windows not in `usable` (B, Q) are dropped and suppress nothing.
    """
    left = np.ones(scores.shape, dtype=bool) if usable is None else usable.copy()
    if nms_iou < 0.0:
        return left & (np.cumsum(left, axis=1) <= max_windows)
    start, end = np.moveaxis(windows.astype(np.float64), -1, 0)
    kept = np.zeros_like(left)
    for _ in range(max_windows):
        rows = np.flatnonzero(left.any(axis=1))
        if not len(rows):
            break
        best = left[rows].argmax(axis=1)
        kept[rows, best] = True
        left[rows, best] = False
        chosen = start[rows, best, None], end[rows, best, None]
        left[rows] &= _iou(start[rows], end[rows], *chosen) <= nms_iou
    return kept


def _ranked(raw: RawPredictions, settings: PostprocessSettings) -> tuple[Reals, Reals]:
    """(B, Q, 2) seconds and (B, Q) scores, best first."""
    official = settings.official
    half = raw.spans_cxw[..., 1] * raw.spans_cxw.dtype.type(0.5)
    windows = np.stack([raw.spans_cxw[..., 0] - half, raw.spans_cxw[..., 0] + half], axis=-1)
    annotated = official and not settings.by_clips
    total = raw.duration_s if annotated else raw.clip_mask.sum(axis=1) * raw.clip_len_s
    windows = _decimals(windows * np.asarray(total, dtype=windows.dtype)[:, None, None])
    if settings.as_given:
        return windows, raw.scores.astype(np.float64)
    if official:
        order = np.argsort(-raw.scores, axis=1, kind="stable")
    else:
        order = np.lexsort((windows[..., 0], -raw.scores), axis=1)
    scores = np.take_along_axis(raw.scores, order, axis=1)
    windows = np.take_along_axis(windows, order[..., None], axis=1)
    return windows, _decimals(scores) if official else scores.astype(np.float64)


def _finish(
    windows: Reals, scores: Reals, duration_s: Reals, settings: PostprocessSettings
) -> tuple[Reals, NDArray[np.bool_]]:
    """(B, Q, 2) post-processed windows and (B, Q) mask of the non-empty ones."""
    unit_s, limits = settings.round_to_s, settings.clamp_s
    if settings.official:
        # float32 from here on, as in the published files.
        windows = windows.astype(np.float32)
        usable = np.ones(scores.shape, dtype=bool)
        if settings.min_window_s is not None:
            # An unused column would become a window of that length.
            usable[:, 1:] = (windows[..., 1] > windows[..., 0])[:, 1:] | (scores[:, 1:] > 0.0)
        windows = windows if limits is None else clamp_windows(windows, *limits)
        windows = windows if unit_s is None else round_windows(windows, unit_s)
        return _within_limits(windows, settings), usable
    windows = _within_limits(windows, settings)
    low, high = (0.0, np.asarray(duration_s)[:, None, None]) if limits is None else limits
    windows = clamp_windows(windows, low, high)
    usable = windows[..., 1] - windows[..., 0] >= MIN_WINDOW_S
    if unit_s is not None:
        windows = clamp_windows(_whole_clips(windows, unit_s), low, high)
    return windows, usable


def _within_limits(windows: Reals, settings: PostprocessSettings) -> Reals:
    """`limit_lengths`, if there are limits."""
    if settings.min_window_s is None and settings.max_window_s is None:
        return windows
    longest = np.inf if settings.max_window_s is None else settings.max_window_s
    return limit_lengths(windows, settings.min_window_s or 0.0, longest, settings.move)


def _whole_clips(windows: Reals, unit_s: float) -> Reals:
    """`round_windows`, but a window that becomes empty is replaced by the clip at its middle."""
    rounded = round_windows(windows, unit_s)
    first = np.floor(windows.mean(axis=-1, keepdims=True) / unit_s) * unit_s
    empty = rounded[..., 1:] <= rounded[..., :1]
    whole: Reals = np.where(empty, np.concatenate([first, first + unit_s], axis=-1), rounded)
    return whole


def _decimals(values: Reals) -> NDArray[np.float64]:
    """Round to four decimals as printing does: the nearest, an exact half to the even one."""
    scale = 10.0**DECIMALS
    scaled = values.astype(np.float64) * scale
    rounded: NDArray[np.float64] = np.rint(scaled) / scale
    if values.dtype.itemsize > 4:
        # The product of a float32 fits a double; that of a double may be rounded to a false half.
        near = np.abs(np.abs(scaled) % 1.0 - 0.5) < 1e-5
        rounded[near] = [round(value, DECIMALS) for value in values[near].tolist()]
    return rounded


def _iou(start: Reals, end: Reals, other_start: Reals, other_end: Reals) -> Reals:
    """IoU of windows given by their ends; disjoint and empty windows have IoU 0."""
    overlap = np.minimum(end, other_end) - np.maximum(start, other_start)
    hull = np.maximum(end, other_end) - np.minimum(start, other_start)
    iou: Reals = np.divide(overlap, hull, out=np.zeros_like(overlap), where=overlap > 0.0)
    return iou
