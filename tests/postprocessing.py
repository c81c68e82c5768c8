"""Sections ``postprocess`` for tests: that of validation in training, with changes."""

from typing import Any

from mrmodel.config.base import validate_section
from mrmodel.config.postprocess import VALIDATION, PostprocessConfig


def postprocess(**changes: Any) -> PostprocessConfig:
    """Changes of a mapping change only the keys that it names."""
    tree = VALIDATION.model_dump()
    for name, value in changes.items():
        tree[name] = tree.get(name, {}) | value if isinstance(value, dict) else value
    return validate_section(PostprocessConfig, tree, "postprocess")
