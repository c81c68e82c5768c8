import numpy as np
import pytest

from mrmodel.predict.long_video import VideoChunk, merge_chunks, split_video
from mrmodel.predict.postprocess import Decoded, PostprocessSettings
from mrmodel.predict.zero_shot import similarity_windows


@pytest.mark.parametrize("n_clips", [1, 9, 10, 11, 15, 16, 37, 100])
@pytest.mark.parametrize("longest", [1, 2, 5, 10])
def test_stretches_cover_every_clip_and_overlap_by_half(n_clips: int, longest: int) -> None:
    parts = split_video(n_clips, longest)
    covered = {clip for part in parts for clip in range(part.first, part.first + part.n_clips)}
    assert covered == set(range(n_clips))
    assert all(part.n_clips <= longest for part in parts)
    # A moment of half the length lies whole in one of them.
    half = max(min(longest, n_clips) // 2, 1)
    for start in range(n_clips - half + 1):
        assert any(
            part.first <= start and start + half <= part.first + part.n_clips for part in parts
        )


def test_a_short_video_is_one_stretch_and_its_answer_is_left_alone() -> None:
    answer = Decoded(((0.0, 4.0, 0.9),), (0.1, 0.2))
    parts = split_video(2, 75)
    assert merge_chunks([answer], parts, 2.0, PostprocessSettings(nms_iou=0.7)) is answer


def test_answers_are_moved_suppressed_and_averaged() -> None:
    parts = [VideoChunk(0, 4), VideoChunk(2, 4)]
    answers = [
        Decoded(((4.0, 8.0, 0.6), (0.0, 2.0, 0.5)), (0.0, 0.0, 1.0, 1.0)),
        Decoded(((0.0, 4.0, 0.9), (6.0, 8.0, 0.2)), (3.0, 3.0, 0.0, 5.0)),
    ]
    merged = merge_chunks(answers, parts, 2.0, PostprocessSettings(nms_iou=0.7, max_windows=3))
    # Both found 4..8 s of the video: the more confident one stays.
    assert merged.windows == ((4.0, 8.0, 0.9), (0.0, 2.0, 0.5), (10.0, 12.0, 0.2))
    assert merged.saliency == (0.0, 0.0, 2.0, 2.0, 0.0, 5.0)


def test_stretches_without_windows_have_none_together() -> None:
    empty = Decoded((), (0.0, 0.0))
    merged = merge_chunks(
        [empty] * 2, [VideoChunk(0, 2), VideoChunk(1, 2)], 2.0, PostprocessSettings()
    )
    assert merged == Decoded((), (0.0, 0.0, 0.0))


def test_similarity_windows_are_the_runs_above_the_threshold() -> None:
    similarity = np.array([0.0, 0.9, 0.7, 0.0, 0.0, 1.0, 0.0, 0.0])
    windows = similarity_windows(similarity, 2.0, 0.5)
    assert windows == ((10.0, 12.0, 1.0), (2.0, 6.0, pytest.approx(0.8)))


def test_there_is_always_one_similarity_window() -> None:
    assert similarity_windows(np.full(5, 0.3), 2.0, 0.5) == ((0.0, 2.0, 0.3),)
