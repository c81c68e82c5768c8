"""``serving.json``: the post-processing of a packaged model, stored with its weights.

The stage ``package`` writes it from the section ``postprocess``; the `Predictor`, the registered
model and the stage ``evaluate`` read it, so a model is served exactly as it was scored.
"""

from __future__ import annotations

import logging
from pathlib import Path

from mrmodel.config.base import validate_section
from mrmodel.config.postprocess import VALIDATION, PostprocessConfig
from mrmodel.errors import CheckpointError, ConfigError, DataError, mistake_in
from mrmodel.files import read_json, write_json

log = logging.getLogger(__name__)

SERVING = "serving.json"
FORMAT = 1
# Default of `mrmodel predict` before serving.json was introduced.
_SUPPRESSION = 0.7


def write_serving(folder: Path, postprocess: PostprocessConfig) -> None:
    """Write serving.json of a model folder."""
    content = {"format": FORMAT, "postprocess": postprocess.model_dump()}
    write_json(folder / SERVING, content)


def read_serving(folder: Path) -> PostprocessConfig:
    """The post-processing of a model folder.

    Without serving.json (an imported model other than SG-DETR, or one of an earlier version) it has
    the earlier defaults, and a warning is logged.

    Raises:
        CheckpointError: serving.json is damaged or of an unknown format.
    """
    path = folder / SERVING
    try:
        raw = read_json(path)
    except FileNotFoundError:
        log.warning(
            "%s: no %s, so windows are made as before there was one; `dvc repro package` writes "
            "models/served/<model> with the values of params.yaml",
            folder,
            SERVING,
        )
        return VALIDATION.model_copy(update={"nms_iou": _SUPPRESSION})
    except (DataError, OSError) as error:
        raise CheckpointError(mistake_in(error)) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: written by another format than {FORMAT}; run `dvc repro package`"
        )
    try:
        return validate_section(PostprocessConfig, raw.get("postprocess"), "postprocess")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
