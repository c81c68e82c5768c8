"""`mrmodel data convert`: converts published annotation files to the pipeline's three splits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrmodel.components import DATASETS
from mrmodel.data.datasets.base import (
    ConvertedSplit,
    LabelGrid,
    PublishedDataset,
    PublishedFile,
    ReadOptions,
    Split,
)
from mrmodel.data.datasets.splits import Divided, Rows, divide
from mrmodel.errors import DataError, nearest_names
from mrmodel.files import atomic_path, sha256_of, write_json, write_jsonl
from mrmodel.types import QueryId, differs_in_type

SPLITS: tuple[Split, ...] = ("train", "val", "test")
RECORD = "dataset.json"


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """What to convert.

    Attributes:
        dataset: entry of `components.DATASETS`.
        source: folder with the published files, under their published names.
        output: folder that receives train.jsonl, val.jsonl, test.jsonl and dataset.json.
        domain: only records of this domain; None: all.
        label_grid: see `ReadOptions`.
        held_out: see `splits.divide`; None: the data set's default.
    """

    dataset: str
    source: Path
    output: Path
    domain: str | None = None
    label_grid: LabelGrid = "seconds"
    held_out: float | None = None


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """Result of a conversion: records per split, rejected records, and warnings."""

    divided: Divided
    rejected: list[DataError]
    notes: list[str]


def convert(request: ConvertRequest) -> ConvertReport:
    """Read the published files of a data set and write its three splits.

    Raises:
        UnknownNameError: no such data set.
        DataError: a file is missing or holds no usable record, the domain is unknown, or `output`
            holds annotations that this command did not write.
    """
    dataset: PublishedDataset = DATASETS.get(request.dataset)()
    _check_domain(dataset, request.domain)
    _refuse_foreign(request.output)
    files = find_files(dataset, request.source)
    tables = _read_all(dataset, files, request.label_grid)
    rejected = [error for table in tables.values() for error in table.rejected]
    notes = _size_notes(dataset, files, tables)
    published = {split: _of_domain(table.rows, request.domain) for split, table in tables.items()}
    rejected += _drop_repeated(published, files)
    for split, rows in published.items():
        if not rows:
            own = [error for error in rejected if error.file == files[split]]
            first = f"; the first is refused because: {own[0]}" if own else ""
            raise DataError(f"holds no usable row{first}", file=files[split])
    share = dataset.held_out if request.held_out is None else request.held_out
    divided = divide(dataset.name, published, share)
    _write(request, dataset, divided, files, rejected)
    return ConvertReport(divided, rejected, notes)


def find_files(dataset: PublishedDataset, source: Path) -> dict[Split, Path]:
    """The published files in `source`: ``train`` and at least one other split.

    Raises:
        DataError: a required one is missing; lists its possible names.
    """
    found = {}
    for file in dataset.files:
        present = [source / name for name in file.names if (source / name).is_file()]
        if present:
            found[file.split] = present[0]
    missing = [file for file in dataset.files if file.split not in found]
    others = [file for file in dataset.files if file.split != "train"]
    if "train" not in found or not any(file.split in found for file in others):
        wanted = "; ".join(_names(file) for file in missing)
        raise DataError(f"lacks annotation files of {dataset.title}: {wanted}", file=source)
    return found


def format_report(report: ConvertReport) -> str:
    """The report as text."""
    lines = [f"left out: {error}" for error in report.rejected]
    lines += [f"note: {note}" for note in report.notes]
    for split, rows in report.divided.rows.items():
        videos = len({row["vid"] for row in rows})
        origin = report.divided.origin[split]
        lines.append(f"{split}: {len(rows)} rows of {videos} videos ({origin})")
    return "\n".join(lines)


def _names(file: PublishedFile) -> str:
    return f"{file.split} ({' or '.join(file.names)})"


def _check_domain(dataset: PublishedDataset, domain: str | None) -> None:
    if domain is None or domain in dataset.domains:
        return
    if not dataset.domains:
        raise DataError(f"{dataset.title} has no domains, and {domain!r} was asked for")
    near = nearest_names(domain, dataset.domains)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    known = ", ".join(dataset.domains)
    raise DataError(f"{dataset.title} has no domain {domain!r}{hint} (it has {known})")


def _refuse_foreign(output: Path) -> None:
    """Raise rather than replace annotations that this command did not write."""
    there = [f"{split}.jsonl" for split in SPLITS if (output / f"{split}.jsonl").exists()]
    if there and not (output / RECORD).exists():
        rule = f"holds {', '.join(there)}, which this command did not write; move them away"
        raise DataError(rule, file=output)


def _read_all(
    dataset: PublishedDataset, files: Mapping[Split, Path], grid: LabelGrid
) -> dict[Split, ConvertedSplit]:
    tables: dict[Split, ConvertedSplit] = {}
    for split in files:
        first_qid = sum(len(table.rows) for table in tables.values())
        tables[split] = dataset.read(files[split], ReadOptions(first_qid, grid))
    return tables


def _of_domain(rows: Rows, domain: str | None) -> Rows:
    return rows if domain is None else [row for row in rows if row["domain"] == domain]


def _drop_repeated(published: dict[Split, Rows], files: Mapping[Split, Path]) -> list[DataError]:
    """Remove records whose qid is in an earlier split; the reader checks within a split."""
    seen: dict[str, tuple[Split, QueryId]] = {}
    errors = []
    for split, rows in published.items():
        kept = []
        for row in rows:
            used, same = seen.setdefault(str(row["qid"]), (split, row["qid"]))
            if used != split:
                rule = f"the qid is used already in {files[used].name}"
                rule += differs_in_type(row["qid"], same)
                errors.append(DataError(rule, file=files[split], qid=row["qid"]))
            else:
                kept.append(row)
        published[split] = kept
    return errors


def _size_notes(
    dataset: PublishedDataset, files: Mapping[Split, Path], tables: Mapping[Split, ConvertedSplit]
) -> list[str]:
    notes = []
    for file in dataset.files:
        if file.split not in files:
            notes.append(f"no {_names(file)} in the folder")
            continue
        table = tables[file.split]
        count = len(table.rows) + len(table.rejected)
        if count not in file.sizes:
            known = " or ".join(map(str, file.sizes))
            notes.append(
                f"{files[file.split].name} has {count} rows; the published one has {known}"
            )
    return notes


def _write(
    request: ConvertRequest,
    dataset: PublishedDataset,
    divided: Divided,
    files: Mapping[Split, Path],
    rejected: list[DataError],
) -> None:
    """Write all files, then rename them, so that a full disk leaves those of before.

    dataset.json is renamed first: an interrupted conversion may overwrite its own files.
    """
    record: dict[str, Any] = {
        "dataset": dataset.name,
        "domain": request.domain,
        "clip_len_s": dataset.clip_len_s,
        "label_grid": request.label_grid,
        "saliency": dataset.saliency,
        "splits": {
            split: {"rows": len(rows), "origin": divided.origin[split]}
            for split, rows in divided.rows.items()
        },
        "files": {file.name: sha256_of(file) for file in files.values()},
        "rejected": [
            {
                "file": Path(str(error.file)).name,
                "line": error.line,
                "id": error.qid,
                "rule": error.rule,
            }
            for error in rejected
        ],
    }
    with ExitStack() as last_first:
        for split, rows in divided.rows.items():
            path = request.output / f"{split}.jsonl"
            write_jsonl(last_first.enter_context(atomic_path(path)), rows)
        write_json(last_first.enter_context(atomic_path(request.output / RECORD)), record)
