import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mrmodel.data.targets import RaggedTargets, TargetSettings, TargetTable, repair_windows
from mrmodel.types import Annotation


def row(qid=0, windows=(), clips=(), scores=(), duration=20.0):
    scores = tuple(tuple(map(float, ratings)) for ratings in scores)
    return Annotation(qid, "q", "v", duration, tuple(windows), tuple(clips), scores)


def targets_of(rows, n_clips, settings=None, indices=None, seed=0):
    """Targets of a batch of all rows, with clips of 2 s."""
    table = TargetTable(rows, np.array(n_clips), 2.0, settings or TargetSettings(None))
    indices = np.arange(len(rows)) if indices is None else np.array(indices)
    rng = np.random.default_rng(seed)
    draws, window_draws = rng.random((len(rows), 4)), rng.random(table.n_windows)
    length = int(np.array(n_clips)[indices].max())
    return table.targets(indices, length, draws, window_draws)


def test_spans_are_fractions_of_the_clips():
    rows = [row(windows=[(0, 4), (6, 20)]), row(), row(windows=[(2, 4)], duration=9)]
    targets = targets_of(rows, [10, 3, 4])
    assert targets.span_counts == [2, 0, 1]
    expected = [[0.1, 0.2], [0.65, 0.7], [3 / 8, 2 / 8]]
    torch.testing.assert_close(targets.spans_cxw, torch.tensor(expected))
    assert targets.spans_cxw.dtype == torch.float32


def test_batches_pick_their_rows():
    rows = [row(windows=[(2 * n, 2 * n + 2)]) for n in range(5)]
    targets = targets_of(rows, [10] * 5, indices=[3, 1])
    torch.testing.assert_close(targets.spans_cxw[:, 0], torch.tensor([0.35, 0.15]))


def test_windows_are_repaired_and_counted(caplog):
    with caplog.at_level(logging.INFO):
        repaired = repair_windows(
            np.array([[2.0, 9.0], [8.0, 9.5], [-1.0, 3.0], [2.0, 2.5], [4.0, 4.0]]),
            np.array([8.0] * 5),
            2.0,
        )
    # Cut, moved inside and one clip wide, cut, short but kept, without length.
    assert repaired.tolist() == [[2, 8], [6, 8], [0, 3], [2, 2.5], [3, 5]]
    assert "3 windows cut to the clips of their video; 2 without length" in caplog.text


def test_windows_behind_a_cut_video_are_left_out(caplog):
    rows = [row(windows=[(2, 4), (8, 10), (30, 34)], duration=40)]
    targets = targets_of(rows, [4])
    assert targets.span_counts == [2]
    torch.testing.assert_close(targets.spans_cxw[1], torch.tensor([7 / 8, 2 / 8]))
    assert "1 windows lie behind the clips" in caplog.text


def test_the_longest_windows_stay_in_their_order():
    windows = [(0, 1), (2, 6), (7, 8), (9, 12), (13, 17)]
    rows = [row(windows=[(0, 2)]), row(windows=windows)]
    targets = targets_of(rows, [10, 10], TargetSettings(max_windows=3))
    assert targets.span_counts == [1, 3]
    widths = (targets.spans_cxw[1:, 1] * 20).round().tolist()
    assert widths == [4, 3, 4]


def test_a_random_choice_of_windows():
    windows = [(2 * n, 2 * n + 2) for n in range(10)]
    rows = [row(windows=windows), row(windows=windows[:2])]
    settings = TargetSettings(max_windows=5, keep="random")
    seen = set()
    for seed in range(30):
        targets = targets_of(rows, [10, 10], settings, seed=seed)
        assert targets.span_counts == [5, 2]
        centres = targets.spans_cxw[:5, 0].tolist()
        assert centres == sorted(set(centres))
        seen.update(centres)
    assert len(seen) == 10


def test_labels_are_summed_ratings():
    rows = [row(clips=[1, 3], scores=[[1, 2, 3], [4, 4, 4]]), row(clips=[0], scores=[[2, 2, 2]])]
    labels = targets_of(rows, [4, 2]).saliency_labels
    assert labels.tolist() == [[0, 6, 0, 12], [6, 0, 0, 0]]
    assert labels.dtype == torch.float32


def test_many_raters_count_as_three():
    twenty = [[4] * 20, [0] * 19 + [4]]  # TVSum: scores 1 to 5, stored as 0 to 4
    rows = [row(clips=[0, 2], scores=twenty), row(clips=[1], scores=[[3]])]
    labels = targets_of(rows, [3, 2]).saliency_labels
    torch.testing.assert_close(labels, torch.tensor([[12, 0, 0.6], [0, 3, 0]]))


def test_hard_pair_and_easy_pair():
    clips, scores = [2, 3, 5, 6], [[3], [1], [1], [3]]
    rows = [row(clips=clips, scores=scores)]
    seen_pos, seen_neg = set(), set()
    for seed in range(60):
        targets = targets_of(rows, [8], seed=seed)
        assert targets.saliency_pos[0, 0] == 6  # last of the best
        assert targets.saliency_neg[0, 0] == 3  # first of the worst
        seen_pos.add(int(targets.saliency_pos[0, 1]))
        seen_neg.add(int(targets.saliency_neg[0, 1]))
    assert seen_pos == set(clips)
    assert seen_neg == {0, 1, 4, 7}


