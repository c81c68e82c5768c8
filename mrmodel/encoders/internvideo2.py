"""InternVideo2 stage-2 1B streams: clips and sentences in one space.

Our interpretation of SG-DETR's features: its eq. 2 and 16 take dot products of text and clip
vectors without a projection, so both must be the projected ones.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal, Self

from pydantic import model_validator
from torch import Tensor, nn

from mrmodel.encoders.base import RowLayout
from mrmodel.encoders.networks.bert import Bert, BertSizes
from mrmodel.encoders.networks.internvideo2 import Gelu, InternVideo2Vision, VisionSizes
from mrmodel.encoders.torch_base import (
    IMAGENET_MEAN,
    IMAGENET_SPREAD,
    UserWeightsTextEncoder,
    UserWeightsVideoEncoder,
    normalise_pixels,
)
from mrmodel.encoders.user_weights import Count, SetConfig, require_whole_patches
from mrmodel.video.sampling import FrameSampling


class InternVideo2Config(SetConfig):
    """config.json of the set ``internvideo2_1b``.

    Attributes:
        vision, text: sizes of the networks.
        projection: channels of the common space.
        frames: per clip; positions are interpolated if the table has another number.
        image_size: side in pixels of the square that an image is resized to.
        gelu: of the vision network; ``exact`` is the official code without its fused kernels.
        resize: ``bicubic_no_antialias`` matches the official evaluation.
        max_tokens: of a sentence, special tokens included; the official evaluation has 40.
    """

    vision: VisionSizes = VisionSizes()
    text: BertSizes = BertSizes()
    projection: Count = 512
    frames: Count = 4
    image_size: Count = 224
    gelu: Gelu = "tanh"
    resize: Literal["bicubic", "bicubic_no_antialias", "bilinear"] = "bicubic"
    max_tokens: Count = 40

    @model_validator(mode="after")
    def _patches_tile_the_picture(self) -> Self:
        require_whole_patches(self.image_size, self.vision.patch)
        return self


class ProjectedVision(nn.Module):
    """Clips to vectors in the common space, not of unit length."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.vision_encoder = InternVideo2Vision(config.vision, config.gelu)
        self.vision_proj = nn.Linear(config.vision.pooled, config.projection)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W) normalised -> (B, projection)."""
        projected: Tensor = self.vision_proj(self.vision_encoder(frames))
        return projected


class _TextEncoder(nn.Module):
    """Holds BERT under the name of the official model, whose head is not used."""

    def __init__(self, sizes: BertSizes) -> None:
        super().__init__()
        self.bert = Bert(sizes)


class ProjectedText(nn.Module):
    """Every token to a vector in the common space; [CLS], the first, is the sentence vector."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.text_encoder = _TextEncoder(config.text)
        self.text_proj = nn.Linear(config.text.width, config.projection)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(B, N) int64 of texts of one length -> (B, N, projection)."""
        projected: Tensor = self.text_proj(self.text_encoder.bert(token_ids))
        return projected


class InternVideo2VideoEncoder(UserWeightsVideoEncoder[InternVideo2Config]):
    """One vector per clip, from the middle frames of its four quarters."""

    name: ClassVar[str] = "internvideo2_1b.video512"
    set_name: ClassVar[str] = "internvideo2_1b"
    dim: ClassVar[int] = 512
    config_type = InternVideo2Config
    network = ProjectedVision
    gpu_batch: ClassVar[int] = 32

    @cached_property
    def sampling(self) -> FrameSampling:
        """The middle frames of equal spans, resized to a square (aspect ratio not kept)."""
        side = self.config.image_size
        return FrameSampling(self.config.frames, (side, side), "middle", self.config.resize)

    def _run(self, frames: Tensor) -> Tensor:
        pixels = normalise_pixels(frames, IMAGENET_MEAN, IMAGENET_SPREAD, self.config.dtype)
        rows: Tensor = self._model(pixels.transpose(1, 2))
        return rows


class InternVideo2TextEncoder(UserWeightsTextEncoder[InternVideo2Config]):
    """The projected states of [CLS], of the tokens and of [SEP], in this order."""

    name: ClassVar[str] = "internvideo2_1b.text512"
    set_name: ClassVar[str] = "internvideo2_1b"
    dim: ClassVar[int] = 512
    config_type = InternVideo2Config
    network = ProjectedText
    layout: ClassVar[RowLayout] = "sentence, tokens, end"

    @property
    def max_tokens(self) -> int:
        """Longer texts are truncated; [CLS] and [SEP] count."""
        return min(self.config.max_tokens, self.config.text.positions)
