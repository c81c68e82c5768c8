"""The models; `build_model` makes one from its name, the feature widths and its settings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrmodel.models.base import MomentModel, build_model

__all__ = ["MomentModel", "build_model"]


def __getattr__(name: str) -> Any:
    """A name of `__all__`, imported when first used: the settings need no PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mrmodel.models import base

    return getattr(base, name)
