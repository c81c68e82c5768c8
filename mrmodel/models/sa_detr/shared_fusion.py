"""Clips and words read each other with one set of weights (SA-DETR; sa_detr.md, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import NamedTuple

from torch import Tensor, nn

from mrmodel.models.layers.encoder import ReadingLayer
from mrmodel.models.layers.functional import Stack, key_mask, with_negatives
from mrmodel.models.layers.position import repeat_positions
from mrmodel.models.sa_detr.settings import FusionSettings
from mrmodel.models.settings import LayerSettings


class Stream(NamedTuple):
    """Rows of one modality: states (B, S, d), their codes (B or 1, S, d) if any, mask (B, S)."""

    state: Tensor
    position: Tensor | None
    mask: Tensor


class FusionEncoder(nn.Module):
    """Layers that both directions walk through; without `share` the words have their own.

    Args:
        settings: of the layers.
        fusion: see `FusionSettings`.
        layers: their number.
        both: the words read the clips too; otherwise only the clips read.
    """

    def __init__(
        self, settings: LayerSettings, fusion: FusionSettings, layers: int, both: bool
    ) -> None:
        super().__init__()
        self.fusion, self.both = fusion, both
        self.layers: Stack[ReadingLayer] = Stack(ReadingLayer(settings) for _ in range(layers))
        self.word_rounds = layers if both else 0
        if fusion.update == "parallel" and not both:
            self.word_rounds = layers - 1  # what the last layer makes of the words is not read
        # Shared layers have one name: a file of weights refuses a tensor under two.
        self.word_layers: Stack[ReadingLayer] | None = None
        if not fusion.share:
            self.word_layers = Stack(ReadingLayer(settings) for _ in range(self.word_rounds))

    def forward(
        self, clips: Stream, words: Stream, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Fuse the two modalities.

        Args:
            clips: [fusion token; clips], S = 1 + L.
            words: of the sentences.
            negative: (B,) whose sentence is the negative one of each sample, or None.

        Returns:
            (k B, 1 + L, d) clips with their sentence, then with the negative one, and (B, N, d)
            words with their clips, or None where only the clips read.
        """
        run = self._independent if self.fusion.update == "independent" else self._parallel
        return run(clips, words, negative)

    def _independent(
        self, clips: Stream, words: Stream, negative: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Every layer reads the rows that came in, which are projected once for all pairs."""
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
        """Every layer reads what the layer before made of the other modality, pair by pair."""
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
        """What the words read, and its mask for `attend`."""
        first = 0 if self.fusion.keys_include_token else 1
        return clips.state[:, first:], key_mask(clips.mask[:, first:])

    def _rounds(self) -> Iterator[tuple[ReadingLayer, ReadingLayer | None]]:
        """The layer of the clips and, in rounds in which the words read, theirs."""
        word_layers = self.layers if self.word_layers is None else self.word_layers
        return zip_longest(self.layers, islice(word_layers, self.word_rounds))


def _repeated(position: Tensor | None, size: int) -> Tensor | None:
    return None if position is None else repeat_positions(position, size)
