"""Model folders (``model.safetensors``, ``config.json``) and, apart from them, the resume state.

The model folder is a DVC output and holds nothing that could run code. The resume state is kept
outside of it (DVC deletes a stage's outputs before running it) and is deleted when training ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrmodel.components import MODELS
from mrmodel.config.base import ClipLength, Count, first_mistake, validate_section
from mrmodel.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FeatureMismatch,
    UnknownNameError,
    mistake_in,
    reason_of,
)
from mrmodel.files import atomic_path, read_object, stand_in, write_json
from mrmodel.models.base import MomentModel, build_model
from mrmodel.version import __version__

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1
# SG-DETR's format since it follows the published code: other settings, other tensors.
FORMATS = {"sg_detr": 2}
STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, slots=True)
class ModelStream:
    """A feature stream of a model: name of its encoder, width and fingerprint digest.

    Streams made by other programs have no fingerprint and cannot be checked.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    dim: Count
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything needed to rebuild the model and to prepare its input.

    `settings` are the model's own; `clip_len_s`, `max_clips` and `max_tokens` shape the input;
    `training` records the origin of the weights and is not read by the code.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: str
    settings: dict[str, Any]
    video_streams: tuple[ModelStream, ...]
    text_streams: tuple[ModelStream, ...]
    clip_len_s: ClipLength
    max_clips: Count | None
    max_tokens: Count
    protocol: str
    training: dict[str, Any]

    @property
    def video_dim(self) -> int:
        """Channels of a prepared clip: all streams and the two temporal end-points."""
        return sum(stream.dim for stream in self.video_streams) + 2

    @property
    def text_dim(self) -> int:
        """Channels of a prepared token."""
        return sum(stream.dim for stream in self.text_streams)

    def build(self) -> MomentModel:
        """A model of this configuration, initialised from torch's global generator."""
        return build_model(self.model, self.video_dim, self.text_dim, self.settings)


_CONFIG_READER = TypeAdapter(ModelConfig)


def save_model(folder: Path, model: MomentModel, config: ModelConfig) -> None:
    """Write a model folder; config.json is written last, so a folder with it is complete."""
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    versions = {"mrmodel": __version__, "torch": str(torch.__version__).split("+")[0]}
    number = FORMATS.get(config.model, FORMAT)
    write_json(folder / CONFIG, {"format": number, **asdict(config), "versions": versions})


def read_model_config(folder: Path) -> ModelConfig:
    """Read config.json of a model folder.

    Raises:
        CheckpointError: no such folder, or its format is not supported.
    """
    path = folder / CONFIG
    try:
        raw = read_object(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no {CONFIG} there, so this is not a model folder "
            "(a trained one is models/served/<name> after `make repro`)" + _unfetched(path)
        ) from None
    except (DataError, OSError) as error:
        raise CheckpointError(mistake_in(error)) from None
    found, expected = raw.pop("format", None), FORMATS.get(str(raw.get("model")), FORMAT)
    if found == FORMAT and expected != FORMAT:
        raise CheckpointError(
            f"{path}: {raw['model']} of an earlier version, which this one replaces: train again, "
            "or serve its registered version, which carries its code (docs/howto/upgrade.md)"
        )
    # `ModelConfig.build` names an unknown model.
    if found != expected and raw.get("model") in (None, *MODELS):
        raise CheckpointError(f"{path}: written by another format than {expected}")
    raw.pop("versions", None)
    try:
        return _CONFIG_READER.validate_json(json.dumps(raw))
    except ValidationError as error:
        raise CheckpointError(f"{path}: {first_mistake(error, with_value=True)}") from None


