"""Statistics of the sample corpus annotations, for corpus.json and the report."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import Any

from mrmodel.synthetic.annotations import BEST_RATING, Query, comparable
from mrmodel.synthetic.vocabulary import held_out_subjects, is_held_out


def describe_queries(queries: list[Query], clip_len_s: float) -> dict[str, Any]:
    """Windows, lengths in seconds, coverage and ratings of the queries of a split."""
    windows = [window for query in queries for window in query.row["relevant_windows"]]
    ratings = Counter(
        rating for query in queries for clip in query.row["saliency_scores"] for rating in clip
    )
    total = max(ratings.total(), 1)
    return {
        "queries_by_kind": dict(sorted(Counter(query.topic.kind for query in queries).items())),
        "windows_per_query": _mean([len(query.row["relevant_windows"]) for query in queries]),
        "window_length_s": _mean([end - start for start, end in windows]),
        "coverage": _mean(
            [
                len(query.row["relevant_clip_ids"]) * clip_len_s / query.row["duration"]
                for query in queries
            ]
        ),
        "rating_shares": [round(ratings[rating] / total, 4) for rating in range(BEST_RATING + 1)],
    }


def describe_split_hygiene(
    queries: dict[str, list[Query]], captions: list[dict[str, Any]]
) -> dict[str, Any]:
    """Overlap of val and test with training, and their queries with unseen content.

    ``shared_texts`` counts sentences of val or test that are a train query, a caption, or (test) a
    val query: 0 by construction. The qid lists allow splitting results by novelty.
    """
    texts = {
        split: {comparable(query.row["query"]) for query in queries[split]} for split in queries
    }
    caption_texts = {comparable(row["Caption"]) for row in captions}
    return {
        "shared_texts": {
            "val": len(texts["val"] & (texts["train"] | caption_texts)),
            "test": len(texts["test"] & (texts["train"] | caption_texts | texts["val"])),
        },
        "train_queries_that_are_captions": len(texts["train"] & caption_texts),
        "unseen_subject_qids": {
            split: [query.row["qid"] for query in queries[split] if _unseen_subject(query)]
            for split in ("val", "test")
        },
        "unseen_combination_qids": {
            split: [query.row["qid"] for query in queries[split] if is_held_out(query.topic)]
            for split in ("val", "test")
        },
    }


def _unseen_subject(query: Query) -> bool:
    return query.topic.subject in held_out_subjects()


def _mean(values: list[float]) -> float:
    return round(fmean(values), 4) if values else 0.0
