"""User weights: one folder per network, locked by SHA-256, nothing ever downloaded.

A weight set is a subfolder made by ``mrmodel weights convert`` from published files::

    <weights folder>/<set>/config.json          sizes of the network and options, see `SetConfig`
                           model.safetensors    the weights
                           tokenizer.json       if the set encodes sentences
                           weights.lock         SHA-256 of the three, and of their source files

The weights folder is MRMODEL_WEIGHTS_DIR, else ``mrmodel/weights`` in the user's data folder.
Everything that decides the rows, except the code, is in the set, so a smaller network (as in the
tests) runs through the same code as the published one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import safe_open
from tokenizers import Tokenizer

from mrmodel.config.base import first_mistake
from mrmodel.errors import UnknownNameError, WeightsError
from mrmodel.files import read_text, sha256_of, write_json
from mrmodel.text import first_of

if TYPE_CHECKING:  # Stages read locks without PyTorch, which takes two seconds.
    import torch
    from torch import Tensor, nn

CONFIG, TENSORS, TOKENIZER = FILES = ("config.json", "model.safetensors", "tokenizer.json")
LOCK = "weights.lock"


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """The published files that a user must provide for a set.

    Attributes:
        files: option of ``mrmodel weights convert`` -> the published file, in words.
        licence: of the published weights, as their publishers state it.
    """

    files: dict[str, str]
    licence: str

    def remedy(self, name: str) -> str:
        """Instructions: what to download and what to run."""
        wanted = "; ".join(f"{option}: {file}" for option, file in self.files.items())
        options = " ".join(f"--{option} FILE" for option in self.files)
        return f"run `mrmodel weights convert {name} {options}` on published files ({wanted})"


PUBLISHED = {
    "clip_b32": PublishedSet(
        {
            "weights": "OpenAI's ViT-B-32.pt, or model.safetensors of clip-vit-base-patch32",
            "vocabulary": "bpe_simple_vocab_16e6.txt.gz of the same, or its tokenizer.json",
        },
        "MIT",
    ),
    "slowfast": PublishedSet(
        {"weights": "SLOWFAST_8x8_R50.pkl of PySlowFast's model zoo, Kinetics-400"},
        "Apache-2.0 (code); trained on Kinetics-400, whose videos have terms of their own",
    ),
    "internvideo2_1b": PublishedSet(
        {
            "weights": "InternVideo2-stage2_1b-224p-f4.pt",
            "vocabulary": "vocab.txt of bert-large-uncased",
        },
        "Apache-2.0",
    ),
    "blip2": PublishedSet(
        {
            "weights": "model.safetensors(.index.json) of blip2-itm-vit-g",
            "vocabulary": "vocab.txt or tokenizer.json of the same",
        },
        "MIT",
    ),
}


WEIGHTS_VARIABLE = "MRMODEL_WEIGHTS_DIR"
_SHOWN_KEYS = 6

Count = Annotated[int, Field(ge=1)]


class Sizes(BaseModel):
    """A part of config.json: no unknown keys, no silent conversion, no change after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TransformerSizes(Sizes):
    """Sizes of a transformer: channels, blocks, heads, and hidden channels of the feed-forward."""

    width: Count
    layers: Count
    heads: Count
    mlp: Count

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads cannot share {self.width} channels")
        return self


class SetConfig(Sizes):
    """config.json of a set; each set has a subclass with the sizes of its network.

    Attributes:
        schema_version: of this file.
        compute_dtype: dtype of the network; bfloat16 is for GPUs.
    """

    schema_version: Literal[1] = 1
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def dtype(self) -> torch.dtype:
        """`compute_dtype` as a PyTorch dtype."""
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.compute_dtype]


class LockedSource(Sizes):
    """A published file that a set was converted from."""

    file: str
    sha256: str


class SetLock(Sizes):
    """weights.lock of a set: digests of its files and of their sources."""

    schema_version: Literal[1] = 1
    set: str
    licence: str
    sources: list[LockedSource]
    files: dict[str, str]


C = TypeVar("C", bound=SetConfig)
M = TypeVar("M", bound="nn.Module")


def weights_root() -> Path:
    """The weights folder; it may not exist."""
    if named := os.environ.get(WEIGHTS_VARIABLE):
        return Path(named)
    root = os.environ.get("XDG_DATA_HOME")
    return (Path(root) if root else Path.home() / ".local" / "share") / "mrmodel" / "weights"


def chosen_sets(names: Sequence[str], root: Path | None = None) -> list[str]:
    """The sets `names`; if it is empty, all in the weights folder (or in `root`).

    Raises:
        UnknownNameError: no such set.
    """
    for name in names:
        if name not in PUBLISHED:
            raise UnknownNameError("weight set", name, PUBLISHED)
    return list(names) or [name for name in PUBLISHED if WeightSet(name, root).folder.is_dir()]


