"""TVSum (Song et al., 2015): every clip of 50 videos of 10 domains, rated by 20 annotators."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrmodel.data.datasets.base import ConvertedSplit, PublishedDataset, PublishedFile, ReadOptions
from mrmodel.data.datasets.labelled import labels_of, read_labelled
from mrmodel.errors import DataError

RATERS = 20
LOWEST, HIGHEST = 1, 5


class TVSum(PublishedDataset):
    """Labels 1..5 become ratings 0..4, whose sum (of 0..80) is then scaled to 0..12.

    A label covers two seconds. The published files give the number of labels as `duration`,
    which is half of the seconds; here `duration` is in seconds.
    """

    name = "tvsum"
    title = "TVSum"
    clip_len_s = 2.0
    max_clips = 1000
    max_tokens = 100
    domains = ("BK", "BT", "DS", "FM", "GA", "MS", "PK", "PR", "VT", "VU")
    saliency = "ratings 0..4 of 20 annotators on every clip"
    held_out = 0.25
    files = (
        PublishedFile("train", ("tvsum_train_release.jsonl", "tvsum_train.jsonl"), (40,)),
        PublishedFile("val", ("tvsum_val_release.jsonl", "tvsum_val.jsonl"), (10,)),
    )

    def read(self, path: Path, options: ReadOptions) -> ConvertedSplit:
        """Read JSON lines with `label` and `domain`."""
        return read_labelled(path, self.clip_len_s, self.domains, self._ratings)

    def _ratings(self, record: Mapping[str, Any]) -> tuple[float, list[list[float]]]:
        """Seconds of the video and the ratings of each clip."""
        ratings = []
        for place, labels in enumerate(labels_of(record)):
            name = f"label[{place}]"
            if len(labels) != RATERS:
                raise DataError(f"{name} has {len(labels)} values; expected {RATERS}, one a rater")
            if not all(LOWEST <= label <= HIGHEST for label in labels):
                raise DataError(f"{name} = {labels[:3]} ...: labels lie in {LOWEST}..{HIGHEST}")
            ratings.append([label - LOWEST for label in labels])
        return len(ratings) * self.clip_len_s, ratings
