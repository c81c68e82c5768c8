"""Types of options, options of several commands, and what several commands print."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mrmodel.config.base import MAX_CLIP_LEN_S, MAX_TRIALS, MAX_WORKERS, MIN_CLIP_LEN_S
from mrmodel.devices import DEVICES, is_device
from mrmodel.errors import ConfigError
from mrmodel.predict.queries import unread_note

if TYPE_CHECKING:
    from mrmodel.predict.predictor import Predictor
    from mrmodel.types import QueryResult


class FiniteRange(click.FloatRange):
    """`click.FloatRange` without NaN and infinity, which it takes."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class DeviceName(click.ParamType[str]):
    """A name that `mrmodel.devices.pick_device` knows."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name; whether there is such a device is seen when it is used."""
        if not is_device(value):
            raise ConfigError(param.opts[-1] if param else "device", value, DEVICES)
        name: str = value
        return name


# Paths: of what exists, and of what is written.
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FOLDER = click.Path(file_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
CLIP_LEN = FiniteRange(MIN_CLIP_LEN_S, MAX_CLIP_LEN_S)
TRIALS = click.IntRange(1, MAX_TRIALS)
WORKERS = click.IntRange(1, MAX_WORKERS)

DEVICE = click.option(
    "--device",
    type=DeviceName(),
    default="auto",
    show_default=True,
    help="auto, cpu, cuda or cuda:N.",
)
MODEL = click.option(
    "--model",
    help="Model folder, or zero-shot [default: the first of train.models below models/served].",
)
# Of commands about a library.
LIBRARY_MODEL = click.option(
    "--model",
    metavar="FOLDER|zero-shot",
    help="Model folder, or zero-shot [default: as for `mrmodel predict`].",
)
LIBRARY = click.option(
    "--library",
    "folder",
    type=NEW_FOLDER,
    default=Path("library"),
    show_default=True,
    help="Folder of the library.",
)


def echo_json(row: object) -> None:
    """Print a line of JSON, in ASCII where the output is not UTF-8."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower() == "utf-8"
    click.echo(json.dumps(row, ensure_ascii=not is_utf8, allow_nan=False))


def echo_notes(
    predictor: Predictor, results: Iterable[QueryResult], notes: Iterable[str] = ()
) -> None:
    """Print what is to be known about search results to the error stream.

    Args:
        predictor: that made them.
        results: those that the text encoder cannot read as a whole have a note.
        notes: others; empty ones are left out.
    """
    unread = [unread_note(one, predictor.languages) for one in results if one.unread_tokens]
    for note in filter(None, (*unread, *notes)):
        click.echo(f"note: {note}", err=True)
