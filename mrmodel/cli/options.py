"""Types of options, and options of several commands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from mrmodel.config.base import MAX_CLIP_LEN_S, MAX_TRIALS, MAX_WORKERS, MIN_CLIP_LEN_S
from mrmodel.devices import DEVICES, is_device
from mrmodel.errors import ConfigError


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
LIBRARY = click.option(
    "--library",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("library"),
    show_default=True,
    help="Folder of the library.",
)