def load_model(folder: Path, device: torch.device | str = "cpu") -> tuple[MomentModel, ModelConfig]:
    """Build the model of a folder and load its weights, in eval mode.

    Raises:
        CheckpointError: missing file, unknown model, or mismatched tensors, each named.
    """
    config = read_model_config(folder)
    try:
        model = config.build()
    except (ConfigError, UnknownNameError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    load_weights(model, folder)
    return model.to(device).eval(), config


def load_weights(model: MomentModel, folder: Path) -> None:
    """Copy the weights of a model folder into `model`; all names and shapes must match."""
    path = folder / WEIGHTS
    tensors = read_tensors(path)
    faults = _misfits(model.state_dict(), tensors)
    if faults:
        raise CheckpointError(
            f"{path} does not fit: {'; '.join(faults[:5])} ({len(faults)} in all)"
        )
    model.load_state_dict(tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, all of them finite.

    Raises:
        CheckpointError: it is missing, damaged, or only a pointer; or it holds NaN or infinity.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent}: no {path.name} there{_unfetched(path)}") from None
    except OSError as error:
        rule = reason_of(IsADirectoryError() if path.is_dir() else error)
        raise CheckpointError(f"{path}: {rule}") from None
    except SafetensorError as error:
        found = stand_in(path)
        rule = f"it is {found}" if found else f"a download that broke off? ({error})"
        raise CheckpointError(f"{path}: is no safetensors file: {rule}") from None
    require_finite(path, tensors)
    return tensors


def require_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that weights are numbers.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
    """
    # A sum shows almost all of them, and takes a fraction of the time of reading the file.
    doubtful = (name for name, value in tensors.items() if not value.sum().isfinite())
    wrong = [name for name in doubtful if not tensors[name].isfinite().all()]
    if wrong:
        rest = f" (and {len(wrong) - 1} other tensors)" if wrong[1:] else ""
        rule = f"{wrong[0]} holds NaN or infinity{rest}; the training that made it failed"
        raise CheckpointError(f"{path}: {rule}")


def _unfetched(path: Path) -> str:
    pointers = [Path(f"{one}.dvc") for one in (path, path.parent)]
    found = [pointer for pointer in pointers if pointer.exists()]
    return f"; run `dvc pull {found[0]}`" if found else ""


def load_start(model: MomentModel, folder: Path, config: ModelConfig) -> None:
    """Load the initial weights of training into `model`, which `config` describes.

    Raises:
        CheckpointError: the folder holds another model, or one with another number of attention
            heads (which the shapes do not show); or a tensor does not match.
        FeatureMismatch: it was trained on other features.
    """
    start = read_model_config(folder)
    if start.model != config.model:
        raise CheckpointError(f"{folder}: holds a {start.model}, not a {config.model}")
    require_same_features(folder, start, config)
    theirs, ours = _heads(start), _heads(config)
    if theirs != ours:
        where = f"models.{config.model}.heads"
        raise CheckpointError(f"{folder}: its model has {theirs} heads, {where} is {ours}")
    load_weights(model, folder)


def require_same_features(folder: Path, model: ModelConfig, here: ModelConfig) -> None:
    """Check that the model of a folder uses the streams that `here` has.

    Raises:
        FeatureMismatch: it uses others. Streams of other programs are compared by name and width.
    """
    for kind in ("video_streams", "text_streams"):
        theirs, ours = getattr(model, kind), getattr(here, kind)
        if not _same_rows(theirs, ours):
            names = [", ".join(stream.name for stream in streams) for streams in (theirs, ours)]
            detail = " of another version" if names[0] == names[1] else ""
            raise FeatureMismatch(
                f"{folder}: its model reads {names[0]}; features.{kind} gives {names[1]}{detail}"
            )


def _heads(config: ModelConfig) -> int | None:
    settings = MODELS.get(config.model).Settings
    section = validate_section(settings, config.settings, f"models.{config.model}")
    heads: int | None = getattr(section, "heads", None)
    return heads


def _same_rows(theirs: tuple[ModelStream, ...], ours: tuple[ModelStream, ...]) -> bool:
    """Whether two models use the same features; without a fingerprint the names are compared."""
    return len(theirs) == len(ours) and all(
        (a.name, a.dim) == (b.name, b.dim) and a.fingerprint in (None, b.fingerprint)
        for a, b in zip(theirs, ours, strict=True)
    )


def _misfits(expected: dict[str, Tensor], found: dict[str, Tensor]) -> list[str]:
    faults = [f"{name} is missing" for name in expected.keys() - found.keys()]
    faults += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if expected[name].shape != found[name].shape:
            want, got = tuple(expected[name].shape), tuple(found[name].shape)
            faults.append(f"{name} has shape {got}, expected {want}")
    return sorted(faults)


def save_resume_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state of a running training atomically."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_resume_state(path: Path) -> dict[str, Any] | None:
    """The state of an interrupted training, or None."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        rule = f"cannot be read ({type(error).__name__}); delete it, and the training begins anew"
        raise CheckpointError(f"{path}: {rule}") from None
    return state
