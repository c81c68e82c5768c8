"""One dialect of YAML, that of DVC: what runs is what DVC records."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dvc.utils.serialize import load_yaml, parse_yaml_for_update

from flows.pipeline import main as pipeline
from mrmodel import presets
from mrmodel.cli.main import cli
from mrmodel.config.schema import load_config, parse_config
from mrmodel.convert.encoders.convert import parse_options
from mrmodel.errors import ConfigError, DataError, WeightsError
from mrmodel.files import digest_of, parse_yaml, read_yaml
from tests.project import ROOT

PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")

# What YAML 1.1 (of many other programs) reads otherwise: value and what DVC makes of it.
READ: dict[str, Any] = {
    "010": 10,
    "0777": 777,
    "08": 8,
    "0o10": 8,
    "0x1F": 31,
    "0b101": 5,
    "1_000": 1000,
    "1:30": "1:30",
    "1:30.5": "1:30.5",
    "190:20:30": "190:20:30",
    "yes": "yes",
    "No": "No",
    "on": "on",
    "OFF": "OFF",
    "y": "y",
    "1e3": 1000.0,
    "1e-3": 0.001,
    "-1E5": -100000.0,
    "+.5": 0.5,
    ".inf": float("inf"),
    "~": None,
    "TRUE": True,
    "'010'": "010",
}


@pytest.mark.parametrize("written", READ)
def test_a_value_is_what_dvc_records(written: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"a: {written}\nb:\n- {written}\n")
    found = read_yaml(file)
    assert found == load_yaml(str(file)) == {"a": READ[written], "b": [READ[written]]}
    assert type(found["a"]) is type(READ[written])
    assert parse_yaml_for_update(file.read_text(), "x") == found
    assert parse_yaml(written) == READ[written]


def params_with(old: str, new: str) -> str:
    assert PARAMS.count(old) == 1
    return PARAMS.replace(old, new)


def test_the_seed_that_runs_is_the_one_that_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    (line,) = [line for line in PARAMS.splitlines() if line.startswith("seed: ")]
    file.write_text(params_with(f"\n{line}\n", "\nseed: 010\n"))
    assert load_config(file).seed == load_yaml(str(file))["seed"] == 10


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("1:30", "seed = '1:30': input should be a valid integer"),
        ("1e3", "seed = 1000.0: input should be a valid integer"),
        ("'7'", "seed = '7': input should be a valid integer, and with quotes it is a text"),
        ("on", "seed = 'on': input should be a valid integer"),
    ],
)
def test_what_is_no_number_is_refused_by_name(value: str, rule: str) -> None:
    tree = parse_yaml(PARAMS) | parse_yaml(f"seed: {value}")
    with pytest.raises(ConfigError) as caught:
        parse_config(tree)
    assert str(caught.value) == rule


@pytest.mark.parametrize("value", ["yes", "No", "on", "OFF"])
def test_words_for_truth_values_are_refused_by_name(value: str) -> None:
    tree = parse_yaml(PARAMS)
    tree["tracking"]["enabled"] = parse_yaml(value)
    with pytest.raises(ConfigError, match=f"tracking.enabled = '{value}': .* write true or false"):
        parse_config(tree)


TWICE = {
    "top": ("seed: 7\nb: 1\nseed: 99\n", "seed", 1, 3),
    "below": ("a:\n  x: 1\nb:\n  x: 1\n  y: {x: 1}\n  'x': 2\n", "x", 4, 6),
    "in a flow": ("a: {x: 1,\n  y: 2,\n  x: 3}\n", "x", 1, 3),
    "in a list": ("- {a: 1}\n- a: 1\n  b: 2\n  a: 1\n", "a", 2, 4),
    "same line": ("a: {x: 1, x: 1}\n", "x", 1, 1),
    "merge": ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a\n", "<<", 3, 4),
    "loop": ("a: &a [*a]\nb: 1\nb: 2\n", "b", 2, 3),
    "null": ("~: 1\n~: 2\n", "~", 1, 2),
}


@pytest.mark.parametrize("case", TWICE)
def test_a_key_given_twice_names_both_lines(case: str, tmp_path: Path) -> None:
    text, key, first, second = TWICE[case]
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_yaml(file)
    rule = f"the key {key!r} is given twice; it is in line {first} already"
    assert str(caught.value) == f"{file}:{second}: {rule}"


def test_config_check_says_it(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS + "\nseed: 99\n")
    first = PARAMS.splitlines().index(next(s for s in PARAMS.splitlines() if s[:5] == "seed:")) + 1
    done = CliRunner().invoke(cli, ["config", "check", str(file)])
    assert isinstance(done.exception, DataError)
    assert f"'seed' is given twice; it is in line {first} already" in str(done.exception)
    with pytest.raises(DataError, match=f"line {first} already"):
        presets.overlay(file.read_text(), {"seed": 3})


@pytest.mark.parametrize(
    ("text", "line", "rule"),
    [
        ("a: 1\nb: [1\n", 3, "not valid YAML: did not find expected ',' or ']'"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML: "),
        ("a: 1\n--- \nb: 2\n", 2, "not valid YAML: but found another document"),
        ("a: !!python/object:os.system {}\n", 1, "not valid YAML: could not determine"),
        ("a: 2020-13-45\n", None, "not valid YAML: month must be in 1..12"),
        ("a: !!int\n", None, "not valid YAML: "),
        ("a: " + "9" * 5000, None, "not valid YAML: Exceeds the limit"),
        ("a: \0\n", None, "not valid YAML: "),
        ("a: \ud800\n", None, "not valid YAML: "),
        ("a: *b\n", 1, "not valid YAML: found undefined alias"),
        ("[" * 100_000 + "]" * 100_000, None, "not valid YAML: lists or mappings in more than"),
        ("{a: " * 100_000, None, "not valid YAML: lists or mappings in more than"),
        ("- " * 100_000, None, "not valid YAML: lists or mappings in more than"),
    ],
)
def test_broken_files_are_one_line(text: str, line: int | None, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_yaml(text, "p.yaml")
    place = "p.yaml" if line is None else f"p.yaml:{line}"
    assert str(caught.value).startswith(f"{place}: {rule}")
    assert "\n" not in str(caught.value)


def test_options_of_commands_have_the_same_dialect() -> None:
    assert parse_options(["a=010", "b=off", "c=1e3"]) == {"a": 10, "b": "off", "c": 1000.0}
    with pytest.raises(WeightsError, match="expected NAME=VALUE"):
        parse_options(["a={x: 1, x: 2}"])
    done = CliRunner().invoke(pipeline, ["--set", "corpus={name: a, name: b}"])
    assert isinstance(done.exception, ConfigError)
    assert "--set = 'corpus={name: a, name: b}': the key 'name' is given twice" in str(
        done.exception
    )


def test_our_files_have_one_meaning() -> None:
    """Their digests and what DVC has recorded stay: both dialects read the same objects."""
    texts = [PARAMS, presets.render("qvhighlights_sg_detr")]
    texts += [presets._read(name) for name in presets.names()]
    texts += [presets._read_features(name) for name in presets.feature_sets()]
    words = resources.files("mrmodel.pretraining.intervid").joinpath("caption_words.yaml")
    texts += [words.read_text(encoding="utf-8")]
    files = ("dvc.yaml", "studies/params.yaml", "studies/dvc.yaml")
    texts += [(ROOT / name).read_text(encoding="utf-8") for name in files]
    for text in texts:
        ours, other = parse_yaml(text), yaml.load(text, yaml.CSafeLoader)
        assert ours == other
        assert digest_of(ours) == digest_of(other)


@pytest.mark.parametrize("value", ["off", "010", "0o10", "1e3", "1:30", "~", "a: b", "yes"])
def test_texts_are_written_so_that_each_dialect_reads_texts(value: str) -> None:
    text = presets.overlay("a: x\n", {"a": value})
    assert parse_yaml(text) == {"a": value}
    assert yaml.safe_load(text) == {"a": value}
