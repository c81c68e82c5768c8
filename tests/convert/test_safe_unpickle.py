"""Reading a checkpoint runs nothing of it."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrmodel.convert.safe_unpickle import read_published
from mrmodel.errors import CheckpointError
from tests.convert.published import Planted, run_import, save_lighthouse, save_official

TENSORS = {"a.weight": torch.arange(3.0)}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("place", ["opt", "model"])
def test_planted_code_does_not_run(place: str, zipped: bool, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    container = {"model": TENSORS, "opt": argparse.Namespace()}
    container[place] = Planted(os.mkdir, str(planted))
    file = tmp_path / "bad.ckpt"
    torch.save(container, file, _use_new_zipfile_serialization=zipped)
    error = run_import(file, tmp_path / "model", code=2)
    assert error.startswith(f"{file}: names posix.mkdir, which is no tensor")
    assert not planted.exists()
    # The file is as dangerous as it looks: an unguarded reader does run it.
    torch.load(file, weights_only=False)
    assert planted.exists()


def test_a_class_of_somebody_is_named(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "opt": Path("x")}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"names pathlib\.PosixPath"):
        read_published(tmp_path / "a.ckpt")


def test_options_come_as_names_and_values(tmp_path: Path) -> None:
    options = {"nheads": 4, "v_feat_dirs": ["a", "b"], "score": np.float64(0.5)}
    official = read_published(save_official(tmp_path / "a", TENSORS, options))
    lighthouse = read_published(save_lighthouse(tmp_path / "b", TENSORS, options))
    assert official.options.items() >= options.items()
    assert lighthouse.options == options
    assert (official.lighthouse, lighthouse.lighthouse) == (False, True)
    assert official.shapes == lighthouse.shapes == {"a.weight": (3,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "holds no tensor"),
        ({"model": {"a": 1.0}}, "'a' is a float, expected a tensor"),
        ({"model": {"a": torch.tensor([1.0, float("nan")])}}, "a holds NaN"),
        ({"model": {"a": torch.tensor([1e300], dtype=torch.float64)}}, "a holds .*in float32"),
        ({"model": {"a": torch.ones(2, dtype=torch.int8)}}, "a is of torch.int8.*real numbers"),
        ({"model": {"a": torch.ones(2, dtype=torch.complex64)}}, "a is of torch.complex64"),
        ({"model": {"a": torch.eye(2).to_sparse()}}, "a is of .*sparse_coo"),
        ({"model": {"a": torch.empty(2, device="meta")}}, "a is of .*on meta"),
        ({"model": {0: torch.ones(2)}}, "0 is no name of a tensor"),
        ({0: torch.ones(2)}, "0 is no name of a tensor"),
        (
            {"model": {"module.a": torch.ones(2), "a": torch.zeros(2)}},
            "has a twice, as module.a",
        ),
        ({"model": TENSORS, "opt": 3}, "its options are a int"),
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
    ],
)
def test_what_is_no_checkpoint_is_said(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_published(tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04 cut", pickle.dumps({}, 2)])
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
def test_damaged_files_are_one_line(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: (cannot be read|holds no tensor)"):
        read_published(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no\.ckpt: no such file"):
        read_published(tmp_path / "no.ckpt")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_published(tmp_path)
