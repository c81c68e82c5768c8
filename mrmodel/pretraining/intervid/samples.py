"""From kept captions and features to labelled samples of InterVid-MR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mrmodel.config.intervid import IntervidSettings
from mrmodel.errors import FeatureMismatch
from mrmodel.features.keys import text_key
from mrmodel.features.store import RowTable
from mrmodel.files import derive_seed
from mrmodel.pretraining.intervid.captions import SelectedCaption, hash64, read_selected
from mrmodel.pretraining.intervid.decontaminate import base_video
from mrmodel.pretraining.intervid.labelling import (
    REASONS,
    Labels,
    Similarities,
    annotated_clips,
    cosine,
    label_in_blocks,
    sd_floor,
)
from mrmodel.pretraining.intervid.segments import Intervals, Segments, choose_segments
from mrmodel.progress import Reporter

BLOCK_CLIPS = 65_536  # clips whose features are in memory at once
# An interval loses up to one clip to the grid and one to the remainder after the video's last clip;
# if it exceeds the video by more, it belongs to another video.
MAX_LOST_CLIPS = 2

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


@dataclass(frozen=True, slots=True)
class IntervidInputs:
    """The inputs of the stage.

    Attributes:
        captions: table in the InternVid format; None if the corpus has none.
        features: clip and caption vectors of one space; None only together with `captions`.
        leak_videos: ids of evaluation videos known to the caller.
        leak_files: annotation files (``.jsonl``) or lists with further ones.
    """

    captions: Path | None
    features: Features | None
    leak_videos: frozenset[str] | None = None
    leak_files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Q segments whose features exist, ascending in qid.

    Attributes:
        rows: the compact columns, one row per segment.
        captions: their texts.
        vids: segment names ``<id>_<start>_<end>``.
        segments: positions of the segments.
        estimated: (Q,) whether the video's length is only estimated from the table.
    """

    rows: pd.DataFrame
    captions: list[SelectedCaption]
    vids: list[str]
    segments: Segments
    estimated: Bools

    def __len__(self) -> int:
        return len(self.vids)

    def qid(self, index: int) -> int:
        """Query id of one segment."""
        return int(self.rows["qid"].to_numpy()[index])


@dataclass(frozen=True, slots=True)
class Dropped:
    """A kept caption that gives no sample."""

    line: int
    qid: int
    vid: str
    reason: str

    def as_row(self) -> dict[str, Any]:
        """The row of rejects.jsonl."""
        return {"line": self.line, "qid": self.qid, "vid": self.vid, "reason": self.reason}


def find_candidates(
    path: Path, kept: pd.DataFrame, features: Features, settings: IntervidSettings
) -> tuple[Candidates, list[Dropped], int]:
    """Choose a segment for each kept caption whose video has features.

    Returns:
        The candidates, the captions without a usable segment, and the number of captions of videos
        without features, which are expected (removed, private) and not listed.
    """
    known = {hash64(base_video(key)) for key in features.clips} | set(map(hash64, features.clips))
    has_video = np.isin(kept["video"].to_numpy(), np.array(sorted(known), dtype=np.uint64))
    rows = kept[has_video].reset_index(drop=True)
    captions = _texts_of(path, rows)
    duration_ms, estimated, late_ms = _durations(rows, captions, features)
    qid, start_ms, end_ms = (
        rows[name].to_numpy(np.int64) for name in ("qid", "start_ms", "end_ms")
    )
    # Captions have a player's times, segments count from the first clip.
    start_ms, end_ms = (np.maximum(times - late_ms, 0) for times in (start_ms, end_ms))
    intervals = Intervals(qid, start_ms, end_ms, duration_ms)
    segments = choose_segments(intervals, settings.segment, features.clip_ms, settings.seed)
    vids = _segment_names(captions, segments, features.clip_len_s, late_ms)
    reasons = _segment_problems(captions, vids, segments, features, settings)
    dropped = [
        Dropped(text.line, number, vid, reason)
        for text, number, vid, reason in zip(captions, qid.tolist(), vids, reasons, strict=True)
        if reason is not None
    ]
    good = np.array([reason is None for reason in reasons], dtype=bool)
    chosen = np.flatnonzero(good).tolist()
    candidates = Candidates(
        rows[good].reset_index(drop=True),
        [captions[index] for index in chosen],
        [vids[index] for index in chosen],
        segments.take(good),
        estimated[good],
    )
    return candidates, dropped, int(np.count_nonzero(~has_video))


