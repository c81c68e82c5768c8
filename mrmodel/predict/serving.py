"""``serving.json``: the post-processing of a packaged model, stored with its weights.

The stage ``package`` writes it from the section ``postprocess``; the `Predictor`, the registered
model and the stage ``evaluate`` read it, so a model is served exactly as it was scored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrmodel.config.base import validate_section
from mrmodel.config.postprocess import VALIDATION, PostprocessConfig
from mrmodel.errors import CheckpointError, ConfigError
from mrmodel.files import write_json
from mrmodel.train.checkpoint import CONFIG

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

    Without serving.json (an imported model, or one of an earlier version) it is read from
    config.json, or else has the earlier defaults, and a warning is logged.

    Raises:
        CheckpointError: serving.json or config.json is damaged or of an unknown format.
    """
    path = folder / SERVING
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        log.warning(
            "%s: no %s, so windows are made as before there was one; `dvc repro package` writes "
            "models/served/<model> with the values of params.yaml",
            folder,
            SERVING,
        )
        return _of_earlier_version(folder)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: written by another format than {FORMAT}; run `dvc repro package`"
        )
    try:
        return validate_section(PostprocessConfig, raw.get("postprocess"), "postprocess")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _of_earlier_version(folder: Path) -> PostprocessConfig:
    """The section `infer` of the model's settings in config.json, if any, over the defaults."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error!r}") from error
    iou_thr = VALIDATION.fusion.iou_thr if settings.get("preset") == "robust" else 0.55
    infer = settings.get("infer", {})
    tree = VALIDATION.model_dump() | {"nms_iou": _SUPPRESSION}
    tree["alpha"] = infer.get("alpha", tree["alpha"])
    _take(
        tree["anchors"], infer, {"top_k": "atss_topk", "nms_iou": "atss_nms", "keep": "atss_keep"}
    )
    fusion = {"enabled": None, "iou_thr": iou_thr} | infer.get("wbf", {})
    fusion["enabled"] = fusion["enabled"] is not False  # null meant: if there are anchors
    tree["fusion"] |= fusion
    try:
        return validate_section(PostprocessConfig, tree, "settings.infer")
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error


def _take(target: dict[str, Any], source: Mapping[str, Any], names: Mapping[str, str]) -> None:
    target |= {new: source[old] for new, old in names.items() if old in source}
