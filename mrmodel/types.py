"""Data types shared by all parts of the system.

Shape letters used in docstrings:

* ``B`` samples of a batch, ``L`` clips (padded to the longest of the batch), ``N`` text tokens
  (padded), ``Dv``/``Dt`` channels of the prepared video/text features, ``d`` hidden width,
  ``Q`` moment queries, ``G`` ground-truth windows of all samples of a batch together,
  ``P`` saliency clip pairs of a sample.

Units: seconds outside the models; inside, a span is a fraction of ``T = valid clips x clip_len``.
``cxw`` spans are (centre, width), ``xx`` spans are (start, end). Masks are boolean, True = valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Annotation and Prediction must be importable without torch
    import torch
    from torch import Tensor

    from mrmodel.config.postprocess import PostprocessConfig

QueryId = int | str
Window = tuple[float, float]

# A day: longer durations are usually milliseconds, and would make arrays and loops huge.
MAX_DURATION_S = 86_400.0


def differs_in_type(qid: QueryId, first: QueryId) -> str:
    """What to add to the message that `qid` repeats `first`: ``1`` and ``"1"`` are one id.

    Figures per query and files of features are kept under the text of an id.
    """
    return "" if type(qid) is type(first) else f" ({first!r} and {qid!r} differ in type alone)"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One query about one video, in the QVHighlights schema.

    `relevant_windows` are in seconds; `saliency_scores[i]` are the ratings (0..4) of clip
    `relevant_clip_ids[i]`, one per rater. The last three fields are empty if a data set lacks them.
    """

    qid: QueryId
    query: str
    vid: str
    duration: float
    relevant_windows: tuple[Window, ...] = ()
    relevant_clip_ids: tuple[int, ...] = ()
    saliency_scores: tuple[tuple[float, ...], ...] = ()

    def as_row(self) -> dict[str, object]:
        """The record of an annotation file."""
        return {
            "qid": self.qid,
            "query": self.query,
            "vid": self.vid,
            "duration": self.duration,
            "relevant_windows": [list(window) for window in self.relevant_windows],
            "relevant_clip_ids": list(self.relevant_clip_ids),
            "saliency_scores": [list(ratings) for ratings in self.saliency_scores],
        }


def clips_before(start_s: float, clip_len_s: float) -> int:
    """Clips of a player's clock before the first picture, to the nearest clip."""
    return math.floor(start_s / clip_len_s + 0.5)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prediction for an annotated query: windows in seconds, best first, a score per clip."""

    qid: QueryId
    query: str
    vid: str
    windows: tuple[tuple[float, float, float], ...]
    saliency: tuple[float, ...]

    def as_row(self) -> dict[str, object]:
        """The record of a QVHighlights submission file."""
        return {
            "qid": self.qid,
            "query": self.query,
            "vid": self.vid,
            "pred_relevant_windows": [list(window) for window in self.windows],
            "pred_saliency_scores": list(self.saliency),
        }


@dataclass(frozen=True, slots=True)
class Moment:
    """A window of a video that answers a query.

    Attributes:
        start_s, end_s: a player's seconds.
        score: comparable among the windows of one query and video only.
        probability: that the window is right; None: the model is not calibrated.
    """

    start_s: float
    end_s: float
    score: float
    probability: float | None = None


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The answer to one query about one video.

    Attributes:
        query: the sentence.
        vid: the video.
        duration_s: its length in a player.
        clip_len_s: seconds of a clip.
        moments: best first; empty if the model finds none.
        clip_scores: one per clip, from second 0 of a player; any real numbers.
        in_video_probability: that the query is about the video at all; None: not calibrated.
        unread_tokens: share of the query's tokens that the text encoder cannot read, so that the
            answer does not depend on what they say.
    """

    query: str
    vid: str
    duration_s: float
    clip_len_s: float
    moments: tuple[Moment, ...]
    clip_scores: tuple[float, ...]
    in_video_probability: float | None = None
    unread_tokens: float = 0.0

    def as_row(self, qid: QueryId = 0, top: int | None = None) -> dict[str, object]:
        """The record that ``mrmodel predict --json`` prints, a row of a QVHighlights submission.

        Args:
            qid: id of the query, there its number from 0.
            top: of so many windows at most; None: of all.
        """
        row: dict[str, object] = {
            "qid": qid,
            "query": self.query,
            "vid": self.vid,
            "pred_relevant_windows": [
                [one.start_s, one.end_s, one.score] for one in self.moments[:top]
            ],
            "pred_saliency_scores": list(self.clip_scores),
        }
        if self.unread_tokens:
            row["unread_tokens"] = self.unread_tokens
        return row | {"duration": self.duration_s}


