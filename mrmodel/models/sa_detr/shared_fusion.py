"""Cross-modal fusion with shared weights (SA-DETR; docs/models/sa_detr.md, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import NamedTuple

from torch import Tensor, nn

from mrmodel.models.layers.encoder import ReadingLayer
from mrmodel.models.layers.functional import Stack, key_mask, with_negatives
from mrmodel.models.layers.position import repeat_positions
from mrmodel.models.sa_detr.settings import SaDetrFusionSettings
from mrmodel.models.settings import LayerSettings


class Stream(NamedTuple):
    """One modality: states (B, S, d), optional position codes (B or 1, S, d), mask (B, S)."""

    state: Tensor
    position: Tensor | None
    mask: Tensor


class FusionEncoder(nn.Module):
    """Cross-attention layers shared by both directions; without `share` the words have their own.

    Args:
        settings: settings of the layers.
        fusion: see `SaDetrFusionSettings`.
        layers: number of layers.
        both: words attend to clips too; otherwise only clips attend to words.
    """

    def __init__(
        self, settings: LayerSettings, fusion: SaDetrFusionSettings, layers: int, both: bool
    ) -> None:
        super().__init__()
        self.fusion, self.both = fusion, both
        self.layers: Stack[ReadingLayer] = Stack(ReadingLayer(settings) for _ in range(layers))
        self.word_rounds = layers if both else 0
        if fusion.update == "parallel" and not both:
            self.word_rounds = layers - 1  # the last layer's words are unused
        # Shared layers are registered once: safetensors rejects a tensor under two names.
        self.word_layers: Stack[ReadingLayer] | None = None
        if not fusion.share:
            self.word_layers = Stack(ReadingLayer(settings) for _ in range(self.word_rounds))

    def forward(
        self, clips: Stream, words: Stream, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Fuse the two modalities.

        Args:
            clips: [fusion token; clips], S = 1 + L.
            words: words of the sentences.
            negative: (B,) index of the sample whose sentence is the negative one, or None.

        Returns:
            (k B, 1 + L, d) clips fused with their sentence, then with the negative one, and
            (B, N, d) words fused with their clips, or None if only the clips attend.
        """
        run = self._independent if self.fusion.update == "independent" else self._parallel
        return run(clips, words, negative)

    def _independent(
        self, clips: Stream, words: Stream, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Every layer attends to the input rows, which are projected once for all pairs."""
        video, text, position = clips.state, words.state, clips.position
        clip_rows, clip_mask = self._readable(clips)
        tokens = key_mask(with_negatives(words.mask, negative))
        for layer, back in self._rounds():
            keys, values = layer.keys_and_values(words.state, words.position)
            pairs = (with_negatives(keys, negative), with_negatives(values, negative))
            video = layer(video, position, pairs, tokens)
            position = _repeated(position, len(video))
            if back is not None:
                read = back.keys_and_values(clip_rows, None)
                text = back(text, words.position, read, clip_mask)
        return video, text if self.both else None

    def _parallel(
        self, clips: Stream, words: Stream, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Every layer attends to the previous layer's output of the other modality, per pair."""
        size = len(words.state)
        copies = 1 if negative is None else 2
        clips = Stream(
            clips.state.repeat(copies, 1, 1),
            _repeated(clips.position, copies * size),
            clips.mask.repeat(copies, 1),
        )
        code = words.position
        words = Stream(
            with_negatives(words.state, negative),
            None if code is None else with_negatives(code, negative),
            with_negatives(words.mask, negative),
        )
        tokens = key_mask(words.mask)
        for layer, back in self._rounds():
            read = layer.keys_and_values(words.state, words.position)
            video = layer(clips.state, clips.position, read, tokens)
            if back is not None:
                rows, mask = self._readable(clips)
                text = back(words.state, words.position, back.keys_and_values(rows, None), mask)
                words = words._replace(state=text)
            clips = clips._replace(state=video)
        return clips.state, words.state[:size] if self.both else None

    def _readable(self, clips: Stream) -> tuple[Tensor, Tensor | None]:
        """Clips that the words attend to, and their mask for `attend`."""
        first = 0 if self.fusion.keys_include_token else 1
        return clips.state[:, first:], key_mask(clips.mask[:, first:])

    def _rounds(self) -> Iterator[tuple[ReadingLayer, ReadingLayer | None]]:
        """The clips' layer and, in rounds in which the words are updated, the words' layer."""
        word_layers = self.layers if self.word_layers is None else self.word_layers
        return zip_longest(self.layers, islice(word_layers, self.word_rounds))


def _repeated(position: Tensor | None, size: int) -> Tensor | None:
    return None if position is None else repeat_positions(position, size)
