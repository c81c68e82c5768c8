"""Mode `official` to the last digit: sums in the published order, 0/0, scores of four decimals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrmodel.errors import DataError
from mrmodel.evaluate.qvhighlights import QVHighlights
from mrmodel.evaluate.ragged import Ragged
from mrmodel.evaluate.run import evaluate
from mrmodel.models.sg_detr.fusion import _decimals
from mrmodel.predict.postprocess import Postprocess, PostprocessSettings, RawPredictions, decode
from tests.golden_parity.test_sg_detr_postprocess import SYSTEMS, answers, recorded, section

Rows = list[dict[str, Any]]
THRESHOLDS = [round(0.5 + 0.05 * step, 2) for step in range(10)]


def printed(value: float) -> float:
    """A percentage as the published script writes it."""
    return float(f"{value:.2f}")


# What the published script computes, in plain loops and in its order: of the predictions, of the
# windows, and of the steps of a curve (which it walks from the last clip to the first).


def published_ap(windows: list[Any], truth: list[Any], threshold: float) -> float:
    ranked = sorted(windows[:10], key=lambda window: -window[2])
    taken: set[int] = set()
    hits = []
    for start, end, _ in ranked:
        iou = []
        for first, last in truth:
            shared = max(0.0, min(end, last) - max(start, first))
            union = (end - start) + (last - first) - shared
            iou.append(shared / union if union else np.inf)
        order = np.argsort(iou, kind="stable")[::-1].tolist()
        reached = [place for place in order if iou[place] >= threshold and place not in taken]
        taken.update(reached[:1])
        hits.append(bool(reached))
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best = [precision[place:].max() for place in range(len(hits))]
    recall = [0.0, *(found / len(truth)).tolist()]
    gains = [(recall[place + 1] - recall[place]) * best[place] for place in np.flatnonzero(hits)]
    return float(np.sum(gains + [0.0] * (recall[-1] != 1.0)))


def published_hl_ap(scores: list[float], positive: list[bool]) -> float:
    if len(set(positive)) == 1:
        return float(positive[0])
    steps: dict[int, float] = {}
    best = 0.0
    for level in sorted(set(scores)):  # from all clips to those of the highest score
        chosen = [good for score, good in zip(scores, positive, strict=True) if score >= level]
        best = max(best, sum(chosen) / len(chosen))
        if any(chosen):
            steps[sum(chosen)] = best
    return float(np.mean(list(steps.values())))


def published(truth: Rows, guesses: Rows) -> dict[str, float]:
    of = {row["qid"]: row for row in truth}
    pairs = [(of[guess["qid"]], guess) for guess in guesses]
    table = np.array(
        [
            [
                published_ap(guess["pred_relevant_windows"], row["relevant_windows"], level)
                for level in THRESHOLDS
            ]
            for row, guess in pairs
        ]
    )
    means = table.mean(0)
    figures = {str(level): printed(100 * v) for level, v in zip(THRESHOLDS, means, strict=True)}
    figures["average"] = printed(100 * np.mean(means))
    for name, lowest in {"Fair": 2, "Good": 3, "VeryGood": 4}.items():
        scored = np.zeros((len(pairs), 3))
        for place, (row, guess) in enumerate(pairs):
            rated = np.zeros((int(row["duration"] / 2), 3))
            rated[row["relevant_clip_ids"]] = row["saliency_scores"]
            for rater in range(3):
                positive = (rated[:, rater] >= lowest).tolist()
                scored[place, rater] = published_hl_ap(guess["pred_saliency_scores"], positive)
        figures[name] = printed(100 * np.mean(scored))
    return figures


def ours(truth: Rows, guesses: Rows) -> dict[str, float]:
    metrics = evaluate(truth, guesses, "qvhighlights")
    return {
        **metrics["full"]["MR-mAP"],
        **{name: metrics[f"HL-min-{name}"]["HL-mAP"] for name in ("Fair", "Good", "VeryGood")},
    }


def submission(
    seed: int, queries: int, truths: int = 2, clips: int = 20, lengths: tuple[int, ...] = (2, 4, 6)
) -> tuple[Rows, Rows]:
    """Coarse numbers, so that means are often halves; predictions in another order."""
    draw = np.random.default_rng(seed)
    truth: Rows = []
    guesses: Rows = []
    for qid in range(queries):
        starts = draw.choice(clips // 2, draw.integers(1, truths + 1), replace=False) * 4.0
        chosen = np.sort(draw.choice(clips, draw.integers(1, clips), replace=False)).tolist()
        row = {"qid": qid, "query": "q", "vid": "v", "duration": 2 * clips}
        row["relevant_windows"] = [[start, start + 2 * draw.integers(1, 3)] for start in starts]
        row["relevant_windows"] = [[float(s), float(e)] for s, e in row["relevant_windows"]]
        row["relevant_clip_ids"] = chosen
        row["saliency_scores"] = draw.integers(0, 5, (len(chosen), 3)).tolist()
        truth.append(row)
        windows = []
        for _ in range(draw.integers(1, 13)):
            start = float(draw.integers(0, clips) * 2)
            length = float(draw.choice(lengths))
            windows.append([start, start + length, float(draw.integers(0, 8) / 8)])
        windows += [[*window, float(draw.integers(0, 8) / 8)] for window in row["relevant_windows"]]
        draw.shuffle(windows)
        scores = (draw.integers(0, 12, clips) / 4).tolist()
        guess = {"qid": qid, "pred_relevant_windows": windows, "pred_saliency_scores": scores}
        guesses.append(guess)
    draw.shuffle(guesses)  # type: ignore[arg-type]
    return truth, guesses


BACKWARDS = (-4, -2, 0, 2, 4, 6)


@pytest.mark.parametrize("lengths", [(2, 4, 6), BACKWARDS], ids=["forwards", "backwards"])
@pytest.mark.parametrize("queries", [1, 4, 16])
def test_every_digit_is_the_published_one(queries: int, lengths: tuple[int, ...]) -> None:
    for seed in range(4):
        drawn = submission(100 * queries + seed, queries, 2 + 4 * (seed % 3), lengths=lengths)
        assert ours(*drawn) == published(*drawn)


@pytest.mark.parametrize(
    ("seed", "queries", "truths", "level", "right"),
    [(414, 4, 10, "0.5", 63.62), (803, 8, 2, "average", 65.62), (818, 8, 2, "0.55", 58.13)],
)
def test_an_exact_half(seed: int, queries: int, truths: int, level: str, right: float) -> None:
    """Summed in another order than that of the predictions, the last digit was another one."""
    assert ours(*submission(seed, queries, truths))[level] == right


def test_the_order_of_the_annotations_does_not_matter() -> None:
    truth, guesses = submission(803, 8, 2)
    assert ours(truth[::-1], guesses) == ours(truth, guesses)


def test_sixty_and_five_eighths() -> None:
    truth = [{"qid": q, "duration": 40, "relevant_windows": [[0, 2]]} for q in range(160)]
    hit, miss = [0, 2, 0.5], [10, 12, 0.9]
    guesses: Rows = [{"qid": q, "pred_relevant_windows": [hit]} for q in range(97)]
    guesses += [{"qid": q, "pred_relevant_windows": [miss]} for q in range(97, 160)]
    block = evaluate(truth, guesses, "qvhighlights")["full"]
    assert (block["MR-mAP"]["0.5"], block["MR-R1"]["0.5"]) == (60.62, 60.62)


@pytest.mark.parametrize(
    ("window", "true_window", "right"),
    [
        ([30, 10], [10, 30], 100.0),  # just as long, backwards: 0/0, which the script takes
        ([90, 70], [10, 30], 100.0),  # wherever it is
        ([30, 11], [10, 30], 0.0),
        ([30, 9], [10, 30], 0.0),
        ([5, 5], [7, 7], 100.0),
        ([7, 7], [6, 8], 0.0),
    ],
)
def test_a_window_that_ends_before_it_starts(
    window: list[int], true_window: list[int], right: float
) -> None:
    truth = [{"qid": 1, "duration": 150, "relevant_windows": [true_window]}]
    guesses = [{"qid": 1, "pred_relevant_windows": [[*window, 0.9]]}]
    found = evaluate(truth, guesses, "qvhighlights")["brief"]
    assert (found["MR-full-mAP"], found["MR-full-R1@0.5"]) == (right, 0.0)
    # Padding is no window of length 0.
    other = {"qid": 2, "duration": 150, "relevant_windows": [[0, 2]]}
    answer = {"qid": 2, "pred_relevant_windows": [[50, 60, 0.5]] * 3}
    found = evaluate([*truth, other], [*guesses, answer], "qvhighlights")["brief"]
    assert found["MR-full-mAP"] == right / 2
    if window[1] < window[0]:
        with pytest.raises(DataError, match="ends before it starts"):
            evaluate(truth, guesses, "qvhighlights", "clean")
    else:
        found = evaluate(truth, guesses, "qvhighlights", "clean")["brief"]
        assert found["MR-full-mAP"] == 0.0


@settings(max_examples=60)
@given(st.lists(st.lists(st.floats(0, 1), max_size=20), min_size=1, max_size=8))
def test_lists_are_summed_as_numpy_sums_each(lists: list[list[float]]) -> None:
    counts = np.array([len(values) for values in lists])
    stacked = Ragged(np.array([value for values in lists for value in values]), counts)
    assert stacked.sums().tolist() == [float(np.sum(values)) for values in lists]


def decoded(scores: Any, spans: Any = None) -> list[tuple[float, float, float]]:
    windows = [[0.5, 0.25]] * len(scores) if spans is None else spans
    raw = RawPredictions(
        spans_cxw=np.array([windows], np.float32),
        scores=np.array([scores]),
        saliency=np.zeros((1, 4), np.float32),
        clip_mask=np.ones((1, 4), bool),
        duration_s=np.array([150.0]),
        clip_len_s=2.0,
    )
    return list(decode(raw, PostprocessSettings(official=True, max_windows=10**6))[0].windows)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_scores_are_rounded_as_they_are_printed(kind: Any) -> None:
    draw = np.random.default_rng(3)
    halves = (draw.integers(0, 10_000, 3000) + 0.5) / 1e4
    scores = np.concatenate([halves, np.nextafter(halves, 0), draw.random(3000)]).astype(kind)
    scores = np.append(scores, kind(0.03125))  # an exact half
    found = sorted(score for _, _, score in decoded(scores))
    assert found == sorted(float(f"{score:.4f}") for score in scores.tolist())


def test_ends_of_windows_are_rounded_as_they_are_printed() -> None:
    draw = np.random.default_rng(4)
    spans = draw.random((500, 2)).astype(np.float32)
    found = decoded(np.linspace(1, 0, 500, dtype=np.float32), spans)
    for (start, end, _), (centre, width) in zip(found, torch.from_numpy(spans), strict=True):
        ends = torch.stack([centre - 0.5 * width, centre + 0.5 * width]) * 150.0
        wanted = torch.tensor([float(f"{value:.4f}") for value in ends.tolist()])
        assert [start, end] == wanted.tolist()


def test_probabilities_have_the_printed_decimals() -> None:
    logits = torch.linspace(-8, 8, 50_001)
    printed = [float(f"{value:.4f}") for value in logits.sigmoid().tolist()]
    assert torch.equal(_decimals(logits), torch.tensor(printed))


@pytest.mark.parametrize("case", ["qvhighlights", "charades", "tacos"])
def test_scores_of_the_decoder_are_recorded_to_the_last_bit(case: str) -> None:
    inputs, golden = recorded(case)
    way = Postprocess.published(section(golden), QVHighlights().official_postprocess(2.0))
    found = answers(inputs, way.alone("decoder"), golden["clip_len_s"])
    for mine, windows in zip(found, golden["final"][SYSTEMS["decoder"]], strict=True):
        assert [score for _, _, score in mine.windows] == [score for _, _, score in windows]
