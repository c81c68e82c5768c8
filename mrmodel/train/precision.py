"""Device, threads and number format of a run."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from mrmodel.errors import ConfigError


def pick_device(wish: str) -> torch.device:
    """``auto`` is the first CUDA device where there is one, else the CPU.

    Raises:
        ConfigError: a CUDA device was asked for and none is there.
    """
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wish.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("train.device", wish, "no CUDA device here; use 'auto' or 'cpu'")
    return torch.device(wish)


def set_threads(wish: int) -> None:
    """Threads of one tensor operation; 0 means one a core.

    The number of threads changes the order of float sums, so it is part of what gives equal bytes.
    """
    torch.set_num_threads(wish or os.cpu_count() or 1)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of the forward pass: bfloat16 matrix products, or nothing for ``fp32``."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
