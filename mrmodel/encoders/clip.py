"""CLIP ViT-B/32 streams, as used by Moment-DETR and its successors.

As in the published extractors: the frame that ffmpeg's filter ``fps=1/clip_len`` gives, its short
side scaled to 224 and centre-cropped, and the token states before the projection. Two deviations:
a file's rotation is applied (the extractors distort such images), and a file shorter than a clip
gets one row.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mrmodel.encoders.base import RowLayout, Rows
from mrmodel.encoders.networks.clip import ClipConfig, ClipText, ClipVision
from mrmodel.encoders.torch_base import (
    CLIP_MEAN,
    CLIP_SPREAD,
    UserWeightsTextEncoder,
    UserWeightsVideoEncoder,
    normalise_pixels,
)
from mrmodel.video.sampling import FrameSampling

# The extractors add this to the std.
_SPREAD = tuple(value + 1e-8 for value in CLIP_SPREAD)


class ClipVideoEncoder(UserWeightsVideoEncoder[ClipConfig]):
    """The projected image vector of one frame per clip, not of unit length."""

    name: ClassVar[str] = "clip_b32.video512"
    set_name: ClassVar[str] = "clip_b32"
    dim: ClassVar[int] = 512
    config_type = ClipConfig
    network = ClipVision
    gpu_batch: ClassVar[int] = 256

    @cached_property
    def sampling(self) -> FrameSampling:
        """One frame, as chosen by ffmpeg's fps filter; centre crop."""
        side = self.config.image_size
        return FrameSampling(1, (side, side), "ffmpeg_fps", "bicubic", "crop")

    def _run(self, frames: Tensor) -> Tensor:
        pixels = normalise_pixels(frames[:, 0], CLIP_MEAN, _SPREAD, self.config.dtype)
        rows: Tensor = self._model(pixels)
        return rows


class ClipTextEncoder(UserWeightsTextEncoder[ClipConfig]):
    """Token states before the projection, start and end tokens included: the published features.

    They have 512 channels, as the clip vectors do, but lie in another space.
    """

    name: ClassVar[str] = "clip_b32.text512"
    set_name: ClassVar[str] = "clip_b32"
    dim: ClassVar[int] = 512
    config_type = ClipConfig
    network = ClipText
    width: ClassVar[str] = "text.width"
    layout: ClassVar[RowLayout] = "start, tokens, end"

    @property
    def max_tokens(self) -> int:
        """Longer texts are truncated; start and end tokens count."""
        return self.config.positions


class ClipJointTextEncoder(ClipTextEncoder):
    """Sentences in the space of `ClipVideoEncoder`: the sentence vector, then the token vectors.

    All states are projected, because SG-DETR's eq. 2 and 16 compare text and clips by a plain dot
    product. The sentence vector is that of the end token, scaled to unit length.
    """

    name: ClassVar[str] = "clip_b32.joint_text512"
    width: ClassVar[str] = "projection"
    layout: ClassVar[RowLayout] = "sentence, tokens"

    def _run(self, batch: Tensor) -> Tensor:
        states: Tensor = self._model.project(self._model(batch))
        return states

    def _arrange(self, states: Tensor) -> Rows:
        sentence = F.normalize(states[-1:], dim=-1)
        rows: Rows = torch.cat((sentence, states[1:-1])).numpy()
        return rows
