"""Parameter presets: ``sample.yaml`` is a complete params.yaml, the others override some values.

A preset file other than ``sample`` holds only the keys that differ; `render` returns the complete
file, including comments. Sections are merged key by key, except those in `REPLACED`, which a preset
replaces as a whole: an absent setting of a model has its published value, whatever the base has. A
key ``models.<name>`` instead changes settings of that model only.

Files in ``features`` name the streams of one kind of published features; one of them can be applied
on top of any preset.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mrmodel.config.schema import parse_config
from mrmodel.errors import ConfigError, UnknownNameError
from mrmodel.files import parse_yaml, write_text

BASE = "sample"
# Sections whose keys are names that a preset may add or remove; replaced as a whole.
REPLACED = ("models", "tune.space", "tune.post_hoc.space")


def names() -> list[str]:
    """All presets, the base first."""
    files = resources.files(__package__).iterdir()
    found = sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))
    return [BASE, *(name for name in found if name != BASE)]


def feature_sets() -> list[str]:
    """Names of all kinds of features that can be combined with a preset."""
    files = resources.files(__package__).joinpath("features").iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))


def summary(name: str) -> str:
    """The first comment line of a preset, which describes it."""
    return _comment(_read(name), "# preset:")


def feature_summary(name: str) -> str:
    """The first comment line of a kind of features."""
    return _comment(_read_features(name), "# features:")


def render(name: str, features: str | None = None) -> str:
    """The complete, validated params.yaml of a preset.

    Args:
        name: name of the preset.
        features: one of `feature_sets`, replacing the preset's own streams.

    Raises:
        UnknownNameError: no such preset, or no such kind of features.
        ConfigError: the preset does not give a valid parameter file.
    """
    text = _read(BASE)
    if name != BASE:
        text = overlay(text, changes(name))
    if features is not None:
        text = overlay(text, parse_yaml(_read_features(features)))
    parse_config(parse_yaml(text))
    return text


def apply(name: str, target: Path, features: str | None = None) -> None:
    """Write `render(name, features)` to `target`."""
    write_text(target, render(name, features))


def changes(name: str) -> dict[str, Any]:
    """The content of a preset file: the values that differ from the base."""
    tree: dict[str, Any] = parse_yaml(_read(name))
    return tree


def overlay(text: str, changes: Mapping[str, Any]) -> str:
    """`text` (YAML) updated with `changes`, keeping comments and order.

    Raises:
        ConfigError: a key of `changes` is not in `text`.
        DataError: `text` is not valid YAML.
    """
    loader = YAML()
    loader.preserve_quotes = True
    loader.width = 1000
    loader.representer.add_representer(float, _with_point)
    loader.representer.add_representer(str, _with_quotes)
    try:
        tree = loader.load(text)
    except YAMLError:
        parse_yaml(text)  # raises one line with the place
        raise
    merge(tree, changes)
    stream = StringIO()
    loader.dump(tree, stream)
    return stream.getvalue()


def merge(tree: MutableMapping[str, Any], changes: Mapping[str, Any], path: str = "") -> None:
    """Merge `changes` into a parameter tree by the rules of a preset.

    Raises:
        ConfigError: a key of `changes` is not in `tree`.
    """
    for key, value in changes.items():
        here = f"{path}.{key}" if path else key
        section, _, name = key.partition(".")
        if section not in tree or (name and name not in tree[section]):
            raise ConfigError(here, value, "is not a key of the base preset")
        if name:
            _extend(tree[section][name], value)
        elif isinstance(value, Mapping) and tree[section] is not None and here not in REPLACED:
            merge(tree[section], value, here)
        else:
            tree[section] = value


def _with_point(representer: Any, value: float) -> Any:
    """Write a float as all YAML readers know it: 1e-07 without a point is a text in YAML 1.1."""
    mantissa, mark, exponent = repr(value).partition("e")
    text = f"{mantissa}.0e{exponent}" if mark and "." not in mantissa else repr(value)
    return representer.represent_scalar("tag:yaml.org,2002:float", text)


def _with_quotes(representer: Any, value: str) -> Any:
    """Write a string as all YAML readers know it: off without quotes is no text in YAML 1.1."""
    try:
        is_text = yaml.safe_load(value) == value
    except yaml.YAMLError:
        is_text = False
    style = None if is_text else "'"
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _extend(tree: MutableMapping[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), MutableMapping):
            _extend(tree[key], value)
        else:
            tree[key] = value


def _read(name: str) -> str:
    known = names() if name != BASE else [BASE]
    if name not in known:
        raise UnknownNameError("preset", name, known)
    return resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _read_features(name: str) -> str:
    known = feature_sets()
    if name not in known:
        raise UnknownNameError("kind of features", name, known)
    folder = resources.files(__package__).joinpath("features")
    return folder.joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _comment(text: str, mark: str) -> str:
    for line in text.splitlines():
        if line.startswith(mark):
            return line.removeprefix(mark).strip()
    raise ConfigError("preset", text[:40], f"has no '{mark}' line")
