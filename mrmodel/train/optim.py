"""AdamW, learning-rate schedules, and device and precision of a run.

The published baselines and SG-DETR's published code decay every parameter. The schedule is a pure
function of the step, so a resumed run needs no scheduler state.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from mrmodel.config.schema import RunSettings

# Initial factor of the learning rate in the warm-up of `multistep`.
_FIRST_SHARE = 1e-3


def build_optimizer(
    module: nn.Module, lr: float, weight_decay: float, decay: Literal["all", "matrices"]
) -> torch.optim.AdamW:
    """AdamW with the fused kernel (CPU and CUDA).

    Args:
        module: the module to train.
        lr: initial learning rate of every group.
        weight_decay: decoupled weight decay.
        decay: which parameters are decayed: ``all``, or ``matrices``: the weights of linear
            layers, convolutions and attention, but not biases, norms, scalars, embeddings,
            learned tokens and references.
    """
    groups: list[dict[str, Any]] = [{"params": list(module.parameters())}]
    if decay == "matrices":
        matrices, others = split_parameters(module)
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices, all others), each in the order of ``module.parameters()``.

    A matrix has at least two axes and is named ``weight`` or ``..._weight`` in a layer other than
    an embedding; learned tokens and references have other names.
    """
    tables = {
        id(table)
        for layer in module.modules()
        if isinstance(layer, nn.Embedding)
        for table in layer.parameters(recurse=False)
    }
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        is_weight = name.endswith("weight") and id(parameter) not in tables
        (matrices if is_weight and parameter.ndim >= 2 else others).append(parameter)
    return matrices, others


def learning_rate(run: RunSettings, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Learning rate of 0-based `step`.

    ``constant``; ``step``: x 0.1 every `step_size`; ``cosine``: down to 1 % of `lr` at the end;
    ``linear``: constant up to the milestone, then linearly to zero at the end (SA-DETR); all of
    them after a linear `warmup` to `lr`. ``multistep``: x `gamma` at each milestone, times a
    warm-up from 0.1 % that does not delay the milestones (SG-DETR's paper).

    With `warmup_from` every warm-up begins at that fraction of `lr` and rises once per
    `warmup_unit`; milestones of ``multistep`` within it have no effect. With epochs, ``multistep``
    is then SG-DETR's published scheduler.

    With `swa` the rate of its first epoch stays for that epoch and goes to `swa.lr` on a cosine, a
    step per epoch, as `torch.optim.swa_utils.SWALR` does.
    """
    if run.swa is None:
        return _scheduled_rate(run, step, total_steps, steps_per_epoch)
    first = run.swa.from_epoch - 1
    passed = step // steps_per_epoch - first
    if passed < 0:
        return _scheduled_rate(run, step, total_steps, steps_per_epoch)
    before = _scheduled_rate(run, first * steps_per_epoch, total_steps, steps_per_epoch)
    share = 0.5 * (1.0 - math.cos(math.pi * min(1.0, passed / run.swa.anneal_epochs)))
    return share * run.swa.lr + (1.0 - share) * before


def _scheduled_rate(run: RunSettings, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The rate without weight averaging."""
    unit = steps_per_epoch if run.warmup_unit == "epoch" else 1
    warmup = run.warmup * unit
    if run.warmup_from is not None and step < warmup:
        return run.lr * (run.warmup_from + (1.0 - run.warmup_from) * (step // unit) / run.warmup)
    if run.schedule == "multistep":
        milestones, share = run.milestones, 1.0
        if run.warmup_from is not None:
            milestones = [epoch for epoch in milestones if epoch * steps_per_epoch > warmup]
        elif step < warmup:
            share = _FIRST_SHARE + (1 - _FIRST_SHARE) * (step / warmup)
        passed = bisect_right(milestones, step // steps_per_epoch)
        return float(run.lr * run.gamma**passed * share)
    if step < warmup:
        return run.lr * (step + 1) / warmup
    if run.schedule == "constant":
        return run.lr
    if run.schedule == "step":
        return float(run.lr * 0.1 ** (step // (run.step_size * steps_per_epoch)))
    if run.schedule == "linear":
        falling = total_steps - run.milestones[0] * steps_per_epoch
        return run.lr * min(1.0, (total_steps - step) / max(falling, 1))
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return run.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_threads(requested: int) -> None:
    """Set the number of intra-op threads; 0 means one per core.

    It changes the order of float sums, so reproducible outputs need the same number.
    """
    torch.set_num_threads(requested or os.cpu_count() or 1)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of the forward pass: bfloat16 autocast, or a null context for ``fp32``."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
