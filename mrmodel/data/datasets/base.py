"""What a public data set is to `mrmodel data convert`: its files, its rules and its reader."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mrmodel.data.annotations import scan_annotations
from mrmodel.errors import DataError

Split = Literal["train", "val", "test"]
LabelGrid = Literal["seconds", "published"]


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A split as it was published.

    Attributes:
        split: what its authors call it.
        names: file names that it goes by, the one to prefer first.
        sizes: rows of the known releases; another number is reported.
    """

    split: Split
    names: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(slots=True)
class Table:
    """Rows of one file in the schema of `mrmodel.types.Annotation`, and what is not among them.

    Attributes:
        rows: usable rows; those of sets with domains have a ``domain`` too.
        rejected: why the others are left out, each with its line.
        warnings: what is odd but usable.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[DataError] = field(default_factory=list)
    warnings: list[DataError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Choices in reading.

    Attributes:
        first_qid: number of the first row of a format without ids.
        label_grid: where labels are given for clips of other lengths than ours: ``seconds`` brings
            them to ours by time, ``published`` has label i for row i of the features, as the
            published systems have it.
    """

    first_qid: int = 0
    label_grid: LabelGrid = "seconds"


class PublishedDataset(ABC):
    """A public data set; subclasses are listed in `mrmodel.components.DATASETS`.

    Attributes:
        name: as in `DATASETS`, and the name of its evaluation protocol.
        title: for people.
        clip_len_s, max_clips, max_tokens: of the published recipes; None: no limit.
        files: one published file a split.
        domains: what `domain` of a row may be; empty where the set has none.
        saliency: the rule of the clip scores, for people.
        held_out: share of the training videos (of each domain) that choose weights, where the
            published split that is not trained on is the one that figures are reported on.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    clip_len_s: ClassVar[float]
    max_clips: ClassVar[int | None]
    max_tokens: ClassVar[int]
    files: ClassVar[tuple[PublishedFile, ...]]
    domains: ClassVar[tuple[str, ...]] = ()
    saliency: ClassVar[str]
    held_out: ClassVar[float] = 0.1

    @abstractmethod
    def read(self, path: Path, options: ReadOptions) -> Table:
        """Read one published file; goes on behind bad rows.

        Raises:
            DataError: the file cannot be read at all, or is in none of the known formats.
        """


def read_moments(path: Path, clip_len_s: float) -> Table:
    """Rows of a file that is in our schema already: JSON lines as QVHighlights has them."""
    scan = scan_annotations(path, clip_len_s)
    rows = []
    for row in scan.rows:
        given = row.as_row()
        optional = ("relevant_windows", "relevant_clip_ids", "saliency_scores")
        rows.append({key: value for key, value in given.items() if value or key not in optional})
    return Table(rows, scan.errors, scan.warnings)


def json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | DataError]]:
    """Line number and object of each line; a line that is none gives the error instead.

    Raises:
        DataError: the file cannot be read.
    """
    for line, text in text_lines(path):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield line, DataError(f"not valid JSON: {error}", file=path, line=line)
            continue
        if isinstance(record, dict):
            yield line, record
        else:
            yield line, DataError("expected a JSON object", file=path, line=line)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank.

    Raises:
        DataError: the file cannot be read, or is no UTF-8 text.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, text
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason}", file=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from None
