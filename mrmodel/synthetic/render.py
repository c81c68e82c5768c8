"""Renders the sample corpus: scripts all videos, writes annotations, renders in parallel.

The same settings and seed give the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import fmean
from typing import Any

from mrmodel.config.schema import CorpusSettings
from mrmodel.data.ingest.summary import (
    PRETRAINING,
    SPLITS,
    CorpusSummary,
    Split,
    refuse_foreign_videos,
)
from mrmodel.files import derive_seed, write_jsonl
from mrmodel.progress import Reporter, track
from mrmodel.synthetic.annotations import BEST_RATING, Query, comparable, draw_queries
from mrmodel.synthetic.captions import draw_captions
from mrmodel.synthetic.script import VideoPlan, plan_video
from mrmodel.synthetic.sprites import subjects
from mrmodel.synthetic.video_writer import PictureFormat, render_video
from mrmodel.synthetic.vocabulary import held_out_partners, held_out_subjects, is_held_out

log = logging.getLogger(__name__)


def render_corpus(
    settings: CorpusSettings, clip_len_s: float, out: Path, workers: int, reporter: Reporter
) -> CorpusSummary:
    """Render the sample corpus into `out`.

    Writes ``videos/<vid>.mp4``, ``train.jsonl``, ``val.jsonl``, ``test.jsonl``, ``captions.jsonl``
    and ``corpus.json``; ``pretrain.jsonl`` and ``pretrain_val.jsonl`` are empty.

    Args:
        settings: the section ``corpus`` of params.yaml.
        clip_len_s: the grid of the annotated windows, in seconds.
        out: the folder; its videos folder must not hold other videos.
        workers: number of processes; 0 = one per core.
        reporter: notified of every video.

    Raises:
        DataError: `out` holds the videos of another corpus.
    """
    plans = plan_corpus(settings)
    everything = [plan for split in plans.values() for plan in split]
    refuse_foreign_videos(out, {f"{plan.vid}.mp4" for plan in everything})
    captions = [
        row
        for plan in plans["pretrain"]
        for row in draw_captions(plan, settings.captions_per_video)
    ]
    queries = annotate_corpus(plans, captions, settings.queries_per_video, clip_len_s)
    jobs = _render_all(everything, _picture(settings), out / "videos", workers)
    video_bytes = sum(track(jobs, reporter, "render", len(everything)))
    for split in SPLITS:
        write_jsonl(out / f"{split}.jsonl", (query.row for query in queries[split]))
    for name in PRETRAINING:
        write_jsonl(out / f"{name}.jsonl", [])
    write_jsonl(out / "captions.jsonl", captions)
    summary = CorpusSummary(
        source="sample",
        reported_split="test",
        videos={split: len(of_split) for split, of_split in plans.items()},
        queries={split: len(queries[split]) for split in SPLITS},
        captions=len(captions),
        rejected=0,
        video_bytes=video_bytes,
    )
    summary.write(out, _details(settings, clip_len_s, queries, captions))
    return summary


def plan_corpus(settings: CorpusSettings) -> dict[Split, list[VideoPlan]]:
    """The scripts of all videos; a script does not depend on the number of videos.

    Pretraining videos have YouTube-style ids, as in the caption table.
    """
    seed = settings.seed
    counts: dict[Split, int] = {
        "pretrain": settings.videos.pretrain,
        "train": settings.videos.train,
        "val": settings.videos.val,
        "test": settings.videos.test,
    }
    return {
        split: [
            plan_video(_video_id(split, index, seed), split, seed, settings.duration_s)
            for index in range(count)
        ]
        for split, count in counts.items()
    }


def annotate_corpus(
    plans: dict[Split, list[VideoPlan]],
    captions: list[dict[str, Any]],
    per_video: int,
    clip_len_s: float,
) -> dict[str, list[Query]]:
    """The queries of train, val and test, with qids numbered across splits.

    No sentence of val or test is a caption or a train query, and no test query is a val query.
    """
    taken: set[str] = set()
    queries: dict[str, list[Query]] = {}
    qid = 0
    for split in SPLITS:
        queries[split] = []
        for plan in plans[split]:
            for query in draw_queries(plan, per_video, clip_len_s, taken):
                qid += 1
                queries[split].append(Query(query.topic, {"qid": qid, **query.row}))
        taken |= {comparable(query.row["query"]) for query in queries[split]}
        if split == "train":
            taken |= {comparable(row["Caption"]) for row in captions}
    return queries


def _video_id(split: Split, index: int, seed: int) -> str:
    if split != "pretrain":
        return f"{split}-{index:04d}"
    for attempt in range(100):
        bits = derive_seed(seed, "video id", index, attempt).to_bytes(8, "big")
        name = urlsafe_b64encode(bits).decode()[:11]
        # Command lines would parse a leading hyphen as an option.
        if not name.startswith("-"):
            return name
    raise AssertionError("a hundred draws began with a hyphen")


def _picture(settings: CorpusSettings) -> PictureFormat:
    return PictureFormat(settings.width, settings.height, settings.fps, settings.crf)


def _render_all(
    plans: list[VideoPlan], picture: PictureFormat, folder: Path, workers: int
) -> Iterator[int]:
    """Render every plan; yields file sizes in order of completion."""
    workers = min(workers or os.cpu_count() or 1, len(plans))
    if workers == 1:
        for plan in plans:
            yield _render_one(plan, picture, folder)
        return
    # Spawned, not forked: the parent may have threads (torch, a progress bar).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(_render_one, plan, picture, folder) for plan in plans]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _render_one(plan: VideoPlan, picture: PictureFormat, folder: Path) -> int:
    return render_video(plan, picture, folder / f"{plan.vid}.mp4")


def _details(
    settings: CorpusSettings,
    clip_len_s: float,
    queries: dict[str, list[Query]],
    captions: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "settings": settings.model_dump(exclude={"name", "source", "folder", "seed"}),
        "clip_len_s": clip_len_s,
        "query_statistics": {
            split: describe_queries(queries[split], clip_len_s) for split in SPLITS
        },
        "hygiene": describe_split_hygiene(queries, captions),
        "held_out": {
            "subjects": sorted(held_out_subjects()),
            "combinations": {
                subject.name: list(held_out_partners(subject.name)) for subject in subjects()
            },
        },
    }


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
