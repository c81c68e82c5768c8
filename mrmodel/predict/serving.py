"""``serving.json``: how a packaged model is served, stored with its weights.

The stage ``package`` writes its post-processing from the section ``postprocess``; the `Predictor`,
the registered model and the stage ``evaluate`` read it, so a model is served exactly as it was
scored. It also says whether the model was trained on rendered videos, which real ones are unlike.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mrmodel.config.base import validate_section
from mrmodel.config.postprocess import VALIDATION, PostprocessConfig
from mrmodel.errors import CheckpointError, ConfigError, DataError, mistake_in
from mrmodel.files import read_json, write_json

log = logging.getLogger(__name__)

SERVING = "serving.json"
FORMAT = 1
# Default of `mrmodel predict` before serving.json was introduced.
_SUPPRESSION = 0.7


def write_serving(
    folder: Path, postprocess: PostprocessConfig, *, rendered: bool | None = None
) -> None:
    """Write serving.json of a model folder; `rendered` as `trained_on_rendered` reads it."""
    content: dict[str, Any] = {"format": FORMAT, "postprocess": postprocess.model_dump()}
    if rendered is not None:
        content["rendered"] = rendered
    write_json(folder / SERVING, content)


def read_serving(folder: Path) -> PostprocessConfig:
    """The post-processing of a model folder.

    Without serving.json (an imported model other than SG-DETR, or one of an earlier version) it has
    the earlier defaults, and a warning is logged.

    Raises:
        CheckpointError: serving.json is damaged or of an unknown format.
    """
    path = folder / SERVING
    raw = _read(path)
    if raw is None:
        log.warning(
            "%s: no %s, so windows are made as before there was one; `dvc repro package` writes "
            "models/served/<model> with the values of params.yaml",
            folder,
            SERVING,
        )
        return VALIDATION.model_copy(update={"nms_iou": _SUPPRESSION})
    try:
        return validate_section(PostprocessConfig, raw.get("postprocess"), "postprocess")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def trained_on_rendered(folder: Path) -> bool | None:
    """Whether the model was trained on a rendered corpus; None: the folder does not say.

    Raises:
        CheckpointError: serving.json is damaged or of an unknown format.
    """
    rendered = (_read(folder / SERVING) or {}).get("rendered")
    if not isinstance(rendered, bool | None):
        rule = f"rendered = {rendered!r}: expected true or false"
        raise CheckpointError(f"{folder / SERVING}: {rule}")
    return rendered


def _read(path: Path) -> dict[str, Any] | None:
    try:
        raw = read_json(path)
    except FileNotFoundError:
        return None
    except (DataError, OSError) as error:
        raise CheckpointError(mistake_in(error)) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: written by another format than {FORMAT}; run `dvc repro package`"
        )
    return raw
