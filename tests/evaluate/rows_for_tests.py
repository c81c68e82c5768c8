"""Random annotation and prediction rows."""

from __future__ import annotations

from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


def random_rows(
    n_queries: int, seed: int, n_windows: int = 10, coarse: bool = False
) -> tuple[Rows, Rows]:
    """Rows in the QVHighlights schema; `coarse` scores and times make many ties."""
    rng = np.random.default_rng(seed)
    annotations, predictions = [], []
    for qid in range(n_queries):
        n_clips = int(rng.integers(20, 76))
        duration = float(2 * n_clips)
        rated = np.sort(rng.permutation(n_clips)[: int(rng.integers(1, n_clips))])
        names = {"qid": qid, "query": f"q{qid}", "vid": f"v{qid // 3}"}
        annotations.append(
            names
            | {"duration": duration}
            | {"relevant_windows": windows(rng, int(rng.integers(1, 5)), n_clips)}
            | {"relevant_clip_ids": rated.tolist()}
            | {"saliency_scores": rng.integers(0, 5, (len(rated), 3)).tolist()}
        )
        decimals = 1 if coarse else 6
        guesses = windows(rng, int(rng.integers(1, n_windows + 1)), n_clips)
        if qid % 3 == 0:
            guesses[0] = annotations[-1]["relevant_windows"][0]
        scores = rng.random(len(guesses)).round(decimals).tolist()
        predictions.append(
            names
            | {"pred_relevant_windows": [[*w, s] for w, s in zip(guesses, scores, strict=True)]}
            | {"pred_saliency_scores": rng.normal(size=n_clips).round(decimals).tolist()}
        )
    return annotations, [predictions[index] for index in rng.permutation(n_queries)]


def windows(rng: np.random.Generator, count: int, n_clips: int) -> list[list[float]]:
    starts = rng.integers(0, n_clips - 1, count)
    ends = np.minimum(starts + rng.integers(1, n_clips, count), n_clips)
    return (2.0 * np.stack([starts, ends], axis=1)).tolist()
