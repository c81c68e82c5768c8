"""SlowFast R50 8x8 streams, as HERO's extractor and lighthouse compute them."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from torch import Tensor

from mrmodel.encoders.networks.slowfast import SlowFast, SlowFastConfig
from mrmodel.encoders.torch_base import UserWeightsVideoEncoder, normalise_pixels
from mrmodel.video.sampling import FrameSampling, SamplingRule

# The same for all three channels; the extractor adds 1e-8 to the std.
_MEAN, _SPREAD = (0.45,) * 3, (0.225 + 1e-8,) * 3


class SlowFastVideoEncoder(UserWeightsVideoEncoder[SlowFastConfig]):
    """Pooled features of both pathways, slow before fast, non-negative."""

    name: ClassVar[str] = "slowfast.video2304"
    set_name: ClassVar[str] = "slowfast"
    dim: ClassVar[int] = 2304
    network = SlowFast
    gpu_batch: ClassVar[int] = 32

    @cached_property
    def config(self) -> SlowFastConfig:
        """Sizes of the network, and its frame sampling."""
        config = self.weights.config(SlowFastConfig)
        self.weights.require_width("stages: width of both paths", config.width, self.dim)
        return config

    @cached_property
    def sampling(self) -> FrameSampling:
        """HERO's frames of a 30-fps stream, or evenly spread ones; centre crop."""
        config = self.config
        rule: SamplingRule = "hero" if config.compat == "hero" else "middle"
        size = (config.image_size, config.image_size)
        return FrameSampling(config.frames, size, rule, "bicubic", "crop")

    def _run(self, frames: Tensor) -> Tensor:
        pixels = normalise_pixels(frames, _MEAN, _SPREAD, self.config.dtype)
        rows: Tensor = self._model(pixels.transpose(1, 2))
        return rows
