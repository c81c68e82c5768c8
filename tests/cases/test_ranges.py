"""Every option and setting that sizes something has a range; devices have names."""

from __future__ import annotations

import copy
import json
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import ValidationError

from mrmodel import presets
from mrmodel.cli.main import COMMANDS, cli, main
from mrmodel.components import MODELS
from mrmodel.config.base import Section
from mrmodel.config.schema import Config, parse_config
from mrmodel.devices import pick_device
from mrmodel.encoders.torch_base import DEVICE_VARIABLE, encoder_device
from mrmodel.errors import ConfigError
from mrmodel.stages.runner import run_command

ROW = {"qid": 1, "query": "a cat", "vid": "v", "duration": 8.0, "relevant_windows": [[0, 4]]}


def run(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    """Exit code of ``mrmodel`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["mrmodel", *shlex.split(line)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize("value", ["0", "nan", "inf", "-1", "1e-9", "1e9", "two"])
def test_the_length_of_a_clip_has_a_range(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    value: str,
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    assert run(monkeypatch, f"data check {tmp_path}/rows.jsonl --clip-len {value}") == 2
    assert "--clip-len" in capsys.readouterr().err
    assert run(monkeypatch, f"data check {tmp_path}/rows.jsonl --clip-len 1") == 0
    assert "0 errors" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["predict v.mp4 --query red", "tune best"])
@pytest.mark.parametrize("value", ["-1", "0", "1.5", "nan"])
def test_one_window_or_more_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, value: str
) -> None:
    assert run(monkeypatch, f"{command} --top {value}") == 2
    assert "--top" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["gpu", "0", "mps", "CUDA", "cuda:", "cuda:-1", "cuda:x", "", " cpu"]
)
def test_a_device_has_one_of_four_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, f"predict v.mp4 --query red --device {shlex.quote(name)}") == 2
    error = capsys.readouterr().err
    assert error == f"error: --device = {name!r}: expected auto, cpu, cuda or cuda:N\n"
    with pytest.raises(ConfigError, match=r"^device = .*: expected auto, cpu, cuda or cuda:N"):
        pick_device(name, "device")
    with pytest.raises(ConfigError, match=r"train\.device = .*expected auto, cpu, cuda or cuda:N"):
        changed("train.device", name)
    if name:  # An empty variable is an absent one.
        monkeypatch.setenv(DEVICE_VARIABLE, name)
        with pytest.raises(ConfigError, match=f"{DEVICE_VARIABLE} = .*: expected auto"):
            encoder_device()


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="'cuda:0': no CUDA device here"):
        pick_device("cuda:0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [str(pick_device(name)) for name in ("auto", "cuda", "cuda:1")] == [
        "cuda",
        "cuda",
        "cuda:1",
    ]
    with pytest.raises(ConfigError, match="'cuda:2': the last CUDA device here is cuda:1"):
        pick_device("cuda:2")


def options_with_numbers() -> Iterator[tuple[str, click.Parameter]]:
    """Each numeric option and argument of the command line."""
    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in COMMANDS}
    while commands:
        name, command = commands.popitem()
        if isinstance(command, click.Group):
            commands |= {f"{name} {below}": one for below, one in command.commands.items()}
            continue
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter.type, click.types._NumberParamTypeBase):
                yield f"{name} {parameter.opts[-1]}", parameter


@pytest.mark.parametrize(
    "parameter", [pytest.param(found, id=name) for name, found in options_with_numbers()]
)
def test_every_number_on_a_command_line_has_a_range(parameter: click.Parameter) -> None:
    for value in ("nan", "inf", "-inf", "-1", "-1e-9", "1e400"):
        with pytest.raises(click.BadParameter):
            parameter.type.convert(value, parameter, None)


PARAMS = yaml.safe_load(presets.render("sample"))


def changed(path: str, value: object) -> None:
    """Validate the sample preset with another value."""
    tree = copy.deepcopy(PARAMS)
    *sections, key = path.split(".")
    below = tree
    for section in sections:
        below = below[section]
    below[key] = value
    parse_config(tree)


def with_numbers(tree: Any, value: float) -> Any:
    """A tree with `value` in place of each number."""
    if isinstance(tree, dict):
        return {key: with_numbers(below, value) for key, below in tree.items()}
    return value if type(tree) in (int, float) else tree


def numbers_of(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of each number."""
    if isinstance(tree, dict):
        for key, below in tree.items():
            yield from numbers_of(below, (*path, key))
    elif type(tree) in (int, float):
        yield path


SECTIONS = {f"models.{name}": MODELS.get(name).Settings for name in PARAMS["models"]}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**30, -(10**30)])
@pytest.mark.parametrize(("path", "section"), [("", Config), *SECTIONS.items()])
def test_no_number_of_the_parameter_file_is_boundless(
    path: str, section: type[Section], value: float
) -> None:
    """NaN and infinity are taken nowhere, nor whole numbers beyond all memory."""
    tree = PARAMS
    for key in filter(None, path.split(".")):
        tree = tree[key]
    if not path:
        tree = {key: {} if key == "models" else below for key, below in tree.items()}
        tree = tree | {"tune": tree["tune"] | {"space": {}}}
    with pytest.raises(ValidationError) as found:
        section.model_validate(with_numbers(tree, value))
    refused = {tuple(mistake["loc"]) for mistake in found.value.errors()}
    expected = set(numbers_of(tree))
    if math.isfinite(value):  # A finite real number may be as large as it likes.
        expected = {place for place in expected if isinstance(at(tree, place), int)}
    assert expected - refused == set()


def at(tree: Any, place: tuple[str, ...]) -> Any:
    """The value in a place."""
    for key in place:
        tree = tree[key]
    return tree


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("features.clip_len_s", 1e-9),
        ("features.clip_len_s", 0.0),
        ("features.workers", 100_000),
        ("train.threads", 100_000),
        ("train.batch_size", 10**9),
        ("train.eval_batch_size", 0),
        ("tune.trials", 10**9),
        ("tune.workers", 10**6),
        ("corpus.videos.train", 10**9),
        ("corpus.captions_per_video", 10**9),
        ("evaluate.bootstrap_resamples", 10**9),
        ("orchestrate.stage_timeout_s", 1e300),
        ("orchestrate.extract_shards.count", 10**9),
        ("promotion.smoke_timeout_s", 1e300),
        ("promotion.resamples", 10**9),
        ("seed", -1),
    ],
)
def test_a_size_that_would_never_end_is_refused(path: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{path} = "):
        changed(path, value)


@pytest.mark.parametrize("value", ["-1", "1.5", "nan", "", "2147483648", "9" * 5000, "²"])
def test_the_numbers_of_a_study_are_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["seeds", "run", f"--seed={value}"])
    with pytest.raises(SystemExit) as end:
        run_command({"run": (lambda *_: None, ("seed",))})
    assert end.value.code == 2
    assert "is no number from 0 to 2147483647" in capsys.readouterr().err
