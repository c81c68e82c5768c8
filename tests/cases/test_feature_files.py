"""Files of an archive as people save them: one that gives no rows does not stop the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrmodel.features.importers.importer import FeatureImportRequest, StreamReport, import_archive
from mrmodel.features.store import FeatureStore
from mrmodel.types import Annotation
from tests.features.archives import npz, values

STREAM = "clip_b32.video512"
ROWS = [Annotation(number, f"query {vid}", vid, 20.0) for number, vid in enumerate("abc")]
# Values that every type here holds exactly.
PLAIN = torch.from_numpy(np.round(values("x", 512, 10, np.float32) * 2).clip(-4, 4))


def imported(folder: Path, write: Callable[[Path], Any]) -> StreamReport:
    """Import three videos; `write` makes the file of the first, at the path without suffix."""
    features = folder / "src/clip_features"
    for vid in "bc":
        npz(features / f"{vid}.npz", features=values(vid, 512))
    write(features / "a")
    request = FeatureImportRequest(
        "moment_detr", folder / "src", folder / "out", (STREAM,), max_failed_share=0.4
    )
    (report,) = import_archive(request, ROWS)
    return report


def torch_file(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path.with_suffix(".pt"))


def text_file(suffix: str, content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.with_suffix(suffix).write_bytes(content)


def quantised(rows: Tensor) -> Tensor:
    return torch.quantize_per_tensor(rows, 0.5, 10, torch.quint8)


TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "gradient": lambda rows: rows.clone().requires_grad_(),
    "of a graph": lambda rows: rows.clone().requires_grad_() * 1.0,
    "parameter": torch.nn.Parameter,
    "dict with gradient": lambda rows: {"features": rows.clone().requires_grad_()},
    "sparse": torch.Tensor.to_sparse,
    "sparse with gradient": lambda rows: rows.to_sparse().requires_grad_(),
    "compressed rows": torch.Tensor.to_sparse_csr,
    "quantised": quantised,
    "quantised by channel": lambda rows: torch.quantize_per_channel(
        rows, torch.full((512,), 0.5), torch.zeros(512), 1, torch.qint8
    ),
    "bfloat16": torch.Tensor.bfloat16,
    "float8": lambda rows: rows.to(torch.float8_e4m3fn),
    "float64": torch.Tensor.double,
    "negative view": lambda rows: torch._neg_view(-rows),
    "transposed": lambda rows: rows.T.contiguous().T,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", TAKEN)
def test_rows_are_taken_however_torch_saved_them(kind: str, tmp_path: Path) -> None:
    report = imported(tmp_path, torch_file(TAKEN[kind](PLAIN)))
    assert (report.n_items, report.problems) == (3, {})
    store = FeatureStore(report.store)
    assert np.array_equal(store.gather(["a"])[0][0], PLAIN.numpy().astype(np.float16))
    assert np.array_equal(store.gather(["b"])[0][0], values("b", 512))


def with_value(value: float) -> Tensor:
    rows = PLAIN.clone()
    rows[3, 5] = value
    return rows


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 133\n"
REFUSED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "nan": (torch_file(with_value(np.nan)), "not_finite", "row 3 holds NaN"),
    "infinity": (torch_file(with_value(-np.inf)), "not_finite", "row 3 holds"),
    "nan in bfloat16": (torch_file(with_value(np.nan).bfloat16()), "not_finite", "row 3"),
    "large": (torch_file(with_value(1e6)), "beyond_float16", "row 3"),
    "complex": (torch_file(PLAIN.to(torch.complex64)), "wrong_shape", "complex64 (10, 512)"),
    "whole": (torch_file(PLAIN.long()), "wrong_shape", "int64 (10, 512)"),
    "no data": (torch_file(PLAIN.to("meta")), "unreadable", "no data"),
    "list": (torch_file([PLAIN]), "no_array", "holds list, no tensor"),
    "numpy": (torch_file(PLAIN.numpy()), "unreadable", "_reconstruct; reading on could run code"),
    "odd keys": (torch_file({3: PLAIN, "b": PLAIN}), "no_array", "holds 3, b, none of features"),
    "objects": (
        lambda path: np.save(path, np.array([{}, 3]), allow_pickle=True),
        "unreadable",
        "Object arrays cannot be loaded",
    ),
    "shape without end": (
        text_file(
            ".npy",
            b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, "
            b"'shape': (99999999999, 512)}  \n",
        ),
        "unreadable",
        "",
    ),
    "pointer": (text_file(".npz", LFS), "unreadable", "it is a Git LFS pointer"),
    "pointer as pt": (text_file(".pt", LFS), "unreadable", "it is a Git LFS pointer"),
    "page": (text_file(".npy", b"<!DOCTYPE html><html>"), "unreadable", "it is a web page"),
    "empty": (text_file(".pt", b""), "unreadable", "it is an empty file"),
    "cut": (text_file(".pt", b"PK\x03\x04 cut"), "unreadable", ""),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_without_rows_is_named_and_the_others_are_imported(
    kind: str, tmp_path: Path
) -> None:
    write, code, detail = REFUSED[kind]
    report = imported(tmp_path, write)
    assert list(report.problems) == ["a"]
    found, why = report.problems["a"]
    assert found == code
    assert detail in why
    assert "\n" not in why
    assert list(FeatureStore(report.store)) == ["b", "c"]


def test_another_id_of_the_sentence_has_good_rows(tmp_path: Path) -> None:
    folder = tmp_path / "src/clip_text_features"
    bad = np.full((2, 512), np.nan, np.float32)
    npz(folder / "qid1.npz", last_hidden_state=bad)
    npz(folder / "qid2.npz", last_hidden_state=values("x", 512))
    rows = [Annotation(qid, "the same", "v", 20.0) for qid in (1, 2)]
    streams = ("clip_b32.text512",)
    request = FeatureImportRequest("moment_detr", tmp_path / "src", tmp_path / "out", streams)
    (report,) = import_archive(request, rows)
    assert (report.n_items, report.problems) == (1, {})
