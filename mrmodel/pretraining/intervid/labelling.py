"""From similarities to positive clips, windows and grades: SG-DETR eq. 16-18 on flat arrays.

The clips of all segments are in one array of C clips; segment ``q`` of Q has the clips
``offsets[q]:offsets[q + 1]``. Sums over a segment are `bincount`s (`reduceat` returns a wrong
element for an empty segment); the variance takes two passes because similarities near 0.3 with a
std near 0.02 lose half their digits in one. A segment's result depends on its own clips alone, bit
for bit, so callers may process any number of segments at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrmodel.config.intervid import LabelSettings

EPS = 1e-6
MIN_SD_CLIPS = 4  # fewer annotated clips give no estimate of the std
# The mean of equal float32 similarities may differ from them by a float64 rounding error.
_TIE = 1e-9
_CACHED_ROWS = 256

ACCEPTED = "accepted"
# Rejection reasons of a segment, in the order of the checks.
REASONS = (ACCEPTED, "bad_caption", "invalid_clips", "no_annotated_clip", "windows", "coverage")

Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Singles = NDArray[np.float32]
Halves = NDArray[np.float16] | Singles


@dataclass(frozen=True, slots=True)
class Similarities:
    """Scores of all clips of Q segments.

    Attributes:
        offsets: (Q + 1,) first clip of each segment, ascending from 0 to C.
        score: (C,) similarity to the segment's caption, 0 where not valid.
        valid: (C,) whether clip and caption have a usable feature.
        annotated: (C,) P0, the valid clips of the annotated interval.
        caption_valid: (Q,) whether the caption has a usable feature.
    """

    offsets: Ints
    score: Doubles
    valid: Bools
    annotated: Bools
    caption_valid: Bools

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of Q segments.

    Attributes:
        grade: (C,) 1..4 on positive clips, 0 elsewhere; clips of rejected segments keep theirs.
        reason: (Q,) index in `REASONS`, 0 = accepted.
        mean, sd: (Q,) mean and std of the annotated clips; `sd` is at least the floor.
        threshold: (Q,) S_min, eq. 17.
        window_segment, window_first, window_last: (R,) runs of positive clips in order; first and
            last (inclusive) count from the first clip of the segment.
    """

    grade: NDArray[np.int8]
    reason: NDArray[np.int8]
    mean: Doubles
    sd: Doubles
    threshold: Doubles
    window_segment: Ints
    window_first: Ints
    window_last: Ints


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of clips as inclusive indices into the flat array, in order."""

    first: Ints
    last: Ints


def cosine(clips: Halves, captions: Halves, segment: Ints) -> tuple[Singles, Bools, Bools]:
    """Cosine similarity of clips with the captions of their segments (eq. 16), in float32.

    Args:
        clips: (C, D) features.
        captions: (Q, D) sentence features of the same space.
        segment: (C,) the segment of each clip.

    Returns:
        (C,) similarity, 0 where not valid; (C,) valid; (Q,) whether the caption is usable. A
        vector is usable when it is finite and longer than 1e-6.
    """
    unit_captions, caption_valid = _unit_rows(captions)
    score = np.zeros(len(clips), dtype=np.float32)
    valid = np.zeros(len(clips), dtype=bool)
    # A few rows at a time stay in the processor's cache.
    for first in range(0, len(clips), _CACHED_ROWS):
        part = slice(first, first + _CACHED_ROWS)
        unit_clips, valid[part] = _unit_rows(clips[part])
        score[part] = np.einsum("cd,cd->c", unit_clips, unit_captions[segment[part]])
    valid &= caption_valid[segment]
    return np.where(valid, score, np.float32(0)), valid, caption_valid


def annotated_clips(offsets: Ints, start_ms: Ints, end_ms: Ints, clip_ms: int) -> Bools:
    """Clips of which the annotated interval covers at least half, else the best covered one.

    Args:
        offsets: (Q + 1,) as in `Similarities`.
        start_ms: (Q,) start of each interval, relative to its segment.
        end_ms: (Q,) its end.
        clip_ms: length of a clip.

    Returns:
        (C,) bool, regardless of validity; none where the interval misses the segment.
    """
    segment, place = _places(offsets)
    clip_start = place * clip_ms
    overlap = np.minimum(end_ms[segment], clip_start + clip_ms)
    overlap = np.maximum(overlap - np.maximum(start_ms[segment], clip_start), 0)
    annotated: Bools = 2 * overlap >= clip_ms
    best = np.zeros(len(offsets) - 1, dtype=np.int64)
    np.maximum.at(best, segment, overlap)
    lacking = (2 * best < clip_ms) & (best > 0)
    candidates = np.flatnonzero(lacking[segment] & (overlap == best[segment]))
    _, first = np.unique(segment[candidates], return_index=True)
    annotated[candidates[first]] = True
    return annotated


def annotated_sds(similarities: Similarities) -> Doubles:
    """Std of the annotated clips of each segment with `MIN_SD_CLIPS` or more of them."""
    segment, _ = _places(similarities.offsets)
    weights = similarities.annotated.astype(np.float64)
    count, _, sd = _moments(segment, weights, similarities.score, len(similarities))
    return sd[count >= MIN_SD_CLIPS]


def sd_floor(sds: Doubles, quantile: float | None) -> float:
    """The std floor of a run: a quantile of the stds of all its segments, see `annotated_sds`.

    0 without a quantile, or if no segment has enough annotated clips.
    """
    if quantile is None or not len(sds):
        return 0.0
    return float(np.quantile(sds, quantile))


def label(similarities: Similarities, settings: LabelSettings, floor: float = 0.0) -> Labels:
    """Positive clips (eq. 17), their windows and their grades (eq. 18).

    Args:
        similarities: scores of Q segments.
        settings: labelling options, including `threshold_std`, the 3 of eq. 17. With an encoder
            that aligns less well than InternVideo2 the std is so large that 3 accepts half of the
            segment.
        floor: smallest std, see `sd_floor`.
    """
    score, total = similarities.score, len(similarities)
    segment, place = _places(similarities.offsets)
    weights = similarities.annotated.astype(np.float64)
    count, mean, sd = _moments(segment, weights, score, total)
    sd = np.maximum(sd, floor)
    threshold = mean - settings.threshold_std * sd
    positive = similarities.valid & (count > 0)[segment] & (score >= threshold[segment] - EPS)
    if settings.keep_original:
        positive |= similarities.annotated
    grade_mean, grade_sd = mean, sd
    if settings.grade_stats == "new":
        _, grade_mean, grade_sd = _moments(segment, positive.astype(np.float64), score, total)
        grade_sd = np.maximum(grade_sd, floor)
    grade = _grades(score - grade_mean[segment], grade_sd[segment])
    windows = _windows(positive, segment, similarities, settings)
    kept = _covered(windows, len(score))
    # A filled gap is below the threshold and so below all positive clips: the lowest grade.
    grade = np.where(kept, np.where(positive, grade, 1), 0).astype(np.int8)
    reason = _reasons(similarities, settings, count, kept, segment[windows.first])
    owner = segment[windows.first]
    return Labels(
        grade, reason, mean, sd, threshold, owner, place[windows.first], place[windows.last]
    )


def _places(offsets: Ints) -> tuple[Ints, Ints]:
    """(C,) segment of each clip and (C,) its index in the segment."""
    counts = np.diff(offsets)
    segment = np.repeat(np.arange(len(counts)), counts)
    return segment, np.arange(int(offsets[-1])) - offsets[:-1][segment]


def _unit_rows(rows: Halves) -> tuple[Singles, Bools]:
    """Unit-length rows, and which rows are usable; the others become zero."""
    # NumPy converts float16 one number at a time, torch eight. Not all stages that use this module
    # come here.
    import torch

    units: Singles = torch.from_numpy(rows).to(torch.float32, copy=True).numpy()
    finite = np.isfinite(units).all(axis=1)
    units[~finite] = 0
    norm = np.sqrt(np.einsum("nd,nd->n", units, units))
    units /= np.maximum(norm, np.float32(EPS))[:, None]
    return units, finite & (norm > EPS)


def _moments(
    segment: Ints, weights: Doubles, score: Doubles, total: int
) -> tuple[Doubles, Doubles, Doubles]:
    """(Q,) count, mean and population std of the clips with weight 1."""
    count = np.bincount(segment, weights=weights, minlength=total).astype(np.float64)
    divisor = np.maximum(count, 1)
    mean = np.bincount(segment, weights=weights * score, minlength=total) / divisor
    squares = weights * (score - mean[segment]) ** 2
    variance: Doubles = np.bincount(segment, weights=squares, minlength=total) / divisor
    return count, mean, np.sqrt(variance)


def _grades(distance: Doubles, sd: Doubles) -> NDArray[np.int8]:
    """Grades of clips at `distance` from the mean of the positive clips (eq. 18).

    With std 0 the published bins of grades 2 and 3 are empty and the annotated clip itself would
    get grade 1; then a clip at the mean gets grade 3, one above it 4, one below it 2.
    """
    grade = 1 + (distance > -1.5 * sd).astype(np.int8)
    grade += distance > _TIE
    grade += distance > 1.5 * sd
    flat = 3 + (distance > EPS).astype(np.int8) - (distance < -EPS).astype(np.int8)
    return np.where(sd < EPS, flat, grade).astype(np.int8)


def _windows(
    positive: Bools, segment: Ints, similarities: Similarities, settings: LabelSettings
) -> _Runs:
    """Runs of positive clips after filling small gaps and removing short runs."""
    new_segment = np.ones(len(segment) + 1, dtype=bool)
    new_segment[1:-1] = segment[1:] != segment[:-1]
    before = np.concatenate(([False], positive[:-1]))
    after = np.concatenate((positive[1:], [False]))
    first = np.flatnonzero(positive & (new_segment[:-1] | ~before))
    last = np.flatnonzero(positive & (new_segment[1:] | ~after))
    # An invalid clip cannot be positive, so a gap with one is not filled.
    invalid = _prefix_counts(~similarities.valid)
    gap = first[1:] - last[:-1] - 1
    joined = (segment[first[1:]] == segment[last[:-1]]) & (gap <= settings.gap_merge)
    joined &= invalid[first[1:]] == invalid[last[:-1] + 1]
    apart = np.concatenate(([True], ~joined)) if len(first) else np.zeros(0, dtype=bool)
    first, last = first[apart], last[np.roll(apart, -1)]
    annotated = _prefix_counts(similarities.annotated)
    keep = (last - first + 1 >= settings.min_run) | (annotated[last + 1] > annotated[first])
    return _Runs(first[keep], last[keep])


def _covered(runs: _Runs, clips: int) -> Bools:
    steps = np.zeros(clips + 1, dtype=np.int64)
    steps[runs.first] += 1
    steps[runs.last + 1] -= 1
    return np.cumsum(steps[:-1]) > 0


def _prefix_counts(flags: Bools) -> Ints:
    return np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))


def _reasons(
    similarities: Similarities,
    settings: LabelSettings,
    count: Doubles,
    kept: Bools,
    window_segment: Ints,
) -> NDArray[np.int8]:
    """(Q,) index in `REASONS` of the first check that each segment fails."""
    total = len(similarities)
    length = np.maximum(np.diff(similarities.offsets), 1)
    segment, _ = _places(similarities.offsets)
    invalid = np.bincount(segment, weights=~similarities.valid, minlength=total) / length
    coverage = np.bincount(segment, weights=kept, minlength=total) / length
    windows = np.bincount(window_segment, minlength=total)
    most = settings.max_windows
    checks = {
        "bad_caption": ~similarities.caption_valid,
        "invalid_clips": invalid > settings.max_invalid_share,
        "no_annotated_clip": count == 0,
        "windows": np.zeros(total, dtype=bool) if most is None else windows > most,
        "coverage": (coverage < settings.min_coverage) | (coverage > settings.max_coverage),
    }
    reason = np.zeros(total, dtype=np.int8)
    for name, bad in checks.items():
        reason[(reason == 0) & bad] = REASONS.index(name)
    return reason
