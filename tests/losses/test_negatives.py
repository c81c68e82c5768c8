"""Which sentence of the batch is the negative one of a sample."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mrmodel.losses.negatives import negative_rows, source_videos
from tests.steps import python_steps


def test_segments_of_a_video_have_one_source() -> None:
    vids = ["a_b_0.0_150.0", "a_b_150.0_300.0", "clip_7", "c_9_3", "video"]
    assert source_videos(vids) == ["a_b", "a_b", "clip_7", "c_9_3", "video"]


def test_the_nearest_following_other_video_and_sentence() -> None:
    # 0 skips 1 (its video) and 2 (its sentence); 3 starts again at 0; 4 skips 0, whose video it is.
    index, has = negative_rows(["a", "a", "b", "c", "a"], ["x", "y", "x", "z", "w"])
    assert index.tolist() == [3, 2, 3, 4, 2]
    assert has.all()


def test_own_index_where_there_is_none() -> None:
    for videos, texts in (
        (["a"], ["x"]),
        (["a", "a"], ["x", "y"]),
        (["a", "b"], ["x", "x"]),
    ):
        index, has = negative_rows(videos, texts)
        assert index.tolist() == list(range(len(videos)))
        assert not has.any()
        assert (index.dtype, has.dtype) == (torch.int64, torch.bool)


def test_one_sample_may_have_none_where_the_others_do() -> None:
    index, has = negative_rows(["a", "a", "b"], ["x", "y", "y"])
    # 1 cannot take 0 (video) or 2 (sentence); 0 takes 2, 2 takes 0.
    assert index.tolist() == [2, 1, 0]
    assert has.tolist() == [True, False, True]


def test_an_empty_batch() -> None:
    index, has = negative_rows([], [])
    assert index.shape == has.shape == (0,)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=12))
def test_agrees_with_a_search_sample_by_sample(rows: list[tuple[str, str]]) -> None:
    index, has = negative_rows([video for video, _ in rows], [text for _, text in rows])
    for sample, (video, text) in enumerate(rows):
        expected, found = sample, False
        for step in range(1, len(rows)):
            other = (sample + step) % len(rows)
            if rows[other][0] != video and rows[other][1] != text:
                expected, found = other, True
                break
        assert (int(index[sample]), bool(has[sample])) == (expected, found)


def test_no_loop_over_all_pairs() -> None:
    """Numbering the names takes a step a sample, and all else is a step of the whole batch."""
    few, many = (
        [f"{kind}-{n:016x}" for n in range(size)] for kind, size in (("a", 16), ("b", 128))
    )
    steps = [python_steps(lambda names=names: negative_rows(names, names)) for names in (few, many)]
    assert steps[1] - steps[0] <= 2 * 2 * (128 - 16)
