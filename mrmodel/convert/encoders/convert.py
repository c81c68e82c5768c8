"""``mrmodel weights convert | lock | verify``: from published files to a locked weight set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mrmodel.components import Registry
from mrmodel.convert.encoders.recipe import Recipe
from mrmodel.convert.encoders.torchscript import is_torchscript, read_torchscript
from mrmodel.convert.safe_unpickle import load_plain
from mrmodel.encoders.user_weights import (
    CONFIG,
    LOCK,
    PUBLISHED,
    TENSORS,
    TOKENIZER,
    LockedSource,
    SetConfig,
    SetLock,
    WeightSet,
    read_part,
    require_fit,
)
from mrmodel.errors import CheckpointError, WeightsError
from mrmodel.files import atomic_path, sha256_of, write_json

# Set -> how its published files are read.
RECIPES = Registry(
    "weight set",
    {
        "clip_b32": "mrmodel.convert.encoders.clip:RECIPE",
        "slowfast": "mrmodel.convert.encoders.slowfast:RECIPE",
        "internvideo2_1b": "mrmodel.convert.encoders.internvideo2:RECIPE",
        "blip2": "mrmodel.convert.encoders.blip2:RECIPE",
    },
)
# Weights in several files: an index beside them says which tensor is where.
_INDEX = ".safetensors.index.json"
# What trainers wrap around a state dict.
_WRAPPERS = ("module", "model", "model_state", "state_dict")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert.

    Attributes:
        name: of the set.
        weights: published file.
        vocabulary: published vocabulary; None for a set without sentences.
        options: values of config.json that no tensor says.
        replace: write over a set that is there.
        root: another weights folder than the user's.
    """

    name: str
    weights: Path
    vocabulary: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    replace: bool = False
    root: Path | None = None


def convert(request: Conversion) -> SetLock:
    """Write a weight set from published files, without running code of theirs.

    The lock is written last: a conversion that was killed leaves no set that loads.

    Raises:
        UnknownNameError: no such set.
        CheckpointError: a file cannot be read or is another network.
        WeightsError: the set is there already, or tensors do not fit.
    """
    recipe: Recipe = RECIPES.get(request.name)
    weights = WeightSet(request.name, request.root)
    if (weights.folder / LOCK).exists() and not request.replace:
        raise WeightsError(f"{weights.folder} holds a set already; --force replaces it")
    _require_vocabulary(request, recipe)
    config, tensors = recipe.convert(read_tensors(request.weights, recipe))
    config = with_options(config, request.options)
    require_set(request.weights, recipe, config, tensors)
    tokenizer = _tokenizer(request.vocabulary, recipe, config)
    (weights.folder / LOCK).unlink(missing_ok=True)
    write_json(weights.folder / CONFIG, config.model_dump(mode="json"))
    with atomic_path(weights.folder / TENSORS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    if tokenizer is not None:
        with atomic_path(weights.folder / TOKENIZER) as temporary:
            tokenizer.save(str(temporary))
    files = [*parts_of(request.weights), *([request.vocabulary] if request.vocabulary else [])]
    sources = [LockedSource(file=file.name, sha256=sha256_of(file)) for file in files]
    return weights.write_lock(sources)


def lock_again(name: str, root: Path | None = None) -> SetLock:
    """Lock a set as it is now, after its config.json was changed or its files came from elsewhere.

    Raises:
        UnknownNameError: no such set.
        WeightsError: a file is missing, breaks a rule, or does not fit the others.
    """
    recipe: Recipe = RECIPES.get(name)
    weights = WeightSet(name, root)
    config = read_part(recipe.config, weights.present(CONFIG))
    path = weights.present(TENSORS)
    require_set(path, recipe, config, load_plain(path))
    if recipe.text is not None:
        _tokenizer(weights.present(TOKENIZER), recipe, config)
    old = weights.folder / LOCK
    sources = weights.lock().sources if old.is_file() else []
    return weights.write_lock(sources)


def read_tensors(path: Path, recipe: Recipe | None = None) -> dict[str, Tensor]:
    """Tensors of a published file by name: safetensors, a state dict, a TorchScript archive.

    A `recipe` may know a further format.

    Raises:
        CheckpointError: it is none of them, or names code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}")
    own = recipe.read(path) if recipe is not None and recipe.read is not None else None
    if own is not None:
        return own
    if is_torchscript(path):
        return read_torchscript(path)
    if path.name.endswith(_INDEX):
        return {
            name: tensor for part in parts_of(path) for name, tensor in load_plain(part).items()
        }
    loaded = load_plain(path)
    inner = next((key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
    values = loaded if inner is None else loaded[inner]
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor")
    return tensors


def parts_of(path: Path) -> list[Path]:
    """The files that hold the tensors: those that an index names, else the file itself.

    Raises:
        CheckpointError: the index cannot be read, or names a file that is not beside it.
    """
    if not path.name.endswith(_INDEX):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        parts = [path.parent / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: is no index of safetensors files") from None
    for part in parts:
        if not part.is_file():
            raise CheckpointError(f"{path}: names {part.name}, which is not beside it")
    return parts


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """``gelu=exact`` as a name and a value; values are read as YAML.

    Raises:
        WeightsError: a text has no ``=``, or a value is no YAML.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise WeightsError(f"option {text!r}: expected NAME=VALUE")
    return options


def with_options(config: SetConfig, options: Mapping[str, Any]) -> SetConfig:
    """The configuration with other choices.

    Raises:
        WeightsError: no such choice, or a value that it cannot have.
    """
    try:
        return type(config).model_validate(config.model_dump() | dict(options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        found = f"{place} = {first['input']!r}: " if place else ""
        known = ", ".join(type(config).model_fields)
        raise WeightsError(f"option {found}{first['msg']} (known: {known})") from None


def require_set(
    source: Path, recipe: Recipe, config: SetConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Check that the tensors are those of all networks of a set, no more and no less.

    Raises:
        WeightsError: lists what is missing, left over, or of another shape; or a number is none.
    """
    with torch.device("meta"):
        networks = recipe.networks(config)
    wanted = {name: tensor for part in networks for name, tensor in part.state_dict().items()}
    require_fit(source, wanted, tensors)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{source}: {name} holds NaN or infinity")


def _require_vocabulary(request: Conversion, recipe: Recipe) -> None:
    if recipe.text is None and request.vocabulary is not None:
        raise WeightsError(f"{request.name} reads no sentences: it needs no vocabulary")
    if recipe.text is not None and request.vocabulary is None:
        wanted = PUBLISHED[request.name].files["vocabulary"]
        raise WeightsError(f"{request.name} needs --vocabulary: {wanted}")


def _tokenizer(path: Path | None, recipe: Recipe, config: SetConfig) -> Tokenizer | None:
    if path is None or recipe.text is None:
        return None
    tokenizer = recipe.text.tokenizer(path)
    recipe.text.require_size(path, tokenizer, config)
    return tokenizer