@dataclass(slots=True)
class Batch:
    """Model input.

    Attributes:
        qids, vids: B ids, for error messages and predictions.
        video: (B, L, Dv) prepared clip features (features.prepare), temporal end-points last.
        video_mask: (B, L) bool; every sample has at least one valid clip, valid clips come first.
        text: (B, N, Dt) prepared token features.
        text_mask: (B, N) bool; every sample has at least one valid token.
        duration_s: B seconds from the first picture to the end of the video.
        start_s: B seconds from the start of the file to the first picture. The model does not see
            it: answers are moved by it, and annotations back.
        clip_len_s: seconds of one clip.
        text_keys: B keys of the sentences; equal sentences have equal keys.
    """

    qids: list[QueryId]
    vids: list[str]
    video: Tensor
    video_mask: Tensor
    text: Tensor
    text_mask: Tensor
    duration_s: list[float]
    start_s: list[float]
    clip_len_s: float
    text_keys: list[str]

    def __len__(self) -> int:
        return len(self.qids)


@dataclass(slots=True)
class Targets:
    """Ground truth of a batch.

    Attributes:
        spans_cxw: (G, 2) windows of all samples stacked, fractions of T, float32.
        span_counts: B window counts; their sum is G.
        saliency_pos, saliency_neg: (B, P) clip indices of the margin pairs, int64.
        saliency_labels: (B, L) summed ratings 0..12 (or 0/1), more raters than three scaled to
            three, 0 on padding, float32.
        host: what `MomentModel.host_inputs` made for the batch; empty: the model makes it itself.
    """

    spans_cxw: Tensor
    span_counts: list[int]
    saliency_pos: Tensor
    saliency_neg: Tensor
    saliency_labels: Tensor
    host: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        return Targets(
            self.spans_cxw.to(device),
            self.span_counts,
            self.saliency_pos.to(device),
            self.saliency_neg.to(device),
            self.saliency_labels.to(device),
            {name: tensor.to(device) for name, tensor in self.host.items()},
        )


@dataclass(slots=True)
class LayerOutput:
    """Heads of one decoder layer: class `logits` (B, Q, C) and `spans_cxw` (B, Q, 2) in [0, 1].

    `extras` holds tensors of this layer that only the model's own losses read.
    """

    logits: Tensor
    spans_cxw: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class ModelOutput:
    """What every model returns.

    Attributes:
        last: heads of the last decoder layer.
        spans_cxw: (B, Q, 2) the windows of `last`; windows of zero width are ignored.
        scores: (B, Q) confidence of each window, in [0, 1].
        saliency: (B, L) one real number per clip; values of padded clips are undefined.
        aux: heads of the earlier decoder layers, first to last; empty in eval mode.
        extras: tensors that only the model's own losses read.
    """

    last: LayerOutput
    spans_cxw: Tensor
    scores: Tensor
    saliency: Tensor
    aux: tuple[LayerOutput, ...] = ()
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def systems(self) -> tuple[str, ...]:
        """Kinds of windows, in eval mode, that are evaluated alone too (`postprocess.SYSTEMS`)."""
        return ()

    def candidates(
        self, settings: PostprocessConfig, system: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Candidate windows for post-processing, in eval mode.

        Args:
            settings: for models that merge several kinds of windows.
            system: one of `systems`; None: the windows that are served.

        Returns:
            (B, K, 2) (centre, width) and (B, K) scores in [0, 1]; K = Q for most models.
        """
        return self.spans_cxw, self.scores
