"""Long videos: prediction on overlapping chunks, and merging of the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrmodel.predict.postprocess import Decoded, PostprocessSettings, keep_best

# Removes duplicates from overlapping chunks if the settings suppress nothing.
_SAME_MOMENT_IOU = 0.7


@dataclass(frozen=True, slots=True)
class VideoChunk:
    """`n_clips` consecutive clips of a video, from clip `first` on."""

    first: int
    n_clips: int


def split_video(n_clips: int, longest: int) -> list[VideoChunk]:
    """Cover `n_clips` clips with chunks of at most `longest` clips and 50 % overlap.

    A moment of up to half of `longest` lies entirely within at least one chunk. The last chunk ends
    with the video.
    """
    if n_clips <= longest:
        return [VideoChunk(0, n_clips)]
    step = max(longest // 2, 1)
    firsts = [*range(0, n_clips - longest, step), n_clips - longest]
    return [VideoChunk(first, longest) for first in firsts]


def merge_chunks(
    answers: Sequence[Decoded],
    parts: Sequence[VideoChunk],
    clip_len_s: float,
    settings: PostprocessSettings,
) -> Decoded:
    """Merge the predictions for the chunks of a video.

    Windows are shifted to video time and suppressed jointly, at the IoU of the settings, or 0.7 if
    those suppress nothing; a clip's score is the mean over the chunks that contain it.
    """
    if len(parts) == 1:
        return answers[0]
    windows, total, count = [], np.zeros(_end(parts)), np.zeros(_end(parts))
    for answer, part in zip(answers, parts, strict=True):
        offset = part.first * clip_len_s
        windows += [(start + offset, end + offset, score) for start, end, score in answer.windows]
        clips = slice(part.first, part.first + part.n_clips)
        total[clips] += answer.saliency
        count[clips] += 1
    ranked = np.array(sorted(windows, key=lambda window: -window[2])).reshape(-1, 3)
    spans, scores = ranked[None, :, :2], ranked[None, :, 2]
    iou = settings.nms_iou if settings.nms_iou >= 0.0 else _SAME_MOMENT_IOU
    kept = keep_best(spans, scores, iou, settings.max_windows)[0]
    best = tuple((float(start), float(end), float(score)) for start, end, score in ranked[kept])
    return Decoded(best, tuple((total / count).tolist()))


def _end(parts: Sequence[VideoChunk]) -> int:
    return max(part.first + part.n_clips for part in parts)
