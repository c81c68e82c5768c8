"""AdamW and its learning-rate schedules, as functions of the step alone.

The published systems use one parameter group with weight decay on everything (baselines: 8.1); the
schedule is a pure function, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from mrmodel.config import RunSettings


def build_optimizer(
    parameters: Iterable[nn.Parameter], lr: float, decay: float
) -> torch.optim.AdamW:
    """AdamW with the fused kernel, which exists on CPU and CUDA and reads each tensor once."""
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=True)


def learning_rate(run: RunSettings, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Learning rate of 0-based `step`.

    ``constant``; ``step``: x 0.1 every `drop_every_epochs`; ``cosine``: down to 1 % of `lr` at the
    end. `warmup_steps` climb linearly to `lr` first, whatever the schedule.
    """
    if step < run.warmup_steps:
        return run.lr * (step + 1) / run.warmup_steps
    if run.schedule == "constant":
        return run.lr
    if run.schedule == "step":
        return float(run.lr * 0.1 ** (step // (run.drop_every_epochs * steps_per_epoch)))
    progress = (step - run.warmup_steps) / max(total_steps - run.warmup_steps, 1)
    return run.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
