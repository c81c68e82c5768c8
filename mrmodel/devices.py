"""Devices of PyTorch by name: auto, cpu, cuda or cuda:N."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mrmodel.errors import ConfigError

if TYPE_CHECKING:  # Importing torch takes seconds.
    import torch

DEVICES = "expected auto, cpu, cuda or cuda:N"
_CUDA = re.compile(r"cuda(?::([0-9]{1,3}))?")


def is_device(name: object) -> bool:
    """Whether `name` is one of `DEVICES`, available or not."""
    return isinstance(name, str) and (name in ("auto", "cpu") or bool(_CUDA.fullmatch(name)))


def pick_device(requested: str, option: str = "train.device") -> torch.device:
    """Device by name; ``auto`` is the first CUDA device if there is one, else the CPU.

    Args:
        requested: the name.
        option: where it was written, for the message.

    Raises:
        ConfigError: it is no device, or one that is not available here.
    """
    import torch

    if not is_device(requested):
        raise ConfigError(option, requested, DEVICES)
    if requested == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if requested == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(option, requested, "no CUDA device here; use 'auto' or 'cpu'")
    number, count = requested.partition(":")[2], torch.cuda.device_count()
    if not number:
        return torch.device("cuda")
    if int(number) >= count:
        raise ConfigError(option, requested, f"the last CUDA device here is cuda:{count - 1}")
    return torch.device("cuda", int(number))
