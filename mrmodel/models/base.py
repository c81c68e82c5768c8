"""Base class of the models: built from feature widths and settings, maps a Batch to windows.

A model declares its settings (`Settings`) and its losses (`criterion`), so the training loop, the
command line and the pipeline need no model-specific code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mrmodel.components import MODELS
from mrmodel.config.base import Section, validate_section
from mrmodel.config.postprocess import VALIDATION, PostprocessConfig
from mrmodel.config.search_space import SearchSpace
from mrmodel.losses.criterion import Criterion
from mrmodel.models.settings import SUPPRESSION
from mrmodel.types import Batch, ModelOutput, Targets


class MomentModel(nn.Module, ABC):
    """A network that predicts windows and clip scores for a query.

    Subclasses take ``(video_dim, text_dim, settings)`` and set `Settings`, the section of
    params.yaml below ``models.<name>``; `settings` is the instance the model was built with.

    Attributes:
        search_space: training dimensions that a search may change; short names, see
            `mrmodel.config.search_space`.
        post_hoc_space: dimensions that a search may change after training, on cached detections.
        validation: post-processing used for validation during training, regardless of params.yaml.
    """

    Settings: ClassVar[type[Section]]
    search_space: ClassVar[SearchSpace] = {}
    post_hoc_space: ClassVar[SearchSpace] = SUPPRESSION
    settings: Section
    validation: PostprocessConfig = VALIDATION

    @abstractmethod
    def forward(
        self, batch: Batch, targets: Targets | None = None, progress: float = 0.0
    ) -> ModelOutput:
        """Windows and clip scores of a batch; `aux` and loss-only tensors in training mode only.

        Args:
            batch: the input.
            targets: the ground truth, in training, for models that build inputs from it (denoising
                or auxiliary queries); other models ignore it.
            progress: fraction of the training that is done, in [0, 1). Training inputs such as
                noise may depend on it, predictions do not.
        """

    def host_inputs(
        self, batch: Batch, targets: Targets, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """What training makes from annotations and chance alone, for `Targets.host`.

        It is made on the CPU where the batch is built, so that a training step neither waits for
        the device nor has shapes that depend on its numbers. Most models need nothing.

        Args:
            batch: the input; only its lengths, ids and text keys are read.
            targets: the ground truth, on the CPU.
            generator: of all random choices, on the CPU.
        """
        return {}

    @classmethod
    def check_streams(
        cls, settings: Mapping[str, Any], video_dims: Sequence[int], text_dims: Sequence[int]
    ) -> None:
        """Reject feature streams that these settings do not support; most models accept any.

        Args:
            settings: the mapping ``models.<name>`` of params.yaml.
            video_dims: channels of each video stream, in the order of concatenation.
            text_dims: the same of the text streams.

        Raises:
            ConfigError: names the setting that does not fit.
        """

    @abstractmethod
    def criterion(self) -> Criterion:
        """The losses that train this model, with their weights."""


def build_model(
    name: str, video_dim: int, text_dim: int, settings: Mapping[str, Any]
) -> MomentModel:
    """A freshly initialised model.

    Args:
        name: a name of `components.MODELS`.
        video_dim: Dv, channels of the prepared clip features, temporal end-points included.
        text_dim: Dt, channels of the prepared token features.
        settings: the mapping ``models.<name>`` of params.yaml; absent keys default to the
            published values.

    Raises:
        UnknownNameError: no such model.
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    model_class: type[MomentModel] = MODELS.get(name)
    section = validate_section(model_class.Settings, dict(settings), f"models.{name}")
    model: MomentModel = model_class(video_dim, text_dim, section)
    return model
