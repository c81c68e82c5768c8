"""``mrmodel weights convert | lock | verify``: from published files to a locked weight set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from mrmodel.components import ComponentRegistry
from mrmodel.convert.encoders.recipe import Recipe
from mrmodel.convert.encoders.torchscript import is_torchscript, read_torchscript
from mrmodel.convert.safe_unpickle import load_plain, require_own_numbers, separated, unwrapped
from mrmodel.encoders.bundled_weights import WeightsLock
from mrmodel.encoders.user_weights import (
    CONFIG,
    FILES,
    LOCK,
    PUBLISHED,
    TENSORS,
    TOKENIZER,
    LockedSource,
    SetConfig,
    SetLock,
    WeightSet,
    chosen_sets,
    read_part,
    require_fit,
)
from mrmodel.errors import CheckpointError, DataError, WeightsError
from mrmodel.files import (
    atomic_path,
    parse_yaml,
    read_text,
    replaced_folder,
    sha256_of,
    write_json,
)

# Weight set -> its conversion recipe.
RECIPES = ComponentRegistry(
    "weight set",
    {
        "clip_b32": "mrmodel.convert.encoders.clip:RECIPE",
        "slowfast": "mrmodel.convert.encoders.slowfast:RECIPE",
        "internvideo2_1b": "mrmodel.convert.encoders.internvideo2:RECIPE",
        "blip2": "mrmodel.convert.encoders.blip2:RECIPE",
    },
)
# Index file of sharded weights.
_INDEX = ".safetensors.index.json"
# Keys under which trainers store the state dict.
_WRAPPERS = ("module", "model", "model_state", "state_dict")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert.

    Attributes:
        name: of the set.
        weights: published file.
        vocabulary: published vocabulary; None for a set without a text encoder.
        options: values of config.json that cannot be inferred from tensors.
        replace: overwrite an existing set.
        root: replaces the user's weights folder.
    """

    name: str
    weights: Path
    vocabulary: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    replace: bool = False
    root: Path | None = None


def convert(request: Conversion) -> SetLock:
    """Write a weight set from published files, without executing code in them.

    An existing set stays until the new one is complete.

    Raises:
        UnknownNameError: no such set.
        CheckpointError: a file cannot be read or is another network.
        WeightsError: the set exists already, or tensors do not match.
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
    files = [*parts_of(request.weights), *([request.vocabulary] if request.vocabulary else [])]
    sources = [LockedSource(file=file.name, sha256=sha256_of(file)) for file in files]
    with replaced_folder(weights.folder, *FILES, LOCK, ".*.tmp") as folder:
        write_json(folder / CONFIG, config.model_dump(mode="json"))
        with atomic_path(folder / TENSORS) as temporary:
            save_file(separated(tensors), temporary)
        if tokenizer is not None:
            with atomic_path(folder / TOKENIZER) as temporary:
                tokenizer.save(str(temporary))
        return WeightSet(request.name, folder.parent).write_lock(sources)


def lock_again(name: str, root: Path | None = None) -> SetLock:
    """Lock a set again, after its config.json was edited or its files were copied.

    Raises:
        UnknownNameError: no such set.
        WeightsError: a file is missing, invalid, or does not match the others.
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
    """Tensors of a published file by name: safetensors, state dict or TorchScript archive.

    A `recipe` may support another format.

    Raises:
        CheckpointError: the format is unknown, or the file refers to code.
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
    tensors = unwrapped(
        path, {n: value for n, value in values.items() if isinstance(value, Tensor)}
    )
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensor")
    require_own_numbers(path, tensors)
    return tensors


def parts_of(path: Path) -> list[Path]:
    """The files that hold the tensors: those of an index, else the file itself.

    Raises:
        CheckpointError: the index cannot be read, or names a file outside of its folder.
    """
    if not path.name.endswith(_INDEX):
        return [path]
    try:
        names = sorted(set(json.loads(read_text(path))["weight_map"].values()))
        parts = [path.parent / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path}: is no index of safetensors files") from None
    for part in parts:
        if not part.is_file():
            raise CheckpointError(f"{path}: names {part.name}, which is not beside it")
    return parts


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse options such as ``gelu=exact``; values are YAML.

    Raises:
        WeightsError: a text has no ``=``, or a value is not valid YAML.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            options[name] = parse_yaml(value)
        except DataError:
            equals = ""
        if not equals:
            raise WeightsError(f"option {text!r}: expected NAME=VALUE")
    return options


def with_options(config: SetConfig, options: Mapping[str, Any]) -> SetConfig:
    """The configuration with changed options.

    Raises:
        WeightsError: an option is unknown or its value invalid.
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
    """Check that the tensors are exactly those of all networks of a set.

    Raises:
        WeightsError: names are missing, unexpected, or of another shape (listed); or a value is
            NaN or infinite.
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


@dataclass(frozen=True, slots=True)
class Finding:
    """Result for one packaged file or one set, as a line."""

    line: str
    sound: bool


def verify_weights(names: Sequence[str] = (), root: Path | None = None) -> list[Finding]:
    """Check the files inside packages, then weight sets; continues after failures.

    Args:
        names: sets; empty: all in the weights folder.
        root: replaces the user's weights folder.

    Raises:
        UnknownNameError: no such set.
    """
    chosen = chosen_sets(names, root)
    lock = WeightsLock()
    findings = [_packaged(lock, name) for name in lock.files]
    return findings + [_set(WeightSet(name, root)) for name in chosen]


def _packaged(lock: WeightsLock, name: str) -> Finding:
    try:
        lock.path(name)
    except WeightsError as error:
        return Finding(str(error), False)
    return Finding(f"{name}: sound", True)


def _set(weights: WeightSet) -> Finding:
    try:
        weights.verify()
    except WeightsError as error:
        return Finding(str(error), False)
    return Finding(f"{weights.name}: sound, {weights.folder}", True)