class WeightSet:
    """One set of the weights folder; each instance checks a file against the lock once.

    Args:
        name: key of `PUBLISHED`.
        root: replaces the user's weights folder.
    """

    def __init__(self, name: str, root: Path | None = None) -> None:
        self.name = name
        self.folder = (root or weights_root()) / name
        self._checked: set[str] = set()

    def config(self, kind: type[C]) -> C:
        """Read and check config.json.

        Raises:
            WeightsError: the set is missing, or a value is invalid.
        """
        return read_part(kind, self._checked_path(CONFIG))

    def lock(self) -> SetLock:
        """Read and check weights.lock.

        Raises:
            WeightsError: the set is missing or not locked.
        """
        if not self.folder.is_dir():
            remedy = PUBLISHED[self.name].remedy(self.name)
            hint = f"or name another folder with {WEIGHTS_VARIABLE}"
            raise WeightsError(f"{self.name}: no weights in {self.folder}; {remedy}, {hint}")
        return read_part(SetLock, self.present(LOCK))

    def digests(self) -> dict[str, str]:
        """``<set>/<file>`` -> SHA-256 of all files except config.json; reads only the lock."""
        files = self.lock().files.items()
        return {f"{self.name}/{file}": digest for file, digest in files if file != CONFIG}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without padding or truncation.

        Raises:
            WeightsError: the file is missing, changed, or not a tokenizer.
        """
        path = self._checked_path(TOKENIZER)
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise WeightsError(f"{path}: no tokenizer: {error}") from None

    def load(self, build: Callable[[], M], device: torch.device, dtype: torch.dtype) -> M:
        """The network in eval mode, with its weights loaded.

        The file may hold other networks: only names below a child module of this one count.

        Args:
            build: makes the network; its weights are not initialised.
            device: device of the network.
            dtype: dtype of the network.

        Raises:
            WeightsError: the file is missing or changed, or does not match; lists the names.
        """
        import torch

        path = self._checked_path(TENSORS)
        with torch.device("meta"):
            model = build()
        parts = {name for name, _ in model.named_children()}
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.partition(".")[0] in parts]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in names}
        require_fit(path, model.state_dict(), tensors)
        model.load_state_dict(tensors, assign=True)
        return model.to(device, dtype).eval().requires_grad_(False)

    def require_width(self, field: str, found: int, expected: int) -> None:
        """Check that the network's output width is the stream's.

        Raises:
            WeightsError: it does not.
        """
        if found != expected:
            path = self.folder / CONFIG
            raise WeightsError(f"{path}: {field} = {found}: the stream needs {expected} channels")

    def write_lock(self, sources: list[LockedSource]) -> SetLock:
        """Lock the files in their current state."""
        present = [file for file in FILES if (self.folder / file).is_file()]
        lock = SetLock(
            set=self.name,
            licence=PUBLISHED[self.name].licence,
            sources=sources,
            files={file: sha256_of(self.folder / file) for file in present},
        )
        write_json(self.folder / LOCK, lock.model_dump(mode="json"))
        return lock

    def verify(self) -> None:
        """Check every locked file again, including those checked before.

        Raises:
            WeightsError: the first file that is missing or changed.
        """
        self._checked.clear()
        for file in self.lock().files:
            self._checked_path(file)

    def present(self, file: str) -> Path:
        """Path of a file of the set, checked to exist.

        Raises:
            WeightsError: it is not.
        """
        path = self.folder / file
        if not path.is_file():
            remedy = PUBLISHED[self.name].remedy(self.name)
            raise WeightsError(f"{self.name}: {path} is missing; {remedy}")
        return path

    def _checked_path(self, file: str) -> Path:
        locked = self.lock().files.get(file)
        path = self.present(file)
        if file in self._checked:
            return path
        if locked is None:
            hint = f"if it is right, run `mrmodel weights lock {self.name}`"
            raise WeightsError(f"{path}: not in {LOCK}; {hint}")
        digest = sha256_of(path)
        if digest != locked:
            hint = f"if the change is yours, run `mrmodel weights lock {self.name}`"
            raise WeightsError(f"{path} has SHA-256 {digest}, locked is {locked}; {hint}")
        self._checked.add(file)
        return path


def require_whole_patches(image_size: int, patch: int) -> None:
    """Check, in a configuration's validator, that patches tile the image.

    Raises:
        ValueError: they do not.
    """
    if image_size % patch:
        raise ValueError(f"image_size = {image_size} is no multiple of the patch of {patch} pixels")


def require_fit(source: Path, network: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Check names and shapes against the network's state dict, which may be on the meta device.

    Raises:
        WeightsError: lists names that are missing, unexpected, or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    misfits = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    misfits += [f"{name} has no place in the network" for name in found.keys() - wanted.keys()]
    misfits += [
        f"{name} is {found[name]}, expected {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if found[name] != wanted[name]
    ]
    if misfits:
        raise WeightsError(f"{source}: {first_of(sorted(misfits), _SHOWN_KEYS)}")


S = TypeVar("S", bound=Sizes)


def read_part(kind: type[S], path: Path) -> S:
    """Read and check a JSON file of a set.

    Raises:
        WeightsError: names the value and the rule that it breaks.
    """
    try:
        return kind.model_validate_json(read_text(path))
    except ValidationError as error:
        mistake = first_mistake(error, "file", with_value=True)
        raise WeightsError(f"{path}: {mistake}") from None
