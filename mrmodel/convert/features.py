"""Compares the input features of a published checkpoint with `features.prepare`.

Both divide each stream's rows by their norm + 1e-5, concatenate, and append the temporal endpoint
features (TEF). Checkpoints trained otherwise are converted or rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mrmodel.convert.safe_unpickle import PublishedCheckpoint
from mrmodel.errors import CheckpointError
from mrmodel.features.prepare import TEF_DIM

_VIDEO, _TEXT = "input_vid_proj.0.", "input_txt_proj.0."
# First LayerNorm of the projection -> its name in SG-DETR.
_SG_DETR_NORMS = {
    _VIDEO: "input_vid_proj.linear_mapper.0.mapper.0.weight",
    _TEXT: "input_txt_proj.linear_mapper.0.mapper.0.weight",
}


def video_width(file: PublishedCheckpoint) -> int:
    """Channels of all video streams together, without TEF."""
    return _width(file, _VIDEO) - TEF_DIM


def text_width(file: PublishedCheckpoint) -> int:
    """Channels of all text streams together."""
    return _width(file, _TEXT)


def check_features(model_name: str, file: PublishedCheckpoint) -> None:
    """Reject a checkpoint whose input features are not supported.

    Raises:
        CheckpointError: names the option concerned.
    """
    options = file.options
    code = options.get("position_embedding", "sine")
    if code != "sine":
        raise CheckpointError(f"position_embedding is {code!r}; only sine codes are known here")
    mode = options.get("ctx_mode", "video_tef")
    if "tef" not in str(mode):
        rule = "mrmodel always gives the two temporal end-points to a model"
        raise CheckpointError(f"ctx_mode is {mode!r}: the model reads no end-points; {rule}")
    if options.get("no_norm_vfeat"):
        rule = "mrmodel always normalises the rows of each stream"
        raise CheckpointError(f"no_norm_vfeat is set: the model reads rows as they are; {rule}")
    if model_name == "qd_detr" and not file.lighthouse and options.get("a_feat_dir"):
        rule = "twice, behind the video and behind the audio channels; mrmodel has them once"
        raise CheckpointError(f"a_feat_dir is set: the model reads the temporal end-points {rule}")


def end_points_last(file: PublishedCheckpoint) -> dict[str, Tensor]:
    """Reorder the channels of the first projection to our order.

    With audio, lighthouse and VideoLights concatenate [video; TEF; audio]; here TEF comes last. The
    first LayerNorm is invariant to channel order, so its weights and the columns of the following
    Linear can be permuted without changing the output.

    Raises:
        CheckpointError: the file's options give more audio channels than it has channels.
    """
    audio = file.options.get("a_feat_dim") or 0
    if not audio:
        return file.tensors
    width = _width(file, _VIDEO)
    if not isinstance(audio, int) or not 0 < audio <= width - TEF_DIM:
        rule = f"expected a number of channels within the {width} of the first projection"
        raise CheckpointError(f"a_feat_dim is {audio!r}; {rule}")
    video = width - audio - TEF_DIM
    channels = torch.arange(width)
    end_points = channels[video : video + TEF_DIM]
    order = torch.cat((channels[:video], channels[video + TEF_DIM :], end_points))
    moved = {
        f"{_VIDEO}LayerNorm.weight": 0,
        f"{_VIDEO}LayerNorm.bias": 0,
        f"{_VIDEO}net.1.weight": 1,
        f"{_VIDEO}net.1.conv1d.weight": 1,
    }
    return {
        name: tensor.index_select(moved[name], order) if name in moved else tensor
        for name, tensor in file.tensors.items()
    }


def notes(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Remarks about the file for the user."""
    found = []
    if not options:
        found.append("the file has no options: what shapes cannot tell has its published value")
    if options.get("no_norm_tfeat") or options.get("dset_name") == "tvsum":
        found.append(
            "trained on text rows that were not normalised; here they are, which the LayerNorm "
            "behind them all but undoes"
        )
    return tuple(found)


def _width(file: PublishedCheckpoint, projection: str) -> int:
    name = f"{projection}LayerNorm.weight"
    if _SG_DETR_NORMS[projection] in file.shapes:
        name = _SG_DETR_NORMS[projection]
    if len(file.shapes.get(name, ())) != 1:
        raise CheckpointError(f"{name} is missing, and the width of the features follows from it")
    return file.shapes[name][0]
