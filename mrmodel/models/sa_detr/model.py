"""SA-DETR (Xiong et al. 2025): span-aware queries, refined with the clips inside their spans.

docs/models/sa_detr.md has the data flow and what the paper leaves open; section numbers below refer
to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mrmodel.config.search_space import SearchSpace
from mrmodel.losses.negatives import negative_sentences
from mrmodel.losses.windows import PaddedWindows, pad_windows
from mrmodel.models.base import MomentModel
from mrmodel.models.layers.functional import full_precision, xavier_matrices
from mrmodel.models.layers.heads import SaliencyHead, no_windows
from mrmodel.models.layers.position import clip_positions
from mrmodel.models.layers.projection import InputProjections, Projected
from mrmodel.models.layers.query_groups import (
    QueryGroup,
    join_groups,
    known_group,
    moment_group,
    seeded_generator,
)
from mrmodel.models.layers.token_encoder import PositionedTensor, TokenEncoder
from mrmodel.models.sa_detr.criterion import SaDetrCriterion
from mrmodel.models.sa_detr.output import ClipText, PooledPair, SaDetrOutput, SaDetrTraining
from mrmodel.models.sa_detr.queries import DirectQueries, draw_noise, group_numbers, noise_queries
from mrmodel.models.sa_detr.settings import SEARCH_SPACE, SaDetrSettings
from mrmodel.models.sa_detr.shared_fusion import FusionEncoder, Stream
from mrmodel.models.sa_detr.span_refiner import SeenVideo, SpanRefiner
from mrmodel.types import Batch, LayerOutput, Targets

TAPS = 3


class LocalBlock(nn.Module):
    """Residual block of three convolutions with kernel sizes 1, 3 and 1 (UVCOM; section 2.7).

    Without activation. Implemented as matrix products; the middle one uses three shifted views.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(hidden, hidden)
        self.middle = nn.Linear(TAPS * hidden, hidden)
        self.last = nn.Linear(hidden, hidden)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, L, d), (B, L) -> (B, L, d); neighbours outside the valid rows are zeros."""
        length, hidden = rows.shape[1:]
        first = self.first(rows).masked_fill(~mask.unsqueeze(-1), 0.0)
        # All samples in one table, each with a row of zeros before and after it: no copies.
        table = F.pad(first, (0, 0, 1, 1)).flatten(0, 1)
        count = len(table) - TAPS + 1
        kernels = self.middle.weight.chunk(TAPS, dim=1)
        middle: Tensor = self.middle.bias
        for tap, kernel in enumerate(kernels):
            middle = middle + F.linear(table[tap : tap + count], kernel)
        # The two outputs between samples mix neighbouring samples and are cut off.
        changed = F.pad(self.last(middle), (0, 0, 0, TAPS - 1)).view(len(rows), -1, hidden)
        return rows + changed[:, :length]


class AttentionPool(nn.Module):
    """Attention pooling with one learned query vector (UniVTG)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(hidden) * hidden**-0.5)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, N, d), (B, N) with at least one valid row per sample -> (B, d) float32."""
        with full_precision(rows.device):
            rows = rows.float()
            scores = (rows @ self.direction.float()).masked_fill(~mask, -torch.inf)
            return (scores.softmax(1).unsqueeze(1) @ rows).squeeze(1)


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D), (B, N) -> (B, D): the mean of the valid rows, zero if there are none."""
    weights = mask.unsqueeze(-1)
    total = rows.masked_fill(~weights, 0.0).sum(1)
    mean: Tensor = total / weights.sum(1).clamp(min=1)
    return mean


