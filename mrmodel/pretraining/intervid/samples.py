"""From selected captions and features to labelled samples of InterVid-MR, a shard at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mrmodel.config.intervid import IntervidSettings
from mrmodel.features.keys import base_video, text_key
from mrmodel.features.store import RowRanges, RowTable
from mrmodel.files import atomic_path, derive_seed
from mrmodel.pretraining.intervid.labelling import (
    REASONS,
    Labels,
    Similarities,
    annotated_clips,
    cosine,
)
from mrmodel.pretraining.intervid.segments import Intervals, Segments, choose_segments
from mrmodel.pretraining.intervid.selection import column, segment_names

BLOCK_CLIPS = 8192  # clips whose features are in memory at once
# An interval loses up to one clip to the grid and one to the remainder after the video's last clip;
# if it exceeds the video by more, it belongs to another video.
MAX_LOST_CLIPS = 2
NO_VIDEO = "no_video_features"

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Features:
    """The source of the vectors.

    Attributes:
        clips: video stream, keyed by video id, or by segment if only segments were extracted.
        texts: text stream of the same space, keyed by `text_key(caption)`; row 0 = sentence.
        clip_len_s: seconds of a clip.
    """

    clips: RowTable
    texts: RowTable
    clip_len_s: float

    @property
    def clip_ms(self) -> int:
        """Milliseconds of a clip."""
        return round(self.clip_len_s * 1000)

    def video_ids(self) -> frozenset[str]:
        """Ids of the videos that have features of their own, or of a segment."""
        return frozenset(self.clips) | frozenset(map(base_video, self.clips))


@dataclass(frozen=True, slots=True)
class ScoredShard:
    """A shard of n selected captions, ascending in qid, of which Q have a segment with features.

    Attributes:
        problem: (n,) why a caption has no such segment; empty if it has.
        vids: (n,) segment names ``<id>_<start>_<end>``; empty without features of the video.
        segments: positions of the Q segments.
        estimated: (Q,) whether the video's length is only estimated from the table.
        similarities: of the Q segments.
    """

    problem: NDArray[np.str_]
    vids: NDArray[np.str_]
    segments: Segments
    estimated: Bools
    similarities: Similarities

    @property
    def usable(self) -> Bools:
        """(n,) whether a caption is one of the Q."""
        return np.asarray(self.problem == "", dtype=bool)

    def save(self, path: Path) -> None:
        """Write the shard; similarities are float32 values."""
        parts: dict[str, Any] = {
            "problem": self.problem,
            "vids": self.vids,
            "estimated": self.estimated,
        }
        for part in (self.segments, self.similarities):
            parts |= {field.name: getattr(part, field.name) for field in fields(part)}
        parts["score"] = parts["score"].astype(np.float32)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **parts)

    @classmethod
    def load(cls, path: Path) -> ScoredShard:
        """Read what `save` wrote."""
        with np.load(path) as parts:
            found = dict(parts)
        found["score"] = found["score"].astype(np.float64)
        segments = Segments(*(found[field.name] for field in fields(Segments)))
        similarities = Similarities(*(found[field.name] for field in fields(Similarities)))
        return cls(found["problem"], found["vids"], segments, found["estimated"], similarities)


def score_shard(
    rows: pa.Table, features: Features, known: frozenset[str], settings: IntervidSettings
) -> ScoredShard:
    """Choose a segment for each caption and compare its clips with the caption (eq. 16).

    Args:
        rows: n captions, of `group_rules.KEPT_SCHEMA`.
        features: of the same space.
        known: `features.video_ids()`.
        settings: segments, seed.
    """
    has_video = np.array([video in known for video in rows["video_id"].to_pylist()], dtype=bool)
    found = rows.filter(pa.array(has_video))
    video_ids, captions = found["video_id"].to_pylist(), found["caption"].to_pylist()
    duration_ms, estimated, late_ms = _durations(found, video_ids, features)
    # Captions have a player's times, segments count from the first clip.
    start_ms, end_ms = (
        np.maximum(column(found, name) - late_ms, 0) for name in ("start_ms", "end_ms")
    )
    intervals = Intervals(column(found, "qid"), start_ms, end_ms, duration_ms)
    segments = choose_segments(intervals, settings.segment, features.clip_ms, settings.seed)
    names = segment_names(video_ids, segments, features.clip_len_s, late_ms)
    keys = [text_key(caption) for caption in captions]
    there = np.array([name in features.clips for name in names], dtype=bool)
    ranges = features.clips.resolve(list(itertools.compress(names, there.tolist())))
    reasons = _segment_problems(keys, _spread(ranges.count, there), segments, features, settings)
    good = np.asarray(reasons == "", dtype=bool)
    problem = np.full(len(rows), NO_VIDEO, dtype=object)
    vids = np.full(len(rows), "", dtype=object)
    problem[has_video], vids[has_video] = reasons, names
    taken = segments.take(good)
    similarities = _measure(
        ranges.take(np.flatnonzero(good[there])),
        list(itertools.compress(keys, good.tolist())),
        taken,
        features,
    )
    return ScoredShard(problem.astype(str), vids.astype(str), taken, estimated[good], similarities)


@dataclass(frozen=True, slots=True)
class LabelledShard:
    """The Q segments of a shard with their labels and splits.

    Attributes:
        rows: (Q rows) their captions.
        vids: (Q,) names of the segments.
        scored: the shard.
        labels: of the Q segments.
        split: (Q,) ``train``, ``val``, ``reserve`` (beyond `max_samples`) or one of `REASONS`.
        clip_ms: milliseconds of a clip.
    """

    @classmethod
    def of(
        cls,
        rows: pa.Table,
        scored: ScoredShard,
        labels: Labels,
        split: NDArray[np.str_],
        clip_ms: int,
    ) -> LabelledShard:
        """Of the captions of a whole shard."""
        usable = scored.usable
        vids = scored.vids[usable].tolist()
        return cls(rows.filter(pa.array(usable)), vids, scored, labels, split, clip_ms)

    rows: pa.Table
    vids: list[str]
    scored: ScoredShard
    labels: Labels
    split: NDArray[np.str_]
    clip_ms: int

    def indices(self, *splits: str) -> Ints:
        """Indices of the samples of some splits, ascending in qid."""
        return np.flatnonzero(np.isin(self.split, splits))

    def clips(self, index: int) -> slice:
        """The clips of a sample in the flat arrays."""
        first, last = self.scored.similarities.offsets[index : index + 2].tolist()
        return slice(first, last)

    def windows(self, index: int) -> list[list[float]]:
        """The windows of a sample in seconds, half-open."""
        owner = self.labels.window_segment
        part = slice(*np.searchsorted(owner, [index, index + 1]).tolist())
        first = self.labels.window_first[part].tolist()
        last = self.labels.window_last[part].tolist()
        return [
            [seconds(start * self.clip_ms), seconds((end + 1) * self.clip_ms)]
            for start, end in zip(first, last, strict=True)
        ]

    def annotations(self, split: str, annotators: int) -> Iterator[dict[str, Any]]:
        """The records of a training file."""
        qids, captions = self.rows["qid"].to_pylist(), self.rows["caption"].to_pylist()
        for index in self.indices(split).tolist():
            grades = self.labels.grade[self.clips(index)]
            positive = np.flatnonzero(grades)
            yield {
                "qid": qids[index],
                "query": captions[index],
                "vid": self.vids[index],
                "duration": seconds(len(grades) * self.clip_ms),
                "relevant_windows": self.windows(index),
                "relevant_clip_ids": positive.tolist(),
                "saliency_scores": [[grade] * annotators for grade in grades[positive].tolist()],
            }


def unused_captions(
    rows: pa.Table, scored: ScoredShard, split: NDArray[np.str_]
) -> Iterator[dict[str, Any]]:
    """Rows of rejects.jsonl: captions of a shard that give no sample, and why.

    Captions of videos without features are expected (removed, private) and not listed.
    """
    reason = scored.problem.astype(object)
    reason[scored.usable] = split
    lines, qids = rows["line"].to_pylist(), rows["qid"].to_pylist()
    for line, qid, vid, why in zip(lines, qids, scored.vids.tolist(), reason, strict=True):
        if why not in (NO_VIDEO, "train", "val", "reserve"):
            yield {"line": line, "qid": qid, "vid": vid, "reason": str(why)}


def assign_splits(
    reasons: Sequence[NDArray[np.int8]],
    video_ids: Sequence[Sequence[str]],
    settings: IntervidSettings,
) -> list[NDArray[np.str_]]:
    """The split of every segment of all shards, see `LabelledShard.split`.

    Args:
        reasons: (Q,) of each shard, see `labelling.Labels`.
        video_ids: (Q,) of each shard.
        settings: `val_share`, `max_samples`, seed.
    """
    accepted = {
        video
        for reason, videos in zip(reasons, video_ids, strict=True)
        for index, video in zip(reason.tolist(), videos, strict=True)
        if index == 0
    }
    held_out = _validation_videos(accepted, settings)
    splits, left = [], settings.max_samples
    for reason, videos in zip(reasons, video_ids, strict=True):
        split = np.array(REASONS, dtype=object)[reason]
        is_val = np.array([video in held_out for video in videos], dtype=bool)
        split[(reason == 0) & is_val] = "val"
        # qids are hashes and ascending, so the first N samples are random, part of any larger N.
        train = np.flatnonzero((reason == 0) & ~is_val)
        split[train] = "train"
        if left is not None:
            split[train[left:]] = "reserve"
            left = max(0, left - len(train))
        splits.append(split.astype(str))
    return splits


def seconds(milliseconds: int) -> float:
    """Milliseconds to seconds, an integer if whole, as in QVHighlights."""
    whole, rest = divmod(milliseconds, 1000)
    return milliseconds / 1000 if rest else whole


def _validation_videos(video_ids: set[str], settings: IntervidSettings) -> set[str]:
    """Videos held out for validation, by hash; with two or more, both splits get one."""
    place = {video: derive_seed(settings.seed, "split", video) for video in video_ids}
    ordered = sorted(place, key=lambda video: (place[video], video))
    if settings.val_share == 0 or len(ordered) < 2:
        return set()
    count = sum(place[video] < settings.val_share * 2**63 for video in ordered)
    return set(ordered[: min(max(count, 1), len(ordered) - 1)])


def _spread(counts: Ints, there: Bools) -> Ints:
    """(Q,) `counts` at the places that are true, and 0 elsewhere."""
    spread = np.zeros(len(there), dtype=np.int64)
    spread[there] = counts
    return spread


def _measure(
    ranges: RowRanges, keys: list[str], segments: Segments, features: Features
) -> Similarities:
    """Similarity of the clips of Q segments to the captions with these keys, in blocks."""
    counts = segments.n_clips
    offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
    score = np.zeros(int(offsets[-1]))
    valid = np.zeros(len(score), dtype=bool)
    caption_valid = np.zeros(len(keys), dtype=bool)
    block = max(1, BLOCK_CLIPS // int(counts.max(initial=1)))
    for first in range(0, len(keys), block):
        last = min(first + block, len(keys))
        clips = slice(int(offsets[first]), int(offsets[last]))
        rows = features.clips.concatenate(ranges.take(np.arange(first, last)))
        texts, _ = features.texts.gather(keys[first:last], max_rows=1)
        segment = np.repeat(np.arange(last - first), counts[first:last])
        score[clips], valid[clips], caption_valid[first:last] = cosine(rows, texts[:, 0], segment)
    starts, ends = segments.interval_start_ms, segments.interval_end_ms
    annotated = annotated_clips(offsets, starts, ends, features.clip_ms) & valid
    return Similarities(offsets, score, valid, annotated, caption_valid)


def _durations(
    rows: pa.Table, video_ids: list[str], features: Features
) -> tuple[Ints, Bools, Ints]:
    """The videos of Q rows: length, whether that is estimated from the table, and late start.

    Returns:
        Three of (Q,); lengths in ms from the first picture on, starts in ms from the file's.
    """
    ids = sorted({video for video in video_ids if video in features.clips})
    found = features.clips.resolve(ids)
    known = dict(zip(ids, found.count.tolist(), strict=True))
    late = dict(zip(ids, np.rint(found.start_s * 1000).astype(np.int64).tolist(), strict=True))
    estimated = np.array([video not in known for video in video_ids], dtype=bool)
    durations = [
        end if unknown else known[video] * features.clip_ms
        for video, end, unknown in zip(
            video_ids, rows["table_end_ms"].to_pylist(), estimated.tolist(), strict=True
        )
    ]
    late_ms = [late.get(video, 0) for video in video_ids]
    return np.array(durations, dtype=np.int64), estimated, np.array(late_ms, dtype=np.int64)


def _segment_problems(
    keys: list[str],
    n_clips: Ints,
    segments: Segments,
    features: Features,
    settings: IntervidSettings,
) -> NDArray[np.object_]:
    """(Q,) why a segment cannot be labelled; empty if it can.

    Args:
        keys: text keys of the captions.
        n_clips: (Q,) clips of each segment that have features.
        segments: Q segments.
        features: for captions.
        settings: the shortest segment.
    """
    outside = segments.lost_ms > MAX_LOST_CLIPS * features.clip_ms
    outside |= segments.interval_end_ms <= segments.interval_start_ms
    checks = {
        "interval_outside_video": outside,
        "short_segment": segments.n_clips < settings.segment.min_clips,
        "no_segment_features": n_clips != segments.n_clips,
        "no_caption_features": np.array([key not in features.texts for key in keys], dtype=bool),
    }
    problem = np.full(len(keys), "", dtype=object)
    for name, bad in checks.items():
        problem[(problem == "") & bad] = name
    return problem
