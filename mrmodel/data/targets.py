"""Ground truth of a batch: spans as fractions of the video, and saliency clips and labels.

Everything that is not random is computed once for the whole set, in flat arrays; a batch is then
sliced from them without a loop over its samples.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mrmodel.types import Annotation, Targets

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Random draws per sample and epoch: positive and negative clip of two pairs.
N_DRAWS = 4


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """Options for targets.

    Attributes:
        max_windows: maximum number of windows per sample in training; None keeps all (evaluation).
        keep: which windows are kept: the longest (SG-DETR here), or a random choice redrawn in
            every epoch (Moment-DETR and its descendants, with 5).
        clip_rule: relevant clips where a set has windows but no ratings. ``overlap``: those of
            which a window covers more than half (SG-DETR, section 5.2), or else the best covered
            one; ``first_window``: the published rule of Moment-DETR for such sets, which rounds the
            bounds of the first window down.
    """

    max_windows: int | None
    keep: Literal["longest", "random"] = "longest"
    clip_rule: Literal["overlap", "first_window"] = "overlap"


@dataclass(frozen=True, slots=True)
class RaggedTargets:
    """Lists of different lengths in one flat array: list i is ``values[start[i]:][:count[i]]``."""

    values: NDArray[Any]
    start: Ints
    count: Ints

    @classmethod
    def of(cls, values: NDArray[Any], count: Ints) -> RaggedTargets:
        """Consecutive lists with these lengths."""
        return cls(values, np.cumsum(count) - count, count)

    def positions(self, indices: Ints) -> Ints:
        """Indices into `values` of all items of some of the lists, list by list."""
        count = self.count[indices]
        first = np.cumsum(count) - count
        return np.repeat(self.start[indices] - first, count) + np.arange(count.sum())

    def padded(self, indices: Ints, length: int) -> NDArray[Any]:
        """Some of the lists as rows of a zero-padded (len(indices), length) array."""
        block = np.zeros((len(indices), length), dtype=self.values.dtype)
        block[np.arange(length) < self.count[indices, None]] = self.values[self.positions(indices)]
        return block


class TargetTable:
    """Ground truth of a whole set, from which `targets` slices batches.

    Args:
        annotations: N samples.
        n_clips: N clip counts, after truncation.
        clip_len_s: seconds of one clip; T of a sample is its clips times this.
        settings: see `TargetSettings`.
    """

    def __init__(
        self,
        annotations: Sequence[Annotation],
        n_clips: Ints,
        clip_len_s: float,
        settings: TargetSettings,
    ) -> None:
        self._settings = settings
        windows, owner = _flat_windows(annotations)
        total_s: Floats = (n_clips[owner] * clip_len_s).astype(np.float64)
        seen = windows[:, 0] < total_s + clip_len_s
        if not seen.all():
            log.warning("%d windows lie behind the clips of their video: left out", (~seen).sum())
            windows, owner, total_s = windows[seen], owner[seen], total_s[seen]
        windows = repair_windows(windows, total_s, clip_len_s)
        spans = np.stack([windows.mean(axis=1), windows[:, 1] - windows[:, 0]], axis=1)
        counts = np.bincount(owner, minlength=len(annotations))
        self._spans = RaggedTargets.of((spans / total_s[:, None]).astype(np.float32), counts)
        clips = _RelevantClips(annotations, n_clips, clip_len_s, settings.clip_rule)
        self._labels, self._relevant, self._rated = clips.labels, clips.relevant, clips.rated
        self._best, self._worst = clips.extremes()

    def targets(self, indices: Ints, length: int, draws: Floats, window_draws: Floats) -> Targets:
        """Targets of a batch.

        Args:
            indices: B sample indices.
            length: L, clips of the longest sample of the batch.
            draws: (N, 4) uniform numbers in [0, 1), the random draws of every sample of the set.
            window_draws: one uniform number for each of `n_windows`.
        """
        windows, counts = self._kept_windows(indices, window_draws)
        pairs = self._pairs(indices, length, draws[indices])
        return Targets(
            spans_cxw=torch.from_numpy(self._spans.values[windows]),
            span_counts=counts.tolist(),
            saliency_pos=torch.from_numpy(pairs[0]),
            saliency_neg=torch.from_numpy(pairs[1]),
            saliency_labels=torch.from_numpy(self._labels.padded(indices, length)),
        )

    @property
    def n_windows(self) -> int:
        """Number of windows of the whole set."""
        return len(self._spans.values)

    def _kept_windows(self, indices: Ints, window_draws: Floats) -> tuple[Ints, Ints]:
        """Indices of the kept windows, sample by sample, and their number per sample."""
        positions, counts = self._spans.positions(indices), self._spans.count[indices]
        cap = self._settings.max_windows
        if cap is None or (counts <= cap).all():
            return positions, counts
        random = self._settings.keep == "random"
        keys = window_draws[positions] if random else -self._spans.values[positions, 1]
        owner = np.repeat(np.arange(len(counts)), counts)
        order = np.lexsort((keys, owner))
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        return positions[np.sort(order[rank < cap])], np.minimum(counts, cap)

    def _pairs(self, indices: Ints, length: int, draws: Floats) -> tuple[Ints, Ints]:
        """Clip pairs (B, 2) of the margin loss.

        Rated samples: the best and the worst rated clip, and a random relevant clip with a random
        other clip. Unrated ones: two distinct relevant clips, each with a distinct other clip.
        A pair that does not exist has the same clip twice, which gives no gradient.
        """
        relevant = self._relevant.padded(indices, length)
        others = (np.arange(length) < self._relevant.count[indices, None]) & ~relevant
        drawn = relevant.any(axis=1) & others.any(axis=1)
        pos = _two_of(relevant, draws[:, 0], draws[:, 1])
        neg = np.where(drawn[:, None], _two_of(others, draws[:, 2], draws[:, 3]), pos)
        rated = self._rated[indices]
        for slot, rows in ((0, rated), (1, rated & ~drawn)):
            pos[rows, slot] = self._best[indices[rows]]
            neg[rows, slot] = self._worst[indices[rows]]
        return pos, neg


def repair_windows(windows: Floats, total_s: Floats, clip_len_s: float) -> Floats:
    """Clip windows (G, 2) in seconds to [0, T]; logs the number of changes.

    A window that becomes empty is set to one clip around its middle.
    """
    repaired = np.clip(windows, 0.0, total_s[:, None])
    cut = (repaired != windows).any(axis=1)
    empty = repaired[:, 1] <= repaired[:, 0]
    half = clip_len_s / 2
    # Every video has at least one clip, so one clip always fits.
    middle = np.clip(windows.mean(axis=1), half, total_s - half)
    repaired[empty] = np.stack([middle - half, middle + half], axis=1)[empty]
    if cut.any() or empty.any():
        text = "%d windows cut to the clips of their video; %d without length made one clip wide"
        log.info(text, int(cut.sum()), int(empty.sum()))
    return repaired


class _RelevantClips:
    """Relevant clips and their labels, for all samples.

    Relevant clips after the last clip with features are ignored.
    """

    def __init__(
        self, annotations: Sequence[Annotation], n_clips: Ints, clip_len_s: float, rule: str
    ) -> None:
        self._n_clips = n_clips
        self.rated = np.array([bool(row.saliency_scores) for row in annotations], dtype=np.bool_)
        self.labels = RaggedTargets.of(np.zeros(n_clips.sum(), dtype=np.float32), n_clips)
        self.relevant = RaggedTargets.of(np.zeros(n_clips.sum(), dtype=np.bool_), n_clips)
        for sample, row in enumerate(annotations):
            n = int(n_clips[sample])
            if row.saliency_scores:
                clips = np.array(row.relevant_clip_ids, dtype=np.int64)
                # Scores of more than three raters are scaled to three: loss thresholds go up to 12.
                scores = np.array([sum(r) * min(1.0, 3.0 / len(r)) for r in row.saliency_scores])
                clips, scores = clips[clips < n], scores[clips < n]
            else:
                clips = _unrated_clips(row, n, clip_len_s, rule)
                scores = np.ones(len(clips))
            places = self.labels.start[sample] + clips
            self.labels.values[places] = scores
            self.relevant.values[places] = True

    def extremes(self) -> tuple[Ints, Ints]:
        """The best and the worst rated relevant clip of each sample; 0, 0 where there is none.

        Ties: the last of the best, the first of the worst, as with a stable sort.
        """
        best, worst = np.zeros_like(self._n_clips), np.zeros_like(self._n_clips)
        owner = np.repeat(np.arange(len(self._n_clips)), self._n_clips)
        places = np.flatnonzero(self.relevant.values)
        order = places[np.lexsort((places, self.labels.values[places], owner[places]))]
        clips = order - self.labels.start[owner[order]]
        worst[owner[order][::-1]] = clips[::-1]
        best[owner[order]] = clips
        return best, worst


def _flat_windows(annotations: Sequence[Annotation]) -> tuple[Floats, Ints]:
    """All windows (G, 2) in seconds, and the sample of each."""
    counts = np.array([len(row.relevant_windows) for row in annotations], dtype=np.int64)
    flat = [window for row in annotations for window in row.relevant_windows]
    owner = np.repeat(np.arange(len(annotations)), counts)
    return np.array(flat, dtype=np.float64).reshape(-1, 2), owner


def _unrated_clips(row: Annotation, n_clips: int, clip_len_s: float, rule: str) -> Ints:
    if row.relevant_clip_ids:
        ids = np.array(row.relevant_clip_ids, dtype=np.int64)
        return ids[ids < n_clips]
    if not row.relevant_windows:
        return np.zeros(0, dtype=np.int64)
    if rule == "first_window":
        start, end = row.relevant_windows[0]
        last = max(0, min(int(end / clip_len_s), n_clips) - 1)
        return np.arange(min(int(start / clip_len_s), last), last + 1)
    windows = np.array(row.relevant_windows)
    edges = np.arange(n_clips) * clip_len_s
    ends = np.minimum(windows[:, 1:], edges + clip_len_s)
    inside = (ends - np.maximum(windows[:, :1], edges)).max(axis=0)
    clips = np.flatnonzero(inside > clip_len_s / 2)
    return clips if len(clips) else np.array([int(inside.argmax())])


def _two_of(allowed: NDArray[np.bool_], first: Floats, second: Floats) -> Ints:
    """Two distinct random allowed clips per row, (B, 2); with one allowed it twice, with none 0.

    The choice depends on the uniform numbers (B,) and the allowed clips, not on the padding.
    """
    count = allowed.sum(axis=1)
    rank_one = np.floor(first * count).astype(np.int64)
    rank_two = np.floor(second * np.maximum(count - 1, 0)).astype(np.int64)
    rank_two += (rank_two >= rank_one) & (count > 1)
    rank = np.cumsum(allowed, axis=1)
    wanted = np.stack([rank_one, rank_two], axis=1) + 1
    chosen: Ints = (rank[:, None, :] >= wanted[:, :, None]).argmax(axis=2)
    return chosen
