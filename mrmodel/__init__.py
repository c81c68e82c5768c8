"""Video moment retrieval and highlight detection: train, compare, promote and serve models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mrmodel.startup import collect_garbage_rarely, is_own_program
from mrmodel.version import __version__

if is_own_program():
    collect_garbage_rarely()

if TYPE_CHECKING:
    from mrmodel.config.schema import load_config
    from mrmodel.export.hits import Hit, hits_of
    from mrmodel.export.write import export_hits
    from mrmodel.library.library import Library
    from mrmodel.predict.predictor import Predictor
    from mrmodel.registry.load import load_champion
    from mrmodel.train.checkpoint import load_model

__all__ = [
    "Hit",
    "Library",
    "Predictor",
    "__version__",
    "export_hits",
    "hits_of",
    "load_champion",
    "load_config",
    "load_model",
]

# Name -> module. Imported on first use, because torch takes seconds and few commands need it.
_PUBLIC = {
    "Hit": "mrmodel.export.hits",
    "Library": "mrmodel.library.library",
    "Predictor": "mrmodel.predict.predictor",
    "export_hits": "mrmodel.export.write",
    "hits_of": "mrmodel.export.hits",
    "load_champion": "mrmodel.registry.load",
    "load_config": "mrmodel.config.schema",
    "load_model": "mrmodel.train.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
