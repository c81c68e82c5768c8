"""The models; `build_model` makes one from its name, the feature widths and its settings."""

from mrmodel.models.base import MomentModel, build_model

__all__ = ["MomentModel", "build_model"]
