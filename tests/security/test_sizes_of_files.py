"""Findings 16 and 17: what a file declares is checked before it is read; no file reads another."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mrmodel.convert.encoders.convert import read_tensors
from mrmodel.convert.encoders.slowfast import RECIPE
from mrmodel.convert.safe_unpickle import read_published
from mrmodel.errors import CheckpointError
from mrmodel.features.importers import importer
from mrmodel.features.importers.importer import FeatureImportRequest, StreamReport, import_archive
from mrmodel.features.store import FeatureStore
from mrmodel.types import Annotation
from tests.features.archives import npz, values

STREAM = "clip_b32.video512"
ROWS = [Annotation(number, f"query {vid}", vid, 20.0) for number, vid in enumerate("abc")]
HUGE = (20_000_000, 512)


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    """The header of an array of NumPy without its numbers."""
    file = io.BytesIO()
    described = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def npy_bomb(path: Path, shape: tuple[int, ...] = HUGE, kind: str = "<f4") -> None:
    path.with_suffix(".npy").write_bytes(header(shape, kind) + bytes(64))


def long_header(path: Path) -> None:
    text = b"{'descr': " + b"[" * 3000 + b"]" * 3000 + b"}"
    size = len(text).to_bytes(2, "little")
    path.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00" + size + text)


def npz_bomb(path: Path) -> None:
    with zipfile.ZipFile(path.with_suffix(".npz"), "w") as archive:
        archive.writestr("features.npy", header(HUGE) + bytes(64))


def npz_packed(path: Path) -> None:
    """A megabyte of zeros that is said to unpack to four gigabytes."""
    with zipfile.ZipFile(path.with_suffix(".npz"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        z.writestr("features.npy", header((2_000_000, 512)) + bytes(1 << 20))
    forged = bytearray(path.with_suffix(".npz").read_bytes())
    size = (2_000_000 * 512 * 4 + 128).to_bytes(4, "little")
    old = (len(header((2_000_000, 512))) + (1 << 20)).to_bytes(4, "little")
    path.with_suffix(".npz").write_bytes(bytes(forged).replace(old, size))


def npz_of_text(path: Path) -> None:
    """NumPy gives bytes for a member that is no array."""
    with zipfile.ZipFile(path.with_suffix(".npz"), "w") as archive:
        archive.writestr("features", b"text")


def expanded(path: Path) -> None:
    torch.save({"features": torch.zeros(1, 512).expand(HUGE)}, path.with_suffix(".pt"))


def sparse(path: Path) -> None:
    rows = torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), HUGE)
    torch.save(rows, path.with_suffix(".pt"))


def deflated(path: Path) -> None:
    """A file of torch packed anew: 21 MB in 21 kB."""
    plain, packed = io.BytesIO(), path.with_suffix(".pt")
    torch.save(torch.zeros(10_240, 512), plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def pipe(path: Path) -> None:
    os.mkfifo(path.with_suffix(".npy"))


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "npy": (npy_bomb, "unreadable: declares float32"),
    "npy, large type": (lambda path: npy_bomb(path, (4,), "V1000000000"), "unreadable: declares"),
    "npy, nested type": (lambda path: npy_bomb(path, (512,), "<U9000000"), "unreadable: declares"),
    "npy, long header": (long_header, "unreadable: Cannot parse header.{,200}$"),
    "npz": (npz_bomb, "unreadable: declares float32"),
    "npz, packed": (npz_packed, "unreadable: its sizes contradict"),
    "npz, no array": (npz_of_text, "unreadable: "),
    "pt, repeated": (expanded, "unreadable: declares torch.float32"),
    "pt, sparse": (sparse, "unreadable: declares torch.float32"),
    "pt, deflated": (deflated, "unreadable: .* bytes that unpack to"),
    "pipe": (pipe, "unreadable: is no regular file"),
}


def imported(folder: Path, layout: str = "moment_detr") -> StreamReport:
    request = FeatureImportRequest(
        layout, folder / "src", folder / "out", (STREAM,), clip_len_s=2.0, max_failed_share=0.4
    )
    (report,) = import_archive(request, ROWS)
    return report


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_declares_too_much_costs_its_id(tmp_path: Path, bomb: str) -> None:
    """Finding 16."""
    write, said = BOMBS[bomb]
    for vid in "bc":
        npz(tmp_path / "src/clip_features" / f"{vid}.npz", features=values(vid, 512))
    write(tmp_path / "src/clip_features/a")
    report = imported(tmp_path)
    assert list(report.problems) == ["a"]
    assert report.n_items == 2
    np.testing.assert_array_equal(FeatureStore(report.store).gather(["c"])[0][0], values("c", 512))
    assert re.match(said, ": ".join(report.problems["a"])), report.problems


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_an_item_beyond_the_memory_costs_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Finding 16: wherever the memory ends."""
    for vid in "abc":
        npz(tmp_path / "src/clip_features" / f"{vid}.npz", features=values(vid, 512))
    to_stored = importer.to_stored

    def limited(rows: Any) -> Any:
        if np.array_equal(rows, values("a", 512)):
            raise error
        return to_stored(rows)

    monkeypatch.setattr(importer, "to_stored", limited)
    report = imported(tmp_path)
    assert {name: code for name, (code, _) in report.problems.items()} == {"a": "too_large"}
    assert report.n_items == 2


def external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(b"TOPSECRET-PASSWORD!!" * 1000)
    places = [(str(folder / "secret"), 0, 4 * 512 * 4)]
    file.create_dataset("a", (4, 512), "f4", external=places)