class SaDetr(MomentModel):
    """Shared fusion of clips and words, direct and noise queries, span-aware refiner."""

    Settings: ClassVar[type[SaDetrSettings]] = SaDetrSettings
    search_space: ClassVar[SearchSpace] = SEARCH_SPACE
    settings: SaDetrSettings

    def __init__(self, video_dim: int, text_dim: int, settings: SaDetrSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.projections = InputProjections(video_dim, text_dim, s)
        self.token = nn.Parameter(torch.randn(s.hidden))
        self.fusion = FusionEncoder(s, s.fusion, s.layers.fusion, s.reads_words)
        self.sentence_pool = AttentionPool(s.hidden) if s.needs_sentence else None
        early = s.ctm.enabled and s.ctm.stage == "before"
        self.early_pool = AttentionPool(s.hidden) if early else None
        self.encoder = TokenEncoder(s, s.layers.encoder)
        self.saliency_head = SaliencyHead(s.hidden)
        xavier_matrices(self.fusion, self.encoder)
        self.finder = None if s.highlights_only else MomentFinder(s)

    def forward(
        self, batch: Batch, targets: Targets | None = None, progress: float = 0.0
    ) -> SaDetrOutput:
        """Windows and clip scores of a batch.

        In training every video is also paired with a sentence of another video, up to the clip
        scores; given `targets`, noise queries are built from the true windows.
        """
        size, mask = len(batch), batch.video_mask
        negative, has_negative = negative_sentences(batch, self.training)
        inputs = self.projections(batch.video, batch.text)
        position = clip_positions(mask, self.settings.hidden)

        sequence, valid = self._sequence(inputs.video, position, mask)
        sentences = Stream(inputs.text, inputs.text_position, batch.text_mask)
        fused, words = self.fusion(Stream(*sequence, valid), sentences, negative)
        sentence = None
        if self.sentence_pool is not None and words is not None:
            sentence = self.sentence_pool(words, batch.text_mask)
        mixed = self.encoder.encode(PositionedTensor(fused, sequence.position), valid)
        saliency = self.saliency_head(mixed[:, 1:], mixed[:, 0]).float()

        training = None
        if self.training:
            training = SaDetrTraining(
                saliency[size:], has_negative.to(mask.device, non_blocking=True)
            )
            training.pooled = self._pooled(inputs, fused[:size], words, batch)
            training.clip_text = self._clip_text(inputs, fused[:size], sentence, batch)
        saliency = saliency[:size]
        if self.finder is None:
            return SaDetrOutput(*no_windows(saliency), saliency, training=training)
        encoded = Encoded(fused[:size], mixed[:size], valid, position, sentence)
        windows = pad_windows(targets) if self.training and targets is not None else None
        delta = self.settings.delta_at(progress)
        last = self.finder(encoded, windows, delta, training)
        scores = last.logits.squeeze(-1).sigmoid()
        return SaDetrOutput(last, last.spans_cxw, scores, saliency, training=training)

    def criterion(self) -> SaDetrCriterion:
        """All losses of section 3.2, with the lambdas of the settings."""
        return SaDetrCriterion(self.settings)

    def _sequence(
        self, video: Tensor, position: Tensor, mask: Tensor
    ) -> tuple[PositionedTensor, Tensor]:
        """[token; clips] (B, 1 + L, d) and its mask; the token has no position."""
        token = self.token.to(video.dtype).expand(len(video), 1, -1)
        states = torch.cat((token, video), dim=1)
        codes = torch.cat((torch.zeros_like(position[:, :1]), position), dim=1)
        valid = torch.cat((torch.ones_like(mask[:, :1]), mask), dim=1)
        return PositionedTensor(states, codes), valid

    def _pooled(
        self, inputs: Projected, fused: Tensor, words: Tensor | None, batch: Batch
    ) -> PooledPair | None:
        """Mean vectors for the video-text contrast, before or after the fusion (section 2.2)."""
        if not self.settings.vtc.enabled:
            return None
        video, text = inputs.video, inputs.text
        if self.settings.vtc.stage == "after" and words is not None:
            video, text = fused[:, 1:], words
        return PooledPair(masked_mean(video, batch.video_mask), masked_mean(text, batch.text_mask))

    def _clip_text(
        self, inputs: Projected, fused: Tensor, sentence: Tensor | None, batch: Batch
    ) -> ClipText | None:
        """Clips and sentence tokens for clip-text matching (section 2.5)."""
        if not self.settings.ctm.enabled:
            return None
        if self.early_pool is not None:
            return ClipText(inputs.video, self.early_pool(inputs.text, batch.text_mask))
        return None if sentence is None else ClipText(fused[:, 1:], sentence)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded video and sentence.

    Attributes:
        fused: [token; clips] (B, 1 + L, d) after the fusion encoder.
        mixed: likewise after the global block.
        mask: (B, 1 + L) bool.
        position: codes of the clips (B or 1, L, d).
        sentence: (B, d); None if unused.
    """

    fused: Tensor
    mixed: Tensor
    mask: Tensor
    position: Tensor
    sentence: Tensor | None


class MomentFinder(nn.Module):
    """Local block, direct and noise queries, refiner (sections 2.7 to 2.10)."""

    def __init__(self, settings: SaDetrSettings) -> None:
        super().__init__()
        self.settings = s = settings
        self.local_block = LocalBlock(s.hidden)
        self.direct = DirectQueries(s.hidden, s.init)
        self.noise_content = nn.Parameter(torch.ones(s.hidden)) if s.uses_noise else None
        self.refiner = SpanRefiner(s)

    def forward(
        self,
        encoded: Encoded,
        windows: PaddedWindows | None,
        delta: float,
        training: SaDetrTraining | None,
    ) -> LayerOutput:
        """Heads of the last layer; the class logit is the quality logit.

        Args:
            encoded: the video.
            windows: true windows for the noise queries, in training.
            delta: extra noise scale of the far noise queries.
            training: filled in with the inputs of the losses; None in eval mode.
        """
        token, memory = self._look_closer(encoded)
        mask = encoded.mask[:, 1:]
        seen = SeenVideo(memory, encoded.position, mask, encoded.sentence)
        content, first = self.direct(token)
        reference = first.detach() if self.settings.detaches_first_spans else first
        groups = [moment_group(content, reference)]
        if training is not None:
            groups = [*self._noise_groups(mask, windows, delta, training), *groups]
        found = self.refiner(join_groups(groups, self.settings.dn.sees_match), seen)
        *noise, direct = found.split([group.used.shape[1] for group in groups])
        if training is not None:
            training.first_spans, training.direct = first, direct
            training.noise = noise[0] if noise else None
        return LayerOutput(direct.quality_logits[-1].unsqueeze(-1), direct.spans_cxw[-1])

    def _look_closer(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Token (B, d) and clips (B, L, d) after the local block (section 2.7)."""
        local = self.settings.local
        sequence = encoded.mixed if local.input == "global" else encoded.fused
        if local.include_token:
            sequence = self.local_block(sequence, encoded.mask)
            return sequence[:, 0], sequence[:, 1:]
        return sequence[:, 0], self.local_block(sequence[:, 1:], encoded.mask[:, 1:])

    def _noise_groups(
        self, mask: Tensor, windows: PaddedWindows | None, delta: float, training: SaDetrTraining
    ) -> list[QueryGroup]:
        """The noise queries of all groups, also stored in `training`; empty without windows."""
        if self.noise_content is None or windows is None:
            return []
        samples, longest = windows.valid.shape
        if not longest:
            # Every parameter gets a gradient in every step, as distributed training requires.
            training.idle = 0.0 * self.noise_content.sum()
            return []
        dn, kinds = self.settings.dn, 2 if self.settings.uses_negatives else 1
        noise = draw_noise((samples, dn.groups, kinds), longest, seeded_generator())
        queries = noise_queries(windows, mask.sum(1), noise, dn, delta)
        training.noise_queries = queries
        number = group_numbers(dn.groups, kinds * longest, mask.device)
        return [known_group(queries, self.noise_content, number)]
