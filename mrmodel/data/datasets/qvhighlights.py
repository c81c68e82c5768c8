"""QVHighlights (Lei et al., 2021): moments and rated clips, JSON lines."""

from __future__ import annotations

from pathlib import Path

from mrmodel.data.datasets.base import (
    ConvertedSplit,
    PublishedDataset,
    PublishedFile,
    ReadOptions,
    read_moments,
)


class QVHighlights(PublishedDataset):
    """Ratings of three annotators for the relevant clips; labels of the test split are public."""

    name = "qvhighlights"
    title = "QVHighlights"
    clip_len_s = 2.0
    max_clips = 75
    max_tokens = 32
    saliency = "ratings 0..4 of three annotators on the relevant clips, 0 elsewhere"
    files = (
        PublishedFile(
            "train", ("highlight_train_release.jsonl", "qvhighlights_train.jsonl"), (7218,)
        ),
        PublishedFile("val", ("highlight_val_release.jsonl", "qvhighlights_val.jsonl"), (1550,)),
        PublishedFile("test", ("highlight_test_with_gt.jsonl",), (1542,)),
    )

    def read(self, path: Path, options: ReadOptions) -> ConvertedSplit:
        """Read JSON lines as published."""
        return read_moments(path, self.clip_len_s)
