"""Running a network on clips and sentences so that a row never depends on its neighbours.

The shape of a matrix product decides how its sums are rounded. On a CPU clips go through one by
one; on a GPU, and for sentences, batches are filled up to one size. So the same clip, or sentence,
has the same bits alone and in company: on a CPU always, on a GPU where the kernels do not look at
the place in the batch (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from mrmodel.encoders.base import Frames, Rows
from mrmodel.errors import ConfigError

DEVICE_VARIABLE = "MRMODEL_ENCODER_DEVICE"
# 8 sentences take less than half the time of 8 single ones; 32 would save little more.
TEXT_BATCH = 8


def encoder_device() -> torch.device:
    """Where encoders run: MRMODEL_ENCODER_DEVICE, else a GPU where there is one.

    Raises:
        ConfigError: the variable names no device, or one that is not there.
    """
    has_gpu = torch.cuda.is_available()
    named = os.environ.get(DEVICE_VARIABLE)
    if not named:
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(named)
    except RuntimeError:
        raise ConfigError(DEVICE_VARIABLE, named, "is no device of PyTorch") from None
    if device.type == "cuda" and not has_gpu:
        raise ConfigError(DEVICE_VARIABLE, named, "there is no GPU that PyTorch can use")
    return device


@torch.inference_mode()
def run_on_clips(
    run: Callable[[Tensor], Tensor], frames: Frames, device: torch.device, size: int
) -> list[Rows]:
    """One float32 row a clip.

    Args:
        run: (B, T, H, W, 3) uint8 on the device -> (B, dim).
        frames: (n, T, H, W, 3) uint8.
        device: where `run` computes.
        size: B; a smaller rest is filled up to it.
    """
    rows: list[Rows] = []
    for start in range(0, len(frames), size):
        part = frames[start : start + size]
        if len(part) < size:
            part = np.concatenate([part, *[part[:1]] * (size - len(part))])
        # PyTorch refuses read-only and reversed arrays: those are copied.
        batch = torch.from_numpy(np.require(part, requirements=["C", "W"])).to(device)
        with _exact_convolutions():
            rows.extend(run(batch)[: len(frames) - start].float().cpu().numpy())
    return rows


def _exact_convolutions() -> AbstractContextManager[None]:
    """Convolutions without TF32, and with nothing but kernels that repeat their results.

    A row made on a GPU is then as near to the CPU's as float32 allows.
    """
    exact: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return exact


@torch.inference_mode()
def run_on_tokens(
    run: Callable[[Tensor], Tensor],
    token_ids: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """One (n_tokens, width) tensor a text, on the CPU.

    Texts of one length go through together: there is no padding, so no mask is needed and no text
    can look at its neighbours.

    Args:
        run: (B, N) int64 on the device -> (B, N, width).
        token_ids: of each text.
        device: where `run` computes.
    """
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for index, ids in enumerate(token_ids):
        by_length[len(ids)].append(index)
    states: list[Tensor] = [torch.empty(0)] * len(token_ids)
    for members in by_length.values():
        for start in range(0, len(members), TEXT_BATCH):
            part = members[start : start + TEXT_BATCH]
            filled = part + part[:1] * (TEXT_BATCH - len(part))
            batch = torch.tensor([token_ids[index] for index in filled], device=device)
            for index, row in zip(part, run(batch).float().cpu(), strict=False):
                states[index] = row
    return states