def external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["rows"] = values("x", 512, dtype=np.float32)
    file["a"] = h5py.ExternalLink(str(folder / "other.h5"), "/rows")


def virtual(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["rows"] = values("x", 512, dtype=np.float32)
    layout = h5py.VirtualLayout((4, 512), "f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "rows", shape=(4, 512))
    file.create_virtual_dataset("a", layout)


def soft_link(file: h5py.File, folder: Path) -> None:
    file["a"] = h5py.SoftLink("/b")


OF_HDF5: dict[str, tuple[Callable[[h5py.File, Path], Any], str]] = {
    "external storage": (external_storage, "lies in another file"),
    "external link": (external_link, "is a link"),
    "virtual": (virtual, "lies in another file"),
    "soft link": (soft_link, "is a link"),
    "never written": (lambda file, _: file.create_dataset("a", HUGE, "f4"), "declares float32"),
    "never written, small": (
        lambda file, _: file.create_dataset("a", (4, 512), "f4"),
        "declares float32",
    ),
    "group": (lambda file, _: file.create_group("a"), "is a Group"),
    "text": (lambda file, _: file.create_dataset("a", data=["x"] * 4), "expected numbers"),
}


@pytest.mark.parametrize("kind", OF_HDF5)
def test_hdf5_gives_rows_of_its_own_only(tmp_path: Path, kind: str) -> None:
    """Findings 16 and 17."""
    write, said = OF_HDF5[kind]
    (tmp_path / "src/h5py").mkdir(parents=True)
    with h5py.File(tmp_path / "src/h5py/vid_clip.hdf5", "w") as file:
        for vid in "bc":
            rows = values(vid, 512, dtype=np.float32)
            file.create_dataset(vid, data=rows, compression="gzip")
        write(file, tmp_path)
    report = imported(tmp_path, layout="univtg")
    assert list(report.problems) == ["a"]
    assert said in report.problems["a"][1]
    assert list(FeatureStore(report.store)) == ["b", "c"]


class Reduced:
    """Pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def repeated(path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1).expand(1 << 32)}}, path)


def shared(path: Path) -> None:
    whole = torch.zeros(1 << 20)
    torch.save({"model": {f"a{number}": whole.view(-1) for number in range(50)}}, path)


def packed(path: Path) -> None:
    deflated(path)
    path.with_suffix(".pt").rename(path)


def lightning(path: Path) -> None:
    """Read through stand-ins, because of the class of its options."""
    repeated_weights = OrderedDict({"model.a": torch.zeros(1).expand(1 << 32)})
    options = np.polynomial.Polynomial([1.0])
    content = {"pytorch-lightning_version": "2", "state_dict": repeated_weights, "x": options}
    torch.save(content, path)


WEIGHTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "repeated": (repeated, r"a is \(4294967296,\), and its storage has 1 numbers"),
    "shared": (shared, "its tensors are .* bytes, and it holds 4194304"),
    "packed": (packed, "cannot be read as a checkpoint"),
    "lightning": (lightning, r"a is \(4294967296,\), and its storage has 1 numbers"),
}


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("read", [read_published, read_tensors])
def test_weights_are_no_larger_than_their_file(
    tmp_path: Path, kind: str, read: Callable[[Path], Any]
) -> None:
    """Finding 16."""
    write, said = WEIGHTS[kind]
    write(tmp_path / "a.ckpt")
    if kind == "lightning" and read is read_tensors:
        said = "reading on could run code"
    with pytest.raises(CheckpointError, match=said):
        read(tmp_path / "a.ckpt")


def torchscript(path: Path, tree: bytes, storage: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", tree)
        archive.writestr("a/code/x.py", b"")
        archive.writestr("a/data/0", storage)
    return path


def module(state: bytes, memo: int = 0) -> bytes:
    """A module of TorchScript as a pickle: its class, remembered, with a state."""
    return b"c__torch__\nM\n)\x81q" + bytes([memo]) + b"}" + state + b"b"


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
TREES = {
    "cycle": (module(b"X\x01\0\0\0xh\0s"), "more than 10000 modules, or a cycle"),
    "memo": (b"N\x72\xff\xff\xff\x7f" + b"0" + module(b""), None),
    "expanded": (
        module(
            b"X\x01\0\0\0xctorch._utils\n_rebuild_tensor_v2\n("
            + STORAGE
            + b"K\0J\0\0\0\x40\x85K\0\x85\x89}tRs"
        ),
        r"x is \(1073741824,\), and its storage has 4 numbers",
    ),
}


@pytest.mark.parametrize("kind", TREES)
def test_trees_of_torchscript_have_an_end(tmp_path: Path, kind: str) -> None:
    """Finding 16."""
    tree, said = TREES[kind]
    path = torchscript(tmp_path / "a.pt", b"\x80\x02" + tree + b".", bytes(16))
    if said is None:
        assert read_tensors(path) == {}
        return
    with pytest.raises(CheckpointError, match=said):
        read_tensors(path)


def test_arrays_of_caffe2_are_no_larger_than_their_file(tmp_path: Path) -> None:
    """Finding 16."""
    blobs = {"blobs": {"a": Reduced(np.ndarray, (1 << 32,), "b")}}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(blobs, 2))
    with pytest.raises(CheckpointError, match="its arrays are larger than its"):
        read_tensors(tmp_path / "a.pkl", RECIPE)
