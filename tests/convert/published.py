"""Checkpoints as the published trainers write them, with weights of the golden cases."""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result
from torch import Tensor

from mrmodel.cli.main import cli
from mrmodel.errors import MrModelError


class EasyDict(dict):
    """Options as lighthouse keeps them: a dict whose keys are attributes too."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        for name, value in options.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        super().__setitem__(name, value)


EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"


def save_official(path: Path, tensors: dict[str, Tensor], options: dict[str, Any]) -> Path:
    """The container of Moment-DETR, QD-DETR and VideoLights."""
    namespace = argparse.Namespace(**options, device=torch.device("cuda"))
    torch.save(_container(tensors, namespace), path)
    return path


def save_lighthouse(path: Path, tensors: dict[str, Tensor], options: dict[str, Any]) -> Path:
    """The same container; its options are of a class that is not installed here."""
    module = types.ModuleType("easydict")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    sys.modules["easydict"] = module
    try:
        torch.save(_container(tensors, EasyDict(options)), path)
    finally:
        del sys.modules["easydict"]
    return path


def _container(tensors: dict[str, Tensor], options: Any) -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimiser.step()
    return {
        "model": dict(tensors),
        "optimizer": optimiser.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimiser, 400).state_dict(),
        "epoch": 179,
        "opt": options,
    }


def run_import(file: Path, output: Path, *options: str, code: int = 0) -> str:
    """Run ``mrmodel weights import`` and return what it prints, or the error's message."""
    arguments = ["weights", "import", str(file), "--output", str(output), *options]
    result: Result = CliRunner().invoke(cli, arguments)
    if isinstance(result.exception, MrModelError):
        assert code == 2, result.exception
        return str(result.exception)
    assert result.exit_code == code, result.output
    return result.output


def with_widths(tensors: dict[str, Tensor], video: int, text: int) -> dict[str, Tensor]:
    """The same checkpoint for features of other widths: its first projections are drawn anew."""
    generator = torch.Generator().manual_seed(7)
    changed = dict(tensors)
    for projection, width in (("input_vid_proj.0.", video), ("input_txt_proj.0.", text)):
        for name in ("LayerNorm.weight", "LayerNorm.bias", "net.1.weight"):
            shape = (*tensors[projection + name].shape[:-1], width)
            drawn = torch.randn(shape, generator=generator) * width**-0.5
            changed[projection + name] = drawn + (1.0 if name == "LayerNorm.weight" else 0.0)
    return changed
