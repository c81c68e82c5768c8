"""Which other sentence of the batch a video must not answer to (sg_detr.md, section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrmodel.features.keys import split_segment
from mrmodel.types import Batch


def source_videos(vids: Sequence[str]) -> list[str]:
    """The video that each of `vids` was cut out of: ``<base>_<start>_<end>`` -> base, else itself.

    Segments of one video show the same people and places, so that a sentence of one may be true
    of the other.
    """
    segments = ((vid, split_segment(vid)) for vid in vids)
    return [vid if segment is None else segment.base for vid, segment in segments]


def negative_sentences(batch: Batch, training: bool) -> tuple[Tensor | None, Tensor]:
    """Whose sentence is the negative one of each sample, and which samples have one.

    Returns:
        index (B,) on the device of the batch, None in eval mode; has (B,) bool on the CPU, empty in
        eval mode. See `negative_rows`.
    """
    if not training:
        return None, torch.zeros(0)
    index, has = negative_rows(source_videos(batch.vids), batch.text_keys)
    return index.to(batch.text.device, non_blocking=True), has


def negative_rows(videos: Sequence[str], text_keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """For each sample the nearest following one, cyclically, of another video and sentence.

    Args:
        videos: B names of source videos, see `source_videos`.
        text_keys: B keys of the sentences; equal sentences have equal keys.

    Returns:
        index (B,) int64, whose sentence is the negative one, and has (B,) bool; a sample for which
        the batch has no such sentence gets its own index and False. Both on the CPU.
    """
    video, text = number_names(videos), number_names(text_keys)
    own = np.arange(len(video))
    following = (own[:, None] + own) % max(len(own), 1)
    usable = (video[following] != video[:, None]) & (text[following] != text[:, None])
    # Step 0 is the sample itself, never usable: the answer of argmax where nothing else is.
    step = usable.argmax(axis=1) if len(own) else own
    return torch.from_numpy(following[own, step]), torch.from_numpy(step > 0)


def number_names(names: Sequence[str]) -> NDArray[np.int64]:
    """(B,) int64, equal exactly where the names are equal; numbered by first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def same_sentence(names: Tensor) -> Tensor:
    """(B,) numbers of the sentences -> (B, B) bool: another sample with an equal sentence."""
    own = torch.eye(len(names), dtype=torch.bool, device=names.device)
    return (names[:, None] == names) & ~own
