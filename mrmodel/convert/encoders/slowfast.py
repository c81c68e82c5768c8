"""SlowFast's published weights, from PySlowFast or Caffe2, as the set ``slowfast``.

``SLOWFAST_8x8_R50.pkl`` is a Caffe2 pickle of ``{"blobs": {name: array}}``. A pickle can call any
function; here only arrays are built, and a file that refers to anything else is rejected.
"""

from __future__ import annotations

import codecs
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mrmodel.convert.encoders.recipe import Recipe, shapes_of
from mrmodel.convert.settings import Shapes, count_layers, size_of
from mrmodel.encoders.networks.slowfast import SlowFast, SlowFastConfig, SlowFastStage
from mrmodel.errors import CheckpointError

# The classifier, training counters, and optimizer state.
_LEFT_OUT = re.compile(r"(head\..*|.*num_batches_tracked|pred_.*|.*momentum|lr|model_iter)$")
_ENDINGS = {
    "_bn_s": "_bn.weight",
    "_bn_b": "_bn.bias",
    "_bn_rm": "_bn.running_mean",
    "_bn_riv": "_bn.running_var",
    "_w": ".weight",
    "_b": ".bias",
}
# Caffe2's names without suffix -> PySlowFast's; t_ is the fast pathway.
_LAYERS = (
    (r"^(res_)?conv1(?=\.|_bn)", "s1.pathway0_stem.conv"),
    (r"^t_(res_)?conv1(?=\.|_bn)", "s1.pathway1_stem.conv"),
    (r"^t_pool1_subsample", "s1_fuse.conv_f2s"),
    (r"^t_res(\d)_\d+_branch2c_bn_subsample", r"s\1_fuse.conv_f2s"),
    (r"^res(\d)_(\d+)_branch1", r"s\1.pathway0_res\2.branch1"),
    (r"^t_res(\d)_(\d+)_branch1", r"s\1.pathway1_res\2.branch1"),
    (r"^res(\d)_(\d+)_branch2([abc])", r"s\1.pathway0_res\2.branch2.\3"),
    (r"^t_res(\d)_(\d+)_branch2([abc])", r"s\1.pathway1_res\2.branch2.\3"),
    # These two norms are siblings of their convolution in Caffe2's names.
    (r"\.(conv|conv_f2s)_bn\.", ".bn."),
)


def networks(config: SlowFastConfig) -> tuple[nn.Module, ...]:
    """All networks of the set."""
    return (SlowFast(config),)


def convert(tensors: Mapping[str, Tensor]) -> tuple[SlowFastConfig, dict[str, Tensor]]:
    """Rename tensors for `SlowFast`, and infer the sizes.

    Raises:
        CheckpointError: a tensor that determines a size is missing.
    """
    kept = {name: tensor for name, tensor in tensors.items() if not _LEFT_OUT.match(name)}
    if "conv1_w" in kept:
        kept = {from_caffe2(name): tensor for name, tensor in kept.items()}
    return _config(shapes_of(kept)), kept


def from_caffe2(name: str) -> str:
    """PySlowFast's name of a blob."""
    for ending, new in _ENDINGS.items():
        if name.endswith(ending):
            name = name.removesuffix(ending) + new
            break
    for pattern, replacement in _LAYERS:
        name = re.sub(pattern, replacement, name)
    return name


def read(path: Path) -> dict[str, Tensor] | None:
    """Arrays of a Caffe2 pickle by name; None for another format.

    Raises:
        CheckpointError: it refers to code, cannot be read, or holds something else.
    """
    if path.suffix != ".pkl":
        return None
    try:
        with path.open("rb") as file:
            blobs = _ArrayReader(file, encoding="latin-1").load()["blobs"]
        arrays = {name: value for name, value in blobs.items() if isinstance(value, np.ndarray)}
        size = path.stat().st_size
        if sum(array.nbytes for array in arrays.values()) > size:
            raise CheckpointError(f"its arrays are larger than its {size} bytes")
        return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise any exception
        kind = type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as blobs of Caffe2 ({kind})") from None


class _ArrayReader(pickle._Unpickler):
    """Builds only NumPy arrays and plain containers.

    The class in Python keeps its memo in a dict; the one in C would allocate any index at once.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the names in a pickled array, under NumPy's old and new modules."""
        place = module.replace("numpy._core", "numpy.core")
        if place == "numpy.core.multiarray" and name in ("_reconstruct", "scalar"):
            return np.zeros(1).__reduce__()[0] if name == "_reconstruct" else _scalar
        if (place, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (place, name) == ("numpy", "dtype"):
            return np.dtype
        if (place, name) == ("_codecs", "encode"):
            return codecs.encode
        raise CheckpointError(f"names {module}.{name}; reading on could run code")


def _scalar(dtype: np.dtype[Any], content: Any) -> Any:
    data = content.encode("latin-1") if isinstance(content, str) else content
    return np.frombuffer(data, dtype)[0]


def _config(shapes: Shapes) -> SlowFastConfig:
    stem = size_of(shapes, "s1.pathway0_stem.conv.weight", 0)
    numbers = (2, 3, 4, 5)
    first, second, third, fourth = (_stage(shapes, number) for number in numbers)
    return SlowFastConfig(
        stem=stem,
        stages=(first, second, third, fourth),
        fast_ratio=stem // max(1, size_of(shapes, "s1.pathway1_stem.conv.weight", 0)),
    )


def _stage(shapes: Shapes, number: int) -> SlowFastStage:
    first = f"s{number}.pathway0_res0.branch2."
    return SlowFastStage(
        blocks=count_layers(shapes, f"s{number}.pathway0_res"),
        inner=size_of(shapes, f"{first}a.weight", 0),
        out=size_of(shapes, f"{first}c.weight", 0),
    )


RECIPE = Recipe(SlowFastConfig, networks, convert, read=read)
