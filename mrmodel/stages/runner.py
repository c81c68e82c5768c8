"""Entry point of the stages: logging, parameters, MLflow tracking, one-line errors."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from mrmodel.config.schema import Config, load_config
from mrmodel.errors import exit_codes
from mrmodel.names import LONGEST_PART, MODEL, PRESET, PRETRAINING_ROW, STREAM, NameKind
from mrmodel.processes import die_with_parent
from mrmodel.progress import EventReporter, Reporter, RichReporter
from mrmodel.stages.paths import Paths
from mrmodel.tracking.event_log import RunSpec
from mrmodel.tracking.run import PARENT, TrackedRun, open_run

# Called with the settings, the reporter and the command-line arguments.
StageFunction = Callable[[Config, Reporter, dict[str, str]], None]

PARAMS = Path("params.yaml")
# Arguments that are numbers: the least and the greatest.
_STEPS = (1, 2**31 - 1)
_RANGES = {
    "seed": (0, 2**31 - 1),
    "steps": _STEPS,
    "pretrain_steps": _STEPS,
    "finetune_steps": _STEPS,
}
# Arguments that are names.
_NAMES = {"stream": STREAM, "model": MODEL, "preset": PRESET, "row": PRETRAINING_ROW}
# Set by DVC for the command of a stage.
_DVC_STAGE = "DVC_STAGE"


def run_stage(stage: Callable[[Config, Reporter], None]) -> None:
    """Run `stage` as the main program: exit code 2 and one line on a mistake."""
    run_stage_with(lambda config, reporter, _: stage(config, reporter), ())


def run_stage_with(stage: StageFunction, arguments: tuple[str, ...], recorded: bool = True) -> None:
    """Like `run_stage`, with required command-line arguments ``--name VALUE``.

    With `recorded` the stage is tracked as an MLflow run, see `mrmodel.tracking.run.current_run`.
    """
    parser = argparse.ArgumentParser()
    _add_arguments(parser, arguments)
    _run(stage, vars(parser.parse_args()), recorded)


def run_command(commands: Mapping[str, tuple[StageFunction, tuple[str, ...]]]) -> None:
    """Like `run_stage_with`, for a module of several stages: ``python -m module NAME --x VALUE``.

    Args:
        commands: name -> a stage and its arguments.
    """
    parser = argparse.ArgumentParser()
    choices = parser.add_subparsers(dest="command", required=True)
    for command, (_, arguments) in commands.items():
        _add_arguments(choices.add_parser(command), arguments)
    values = vars(parser.parse_args())
    command = values.pop("command")
    _run(commands[command][0], values, command=command)


def _add_arguments(parser: argparse.ArgumentParser, arguments: tuple[str, ...]) -> None:
    for name in arguments:
        kind: Callable[[str], str] = str
        if name in _RANGES:
            kind = _whole_number(*_RANGES[name])
        elif name in _NAMES:
            kind = _name(_NAMES[name])
        parser.add_argument(f"--{name}", required=True, type=kind)


def _name(kind: NameKind) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not kind.fits(text):
            raise argparse.ArgumentTypeError(f"{text[:LONGEST_PART]!r} {kind.rule}")
        return text

    return check


def _whole_number(low: int, high: int) -> Callable[[str], str]:
    """Checks an argument, and leaves it as it was written."""

    def check(text: str) -> str:
        if not (text.isascii() and text.isdigit() and low <= int(text[:20]) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low} to {high}")
        return text

    return check


def _run(
    stage: StageFunction, values: dict[str, str], recorded: bool = True, command: str | None = None
) -> None:
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    with exit_codes():
        config = load_config(PARAMS)
        tracking = config.tracking
        if not recorded:
            tracking = tracking.model_copy(update={"enabled": False})
        with open_run(tracking, _run_spec(config, values, command)) as record:
            stage(config, EventReporter(RichReporter()), values)
            _name_device(record)


def _run_spec(config: Config, values: dict[str, str], command: str | None) -> RunSpec:
    """Run spec of the DVC stage or, if run by hand, of the module and its arguments."""
    module = sys.modules["__main__"].__spec__
    path = module.name if module is not None else Path(sys.argv[0]).stem
    name = command or path.rpartition(".")[2]
    return RunSpec(
        experiment=config.tracking.experiment,
        state=str(Paths(config).state.resolve()),
        name=f"{name}@{'-'.join(values.values())}" if values else name,
        code=str(Path.cwd()),
        parent=os.environ.get(PARENT),
        stage=os.environ.get(_DVC_STAGE),
        command=" ".join(["python", "-m", path, *sys.argv[1:]]),
    )


def _name_device(record: TrackedRun) -> None:
    """Log the device, for stages that loaded torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        cuda = torch.cuda.is_initialized()
        record.tags({"device": torch.cuda.get_device_name() if cuda else "cpu"})
