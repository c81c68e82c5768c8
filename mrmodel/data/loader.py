"""Batches: features gathered per batch and prepared as model input.

`BatchBuilder` makes model input from annotations, in training and in serving; `MomentDataset` adds
targets and the order of the batches. Every batch is a function of its arguments and the seed, so a
run can resume at any step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mrmodel.data.annotations import from_first_clip
from mrmodel.data.targets import N_DRAWS, TargetSettings, TargetTable
from mrmodel.errors import DataError, FeatureError, FeatureMismatch
from mrmodel.features.keys import text_key
from mrmodel.features.prepare import prepare_text, prepare_video
from mrmodel.features.store import FeatureStore, RowRanges, RowTable
from mrmodel.files import derive_seed
from mrmodel.types import Annotation, Batch, Targets

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
MakeHostInputs = Callable[[Batch, Targets, torch.Generator], Mapping[str, Tensor]]

# Streams of a video may differ in length by this many rows, due to different frame sampling.
_ROWS_APART = 2
# Batches per length-sorted bucket: a trade-off between padding and randomness.
_BUCKET_BATCHES = 16


@dataclass(frozen=True, slots=True)
class RowLimits:
    """Longest input in clips and tokens; longer input is truncated. None: no limit."""

    max_clips: int | None
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class ResolvedRows:
    """Locations of the features of N annotations.

    `video` and `text` have one entry per stream, all with the counts `n_clips` and `n_tokens`.
    `start_s` are the times of the first clips as a player counts them.
    """

    video: tuple[RowRanges, ...]
    text: tuple[RowRanges, ...]
    n_clips: Ints
    n_tokens: Ints
    start_s: NDArray[np.float64]

    def take(self, indices: Ints) -> ResolvedRows:
        """The rows of a subset of the annotations."""
        return ResolvedRows(
            tuple(rows.take(indices) for rows in self.video),
            tuple(rows.take(indices) for rows in self.text),
            self.n_clips[indices],
            self.n_tokens[indices],
            self.start_s[indices],
        )


class BatchBuilder:
    """Makes model input from annotations and features.

    Args:
        video: streams of clip rows, in the order in which they are concatenated.
        text: streams of token rows, likewise.
        limits: longer input is truncated to them.
        device: device of the preparation and of the batch.

    Raises:
        FeatureMismatch: the clips of the video streams differ in length.
    """

    def __init__(
        self,
        video: Sequence[RowTable],
        text: Sequence[RowTable],
        limits: RowLimits,
        device: torch.device | str = "cpu",
    ) -> None:
        lengths = {store.name: store.clip_len_s for store in video}
        clip_len_s = video[0].clip_len_s
        if clip_len_s is None or len(set(lengths.values())) > 1:
            raise FeatureMismatch(f"video streams need clips of one length, found {lengths}")
        self.clip_len_s = clip_len_s
        self.video, self.text, self.limits = tuple(video), tuple(text), limits
        self.device = torch.device(device)

    def resolve(self, annotations: Sequence[Annotation]) -> ResolvedRows:
        """Look up the rows of every annotation once, so that batches need no look-ups.

        Raises:
            FeatureError: a store has no rows for a key; names both.
        """
        vids = [row.vid for row in annotations]
        texts = [text_key(row.query) for row in annotations]
        video, n_clips = _resolve(self.video, vids, self.limits.max_clips)
        text, n_tokens = _resolve(self.text, texts, self.limits.max_tokens)
        return ResolvedRows(video, text, n_clips, n_tokens, video[0].start_s)

    def build(self, annotations: Sequence[Annotation], rows: ResolvedRows) -> Batch:
        """The batch of B annotations with resolved rows."""
        video, video_mask = self._gather(self.video, rows.video)
        text, text_mask = self._gather(self.text, rows.text)
        return Batch(
            qids=[row.qid for row in annotations],
            vids=[row.vid for row in annotations],
            video=prepare_video(video, video_mask),
            video_mask=video_mask,
            text=prepare_text(text, text_mask),
            text_mask=text_mask,
            duration_s=[
                max(row.duration - start_s, 0.0)
                for row, start_s in zip(annotations, rows.start_s.tolist(), strict=True)
            ],
            start_s=rows.start_s.tolist(),
            clip_len_s=self.clip_len_s,
            text_keys=[text_key(row.query) for row in annotations],
        )

    def batch(self, annotations: Sequence[Annotation]) -> Batch:
        """The batch of these annotations; see `resolve` for errors."""
        return self.build(annotations, self.resolve(annotations))

    def _gather(
        self, stores: Sequence[RowTable], ranges: Sequence[RowRanges]
    ) -> tuple[list[Tensor], Tensor]:
        pairs = [store.gather(rows) for store, rows in zip(stores, ranges, strict=True)]
        blocks = [self._on_device(torch.from_numpy(block)) for block, _ in pairs]
        return blocks, self._on_device(torch.from_numpy(pairs[0][1]))

    def _on_device(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """Batch size, run seed, and target settings of a data set."""

    batch_size: int
    seed: int
    targets: TargetSettings


class MomentDataset:
    """An annotated set with its features: batches of input and targets, addressed by sample index.

    Samples whose video failed in the extraction are left out and listed in `skipped`.

    Args:
        annotations: the samples, in file order.
        builder: makes the input; batches are on its device.
        settings: see `LoaderSettings`.

    Attributes:
        host_inputs: `MomentModel.host_inputs` of the model to train; None: nobody trains.

    Raises:
        FeatureError: a store does not know a key.
        DataError: no sample is left.
    """

    def __init__(
        self, annotations: Sequence[Annotation], builder: BatchBuilder, settings: LoaderSettings
    ) -> None:
        self.builder, self.settings = builder, settings
        self.host_inputs: MakeHostInputs | None = None
        self.annotations: list[Annotation] = []
        self.skipped: list[Annotation] = []
        for row in annotations:
            (self.skipped if _has_failed(builder, row) else self.annotations).append(row)
        if self.skipped:
            vids = sorted({row.vid for row in self.skipped})
            text = "%d of %d queries left out, their %d videos have no features: %s"
            log.warning(text, len(self.skipped), len(annotations), len(vids), ", ".join(vids))
        if not self.annotations:
            raise DataError("no annotation is left to make batches from")
        self.rows = builder.resolve(self.annotations)
        self.n_clips = self.rows.n_clips
        clip_len_s, starts_s = builder.clip_len_s, self.rows.start_s.tolist()
        counted = [
            from_first_clip(row, start_s, clip_len_s)
            for row, start_s in zip(self.annotations, starts_s, strict=True)
        ]
        self._table = TargetTable(counted, self.n_clips, clip_len_s, settings.targets)
        self._draws = self._draw(0)

    def __len__(self) -> int:
        return len(self.annotations)

    def epoch_batches(self, epoch: int) -> list[Ints]:
        """Indices of each batch of an epoch: random, similar lengths, determined by (seed, epoch).

        All samples occur once; only one batch, at any position, can be smaller.
        """
        size = self.settings.batch_size
        rng = np.random.default_rng(derive_seed(self.settings.seed, "order", epoch))
        order = rng.permutation(len(self))
        batches: list[Ints] = []
        for first in range(0, len(order), size * _BUCKET_BATCHES):
            pool = order[first : first + size * _BUCKET_BATCHES]
            pool = pool[np.argsort(self.n_clips[pool], kind="stable")]
            batches.extend(pool[start : start + size] for start in range(0, len(pool), size))
        return [batches[place] for place in rng.permutation(len(batches))]

    def eval_batches(self, batch_size: int) -> list[Ints]:
        """Indices in batches of similar lengths, longest first, deterministic."""
        order = np.argsort(-self.n_clips, kind="stable")
        return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]

    def batch(self, indices: ArrayLike, epoch: int) -> tuple[Batch, Targets]:
        """Input and targets of these samples.

        Random choices (clip pairs, windows) depend on the seed, the epoch and the sample.
        """
        rows = np.asarray(indices, dtype=np.int64)
        if self._draws[0] != epoch:
            self._draws = self._draw(epoch)
        _, draws, window_draws = self._draws
        annotations = [self.annotations[row] for row in rows.tolist()]
        batch = self.builder.build(annotations, self.rows.take(rows))
        length = batch.video_mask.shape[1]
        targets = self._table.targets(rows, length, draws, window_draws)
        if self.host_inputs is not None:
            mask = torch.from_numpy(np.arange(length) < self.n_clips[rows][:, None])
            seed = derive_seed(self.settings.seed, "host", epoch, *rows.tolist())
            targets.host = self.host_inputs(
                replace(batch, video_mask=mask), targets, torch.Generator().manual_seed(seed)
            )
        return batch, targets.to(self.builder.device)

    def _draw(self, epoch: int) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
        rng = np.random.default_rng(derive_seed(self.settings.seed, "targets", epoch))
        return epoch, rng.random((len(self), N_DRAWS)), rng.random(self._table.n_windows)


def _resolve(
    stores: Sequence[RowTable], keys: Sequence[str], limit: int | None
) -> tuple[tuple[RowRanges, ...], Ints]:
    """Rows of each stream, truncated to the shortest stream of each key and to the limit."""
    ranges = [store.resolve(keys) for store in stores]
    counts = np.stack([rows.count for rows in ranges])
    common = counts.min(axis=0)
    apart = np.flatnonzero(counts.max(axis=0) - common > _ROWS_APART)
    if len(apart):
        first = int(apart[0])
        found = {
            store.name: int(rows.count[first]) for store, rows in zip(stores, ranges, strict=True)
        }
        text = "%d keys have streams more than %d rows apart, e.g. %s: %s; cut to the shortest"
        log.warning(text, len(apart), _ROWS_APART, keys[first], found)
    if limit is not None:
        common = np.minimum(common, limit)
    if (common < 1).any():
        key = keys[int(np.flatnonzero(common < 1)[0])]
        raise FeatureError(f"{stores[0].name}: {key!r} has no rows")
    return tuple(rows.cut(common) for rows in ranges), common


def _has_failed(builder: BatchBuilder, row: Annotation) -> bool:
    return any(
        isinstance(store, FeatureStore) and store.has_failed(row.vid) for store in builder.video
    )
