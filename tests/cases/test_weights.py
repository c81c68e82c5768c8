"""Published weights under wrappers' names, and files that stand in place of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mrmodel.convert.encoders.convert import read_tensors
from mrmodel.convert.safe_unpickle import read_published
from mrmodel.errors import CheckpointError
from mrmodel.files import stand_in
from mrmodel.train.checkpoint import WEIGHTS
from tests.convert.published import run_import
from tests.golden_parity.test_models import GOLDEN, Case

STREAMS = ("--video-streams", "rows:20", "--text-streams", "words:12")
TENSORS = {"a.weight": torch.arange(3.0), "b.bias": torch.ones(2)}
WRAPPERS = (
    "_orig_mod.",
    "module.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.",
    "_orig_mod.model.",
    "module.model.",
    "model.module._orig_mod.",
    "model.model.",
    "module.module.",
    "_fsdp_wrapped_module._orig_mod.",
)


def wrapped(prefix: str, tensors: Mapping[str, Tensor] = TENSORS) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor] = TENSORS) -> bool:
    return list(found) == list(expected) and all(
        map(torch.equal, found.values(), expected.values())
    )


def test_a_compiled_model_is_imported_as_the_plain_one(tmp_path: Path) -> None:
    case = Case(GOLDEN / "model_moment_detr/default.npz")
    options = case.options | {"ctx_mode": "video_tef"}
    folders = []
    for number, prefix in enumerate(("", "model.module._orig_mod.")):
        content = {"model": wrapped(prefix, case.weights), "opt": options}
        file = saved(tmp_path / f"{number}.ckpt", content)
        folders.append(tmp_path / str(number))
        run_import(file, folders[-1], *STREAMS)
    plain, other = [(folder / WEIGHTS).read_bytes() for folder in folders]
    assert plain == other


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_what_wrappers_put_before_names_is_taken_off(prefix: str, tmp_path: Path) -> None:
    state = wrapped(prefix)
    counter = {"n_averaged": torch.tensor(7)}
    for content in (state, {"model": state}, {"state_dict": state | counter}):
        assert same(read_published(saved(tmp_path / "a.ckpt", content)).tensors)
    save_file(state, tmp_path / "a.safetensors")
    assert same(dict(sorted(read_published(tmp_path / "a.safetensors").tensors.items())))
    lightning = {**state, "criterion.weight": torch.ones(1)}
    if "model." in prefix:
        content = {"pytorch-lightning_version": "2.1.3", "state_dict": lightning}
        assert same(read_published(saved(tmp_path / "b.ckpt", content)).tensors)
    assert same(read_tensors(saved(tmp_path / "c.ckpt", {"model": state})))


def test_only_a_part_of_the_model_is_compiled(tmp_path: Path) -> None:
    state = {"encoder._orig_mod.weight": torch.ones(1), "head.bias": torch.ones(2)}
    found = read_published(saved(tmp_path / "a.ckpt", {"model": state})).tensors
    assert list(found) == ["encoder.weight", "head.bias"]


def test_names_that_become_one_are_named(tmp_path: Path) -> None:
    state = wrapped("_orig_mod.") | wrapped("")
    with pytest.raises(CheckpointError, match=r"has a.weight twice, as _orig_mod\.a.* and as a\.w"):
        read_published(saved(tmp_path / "a.ckpt", state))
    # Of another module: an error of the layout names it.
    state = wrapped("model.") | {"teacher.x": torch.ones(1)}
    assert "model.a.weight" in read_published(saved(tmp_path / "a.ckpt", state)).tensors


PLACED: dict[str, tuple[bytes, str]] = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 133\n",
        "a Git LFS pointer, not the file itself (git lfs pull fetches it)",
    ),
    "dvc": (
        b"outs:\n- md5: a304afb96060aad90176268345e10355\n  size: 9\n  path: model.ckpt\n",
        "a DVC pointer, not the file itself (dvc pull fetches it)",
    ),
    "dvc import": (
        b"md5: 9f\nfrozen: true\ndeps:\n- path: x\nouts:\n  - path: model.ckpt\n    md5: a3\n",
        "a DVC pointer",
    ),
    "html": (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html><head><title>Sign in", "a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "a web page or XML"),
    "text": (b"Entry not found", "a text that begins with 'Entry not found'"),
    "japanese": ("見つかりません".encode() * 70, "a text that begins with '見つかり"),
    "json": (b'{"error": "Repository not found"}', 'a text that begins with \'{"error"'),
    "empty": (b"", "an empty file"),
}


@pytest.mark.parametrize("kind", PLACED)
@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors", "a.pt"])
def test_a_stand_in_for_weights_is_named(kind: str, name: str, tmp_path: Path) -> None:
    content, what = PLACED[kind]
    (tmp_path / name).write_bytes(content)
    error = run_import(tmp_path / name, tmp_path / "out", code=2)
    assert f"{name}: cannot be read as a checkpoint: it is {what}" in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_other_damage_is_no_stand_in(tmp_path: Path) -> None:
    for content in (b"PK\x03\x04 cut", bytes(range(256)), np.ones(9).tobytes(), b"\x80\x02}q\x00."):
        (tmp_path / "a").write_bytes(content)
        assert stand_in(tmp_path / "a") is None