def test_without_other_clips_the_hard_pair_stands_twice():
    rows = [row(clips=[0, 1, 2], scores=[[2], [4], [0]])]
    targets = targets_of(rows, [3])
    assert targets.saliency_pos.tolist() == [[1, 1]]
    assert targets.saliency_neg.tolist() == [[2, 2]]


def test_clips_behind_the_features_do_not_count():
    rows = [row(clips=[1, 2, 9], scores=[[2], [1], [4]]), row(clips=[9], scores=[[3]])]
    targets = targets_of(rows, [4, 4])
    assert targets.saliency_labels.tolist() == [[0, 2, 1, 0], [0, 0, 0, 0]]
    assert (targets.saliency_pos[0, 0], targets.saliency_neg[0, 0]) == (1, 2)
    assert torch.equal(targets.saliency_pos[1], targets.saliency_neg[1])


def test_unrated_rows_draw_two_distinct_pairs():
    rows = [row(windows=[(4, 8), (12, 14)])]
    for seed in range(40):
        targets = targets_of(rows, [10], seed=seed)
        assert targets.saliency_labels.tolist() == [[0, 0, 1, 1, 0, 0, 1, 0, 0, 0]]
        pos, neg = targets.saliency_pos[0].tolist(), targets.saliency_neg[0].tolist()
        assert len(set(pos)) == 2
        assert len(set(neg)) == 2
        assert set(pos) <= {2, 3, 6}
        assert not set(neg) & {2, 3, 6}


def test_unrated_rows_without_contrast_give_no_gradient():
    rows = [row(windows=[(0, 20)]), row(), row(windows=[(4, 6)]), row(windows=[(0, 18)])]
    targets = targets_of(rows, [10] * 4)
    assert torch.equal(targets.saliency_pos[:2], targets.saliency_neg[:2])
    assert targets.saliency_pos[2].tolist() == [2, 2]
    assert targets.saliency_neg[3].tolist() == [9, 9]


@pytest.mark.parametrize(
    ("rule", "windows", "clips"),
    [
        ("overlap", [(3, 9)], {2, 3}),
        ("first_window", [(3, 9)], {1, 2, 3}),
        ("overlap", [(4.2, 4.4)], {2}),
        ("overlap", [(5.5, 7.0), (0.5, 2)], {0}),
        ("first_window", [(5.5, 6.5), (0, 2)], {2}),
        ("first_window", [(19, 20)], {9}),
        ("overlap", [(0, 2), (19, 20.5)], {0}),
    ],
)
def test_relevant_clips_of_unrated_rows(rule, windows, clips):
    settings = TargetSettings(None, clip_rule=rule)
    labels = targets_of([row(windows=windows, duration=20.5)], [10], settings).saliency_labels
    assert set(labels[0].nonzero()[:, 0].tolist()) == clips


def test_relevant_clips_without_ratings():
    labels = targets_of([row(clips=[1, 4], windows=[(0, 20)])], [5]).saliency_labels
    assert labels.tolist() == [[0, 1, 0, 0, 1]]


@hypothesis_settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.data())
def test_ragged_lists(counts, data):
    lists = [[10 * owner + place for place in range(n)] for owner, n in enumerate(counts)]
    flat = np.array([value for values in lists for value in values], dtype=np.int64)
    ragged = RaggedTargets.of(flat, np.array(counts))
    indices = np.array(data.draw(st.lists(st.sampled_from(range(len(counts))), min_size=1)))
    expected = [value for index in indices for value in lists[index]]
    assert flat[ragged.positions(indices)].tolist() == expected
    padded = ragged.padded(indices, 7)
    for line, index in zip(padded.tolist(), indices, strict=True):
        assert line == lists[index] + [0] * (7 - counts[index])


@st.composite
def rated_rows(draw):
    n_clips = draw(st.integers(1, 12))
    clips = sorted(draw(st.sets(st.integers(0, 13), max_size=8)))
    scores = draw(
        st.lists(
            st.lists(st.integers(0, 4), min_size=3, max_size=3),
            min_size=len(clips),
            max_size=len(clips),
        )
    )
    return n_clips, row(clips=clips, scores=scores)


@hypothesis_settings(deadline=None)
@given(st.lists(rated_rows(), min_size=1, max_size=6), st.integers(0, 1000))
def test_pairs_against_the_rule_one_by_one(samples, seed):
    n_clips = [n for n, _ in samples]
    targets = targets_of([annotation for _, annotation in samples], n_clips, seed=seed)
    for sample, (n, annotation) in enumerate(samples):
        total = {
            clip: sum(ratings)
            for clip, ratings in zip(
                annotation.relevant_clip_ids, annotation.saliency_scores, strict=True
            )
            if clip < n
        }
        pos, neg = targets.saliency_pos[sample].tolist(), targets.saliency_neg[sample].tolist()
        assert all(0 <= clip < n for clip in pos + neg)
        if not total:
            assert pos == neg
            continue
        assert total[pos[0]] == max(total.values())
        assert total[neg[0]] == min(total.values())
        if len(total) < n:
            assert pos[1] in total
            assert neg[1] not in total
        else:
            assert (pos[1], neg[1]) == (pos[0], neg[0])