def measure(
    candidates: Candidates, features: Features, reporter: Reporter, block_clips: int = BLOCK_CLIPS
) -> Similarities:
    """Similarity of the clips of all candidates to their captions (eq. 16), in blocks.

    Raises:
        FeatureMismatch: the two streams differ in the number of channels.
    """
    if features.clips.dim != features.texts.dim:
        rule = f"clips have {features.clips.dim} channels, captions {features.texts.dim}"
        raise FeatureMismatch(f"{rule}: InterVid-MR needs streams of one aligned space")
    counts = candidates.segments.n_clips
    offsets = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts)))
    score = np.zeros(int(offsets[-1]))
    valid = np.zeros(len(score), dtype=bool)
    caption_valid = np.zeros(len(candidates), dtype=bool)
    block = max(1, block_clips // int(counts.max(initial=1)))
    reporter.start("similarities", len(candidates))
    for first in range(0, len(candidates), block):
        last = min(first + block, len(candidates))
        clips = slice(int(offsets[first]), int(offsets[last]))
        rows, mask = features.clips.gather(candidates.vids[first:last])
        keys = [text_key(text.caption) for text in candidates.captions[first:last]]
        texts, _ = features.texts.gather(keys, max_rows=1)
        segment = np.repeat(np.arange(last - first), counts[first:last])
        score[clips], valid[clips], caption_valid[first:last] = cosine(
            rows[mask].astype(np.float32), texts[:, 0].astype(np.float32), segment
        )
        reporter.advance(last - first)
    reporter.finish()
    starts, ends = candidates.segments.interval_start_ms, candidates.segments.interval_end_ms
    annotated = annotated_clips(offsets, starts, ends, features.clip_ms) & valid
    return Similarities(offsets, score, valid, annotated, caption_valid)


@dataclass(frozen=True, slots=True)
class Samples:
    """Labelled candidates and their assignment to splits.

    `split` holds ``train``, ``val``, ``reserve`` (beyond `max_samples`) or a reason of `REASONS`.
    """

    candidates: Candidates
    similarities: Similarities
    labels: Labels
    floor: float
    split: NDArray[np.object_]
    clip_ms: int

    def indices(self, *splits: str) -> list[int]:
        """Indices of the samples of some splits, ascending in qid."""
        return np.flatnonzero(np.isin(self.split.astype(str), splits)).tolist()

    def clips(self, index: int) -> slice:
        """The clips of a sample in the flat arrays."""
        first, last = self.similarities.offsets[index : index + 2].tolist()
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

    def annotation(self, index: int, annotators: int) -> dict[str, Any]:
        """The record of a training file."""
        grades = self.labels.grade[self.clips(index)]
        positive = np.flatnonzero(grades)
        return {
            "qid": self.candidates.qid(index),
            "query": self.candidates.captions[index].caption,
            "vid": self.candidates.vids[index],
            "duration": seconds(len(grades) * self.clip_ms),
            "relevant_windows": self.windows(index),
            "relevant_clip_ids": positive.tolist(),
            "saliency_scores": [[grade] * annotators for grade in grades[positive].tolist()],
        }

    def rejected(self) -> Iterator[Dropped]:
        """Candidates rejected by a check of `labelling`."""
        for index in self.indices(*REASONS[1:]):
            text, vid = self.candidates.captions[index], self.candidates.vids[index]
            yield Dropped(text.line, self.candidates.qid(index), vid, str(self.split[index]))


def label_candidates(
    candidates: Candidates, similarities: Similarities, settings: IntervidSettings, clip_ms: int
) -> Samples:
    """Label all candidates (eq. 17 and 18) and assign the accepted ones to splits."""
    floor = sd_floor(similarities, settings.labels.sd_floor_quantile)
    longest = int(np.diff(similarities.offsets).max(initial=1))
    block = max(1, 16 * BLOCK_CLIPS // longest)
    labels = label_in_blocks(similarities, settings.labels, floor, block)
    split = np.array(REASONS, dtype=object)[labels.reason]
    accepted = np.flatnonzero(labels.reason == 0)
    video_ids = [candidates.captions[index].video_id for index in accepted.tolist()]
    held_out = _validation_videos(video_ids, settings)
    is_val = np.array([video_id in held_out for video_id in video_ids], dtype=bool)
    split[accepted[is_val]] = "val"
    # qids are hashes and ascending, so the first N samples are random, a subset of any larger N.
    train = accepted[~is_val]
    split[train] = "train"
    if settings.max_samples is not None:
        split[train[settings.max_samples :]] = "reserve"
    return Samples(candidates, similarities, labels, floor, split, clip_ms)


def seconds(milliseconds: int) -> float:
    """Milliseconds to seconds, an integer if whole, as in QVHighlights."""
    whole, rest = divmod(milliseconds, 1000)
    return milliseconds / 1000 if rest else whole


def _validation_videos(video_ids: list[str], settings: IntervidSettings) -> set[str]:
    """Videos held out for validation, by hash; with two or more, both splits get one."""
    place = {video: derive_seed(settings.seed, "split", video) for video in set(video_ids)}
    ordered = sorted(place, key=lambda video: (place[video], video))
    if settings.val_share == 0 or len(ordered) < 2:
        return set()
    count = sum(place[video] < settings.val_share * 2**63 for video in ordered)
    return set(ordered[: min(max(count, 1), len(ordered) - 1)])


def _texts_of(path: Path, rows: pd.DataFrame) -> list[SelectedCaption]:
    """The texts of `rows`, in their order; the file is read in line order."""
    lines = rows["line"].to_numpy(np.int64)
    order = np.argsort(lines)
    texts = read_selected(path, lines[order])
    return [texts[place] for place in np.argsort(order)]


def _durations(
    rows: pd.DataFrame, captions: list[SelectedCaption], features: Features
) -> tuple[Ints, Bools, Ints]:
    """The videos of Q rows: length, whether that is estimated from the table, and late start.

    Returns:
        Three of (Q,); lengths in ms from the first picture on, starts in ms from the file's.
    """
    whole = set(features.clips)
    ids = sorted({text.video_id for text in captions} & whole)
    found = features.clips.resolve(ids)
    known = dict(zip(ids, found.count.tolist(), strict=True))
    late = dict(zip(ids, np.rint(found.start_s * 1000).astype(np.int64).tolist(), strict=True))
    ends = rows["table_end_ms"].tolist()
    estimated = np.array([text.video_id not in known for text in captions], dtype=bool)
    durations = [
        end if unknown else known[text.video_id] * features.clip_ms
        for text, end, unknown in zip(captions, ends, estimated.tolist(), strict=True)
    ]
    late_ms = [late.get(text.video_id, 0) for text in captions]
    return np.array(durations, dtype=np.int64), estimated, np.array(late_ms, dtype=np.int64)


def _segment_names(
    captions: list[SelectedCaption], segments: Segments, clip_len_s: float, late_ms: Ints
) -> list[str]:
    firsts = segments.first_clip.tolist()
    lasts = (segments.first_clip + segments.n_clips).tolist()
    names = []
    for text, first, last, late in zip(captions, firsts, lasts, late_ms.tolist(), strict=True):
        start_s, end_s = (clip * clip_len_s + late / 1000 for clip in (first, last))
        decimals = 3 if late else 1
        names.append(f"{text.video_id}_{start_s:.{decimals}f}_{end_s:.{decimals}f}")
    return names


def _segment_problems(
    captions: list[SelectedCaption],
    vids: list[str],
    segments: Segments,
    features: Features,
    settings: IntervidSettings,
) -> list[str | None]:
    """Why a segment cannot be labelled; None if it can."""
    outside = segments.lost_ms > MAX_LOST_CLIPS * features.clip_ms
    outside |= segments.interval_end_ms <= segments.interval_start_ms
    checks = zip(captions, vids, segments.n_clips.tolist(), outside.tolist(), strict=True)
    return [
        "interval_outside_video"
        if is_outside
        else "short_segment"
        if n_clips < settings.segment.min_clips
        else _feature_problem(text.caption, vid, n_clips, features)
        for text, vid, n_clips, is_outside in checks
    ]


def _feature_problem(caption: str, vid: str, n_clips: int, features: Features) -> str | None:
    if vid not in features.clips or int(features.clips.resolve([vid]).count[0]) != n_clips:
        return "no_segment_features"
    return None if text_key(caption) in features.texts else "no_caption_features"
