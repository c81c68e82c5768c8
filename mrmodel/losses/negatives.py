"""Choice of negative sentences within a batch (docs/models/sg_detr.md, section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrmodel.features.keys import split_segment
from mrmodel.types import Batch


def source_videos(vids: Sequence[str]) -> list[str]:
    """The source video of each of `vids`: ``<base>_<start>_<end>`` -> base, else the id itself.

    Segments of one video show the same people and places, so a sentence about one may also be true
    of another.
    """
    segments = ((vid, split_segment(vid)) for vid in vids)
    return [vid if segment is None else segment.base for vid, segment in segments]


def negative_sentences(batch: Batch, training: bool) -> tuple[Tensor | None, Tensor]:
    """Index of each sample's negative sentence, and which samples have one.

    Returns:
        index (B,) on the device of the batch, None in eval mode; has (B,) bool on the CPU, empty
        in eval mode. See `negative_rows`.
    """
    if not training:
        return None, torch.zeros(0)
    index, has = negative_rows(source_videos(batch.vids), batch.text_keys)
    return index.to(batch.text.device, non_blocking=True), has


def negative_rows(videos: Sequence[str], text_keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """For each sample the next one, cyclically, with another video and another sentence.

    Args:
        videos: B names of source videos, see `source_videos`.
        text_keys: B keys of the sentences; equal sentences have equal keys.

    Returns:
        index (B,) int64 of the sample with the negative sentence, and has (B,) bool; a sample
        without one in the batch gets its own index and False. Both on the CPU.
    """
    video, text = number_names(videos), number_names(text_keys)
    own = np.arange(len(video))
    following = (own[:, None] + own) % max(len(own), 1)
    usable = (video[following] != video[:, None]) & (text[following] != text[:, None])
    # Step 0, the sample itself, is never usable; argmax returns it if no step is.
    step = usable.argmax(axis=1) if len(own) else own
    return torch.from_numpy(following[own, step]), torch.from_numpy(step > 0)


def number_names(names: Sequence[str]) -> NDArray[np.int64]:
    """(B,) int64 ids of the names, equal for equal names, numbered by first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def same_sentence(names: Tensor) -> Tensor:
    """(B,) ids of sentences -> (B, B) bool: a different sample with an equal sentence."""
    own = torch.eye(len(names), dtype=torch.bool, device=names.device)
    return (names[:, None] == names) & ~own
