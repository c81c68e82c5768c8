"""Checkpoints as the published trainers write them, with weights of the golden cases."""

from __future__ import annotations

import argparse
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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


class Planted:
    """Unpickled by a plain unpickler, this calls `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class Preparator:
    """An object of SG-DETR's trainer."""

    def __init__(self) -> None:
        self.thresholds, self.windows = np.float64(0.05), np.arange(3.0)


class Hyperparameters(dict[str, Any]):
    """A dict of a foreign class."""


class Lines(list[Any]):
    """A list of a foreign class."""


def lambda_of_the_trainer(epoch: int) -> float:
    return 0.1 * epoch


_FOREIGN = {
    "src.postprocessor.postprocessing": (Preparator, lambda_of_the_trainer),
    "lightning_foreign.utilities": (Hyperparameters, Lines),
}
for _module, _objects in _FOREIGN.items():
    for _object in _objects:
        _object.__module__ = _module


@contextmanager
def foreign_modules() -> Iterator[None]:
    """The modules of SG-DETR's trainer and of Lightning can be imported within."""
    parents = {name.rsplit(".", depth)[0] for name in _FOREIGN for depth in range(3)}
    modules = {name: types.ModuleType(name) for name in parents}
    for name, objects in _FOREIGN.items():
        for item in objects:
            setattr(modules[name], item.__name__, item)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def save_lightning(
    path: Path,
    tensors: Mapping[str, Tensor],
    metrics_mode: object = "qvhighlights",
    protocol: int = 2,
    **more: Any,
) -> Path:
    """The container of SG-DETR's checkpoints; `more` replaces entries of it.

    Beside the published content it has objects that older and newer versions of Lightning save.
    """
    parameter = torch.nn.Parameter(torch.ones(2))
    container = {
        "epoch": 120,
        "global_step": 6897,
        "pytorch-lightning_version": "2.1.3",
        "state_dict": OrderedDict((f"model.{name}", value) for name, value in tensors.items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": Counter(ready=121)}},
        "callbacks": {
            "ModelCheckpoint{'mode': 'max'}": {
                "best_model_score": torch.tensor(0.536),
                "dirpath": Path("checkpoints"),
                "best_k_models": defaultdict(float, {"a.ckpt": np.float32(0.5)}),
            },
            "EarlyStopping": Lines([1, deque([2, 3], maxlen=2)]),
        },
        "optimizer_states": [torch.optim.AdamW([parameter]).state_dict()],
        "lr_schedulers": [{"milestones": Counter([100, 125]), "lr": lambda_of_the_trainer}],
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "optimizer": partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.1),
            "preparator": Preparator(),
            "metrics_mode": metrics_mode,
            "checkpoint_path": None,
            "check_train_every_n_epoch": 5,
        },
        "datamodule_hyper_parameters": Hyperparameters(folders={"a", "b"}, lines=Lines([1])),
    }
    # As torch does for modules.
    container["state_dict"]._metadata = OrderedDict({"": {"version": 1}})
    with foreign_modules():
        torch.save(container | more, path, pickle_protocol=protocol)
    return path


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
