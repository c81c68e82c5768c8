"""Interface of a public data set for `mrmodel data convert`: its files, rules and reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mrmodel.data.annotations import scan_annotations
from mrmodel.errors import DataError

Split = Literal["train", "val", "test"]
LabelGrid = Literal["seconds", "published"]


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A published split.

    Attributes:
        split: its published name.
        names: possible file names, in order of preference.
        sizes: number of records of the known releases; other numbers are reported.
    """

    split: Split
    names: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(slots=True)
class ConvertedSplit:
    """Records of one file in the schema of `mrmodel.types.Annotation`, with errors and warnings.

    Attributes:
        rows: usable records; those of sets with domains also have a ``domain``.
        rejected: why the others are left out, each with its line.
        warnings: unusual but usable records.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[DataError] = field(default_factory=list)
    warnings: list[DataError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading.

    Attributes:
        first_qid: qid of the first record of a format without ids.
        label_grid: for labels of clips whose length is not ours: ``seconds`` resamples them to ours
            by time, ``published`` uses label i for feature row i, as the published systems do.
    """

    first_qid: int = 0
    label_grid: LabelGrid = "seconds"


class PublishedDataset(ABC):
    """A public data set; subclasses are listed in `mrmodel.components.DATASETS`.

    Attributes:
        name: as in `DATASETS`, and the name of its evaluation protocol.
        title: display name.
        clip_len_s, max_clips, max_tokens: of the published recipes; None: no limit.
        files: one published file per split.
        domains: allowed values of `domain`; empty where the set has none.
        saliency: the rule of the clip scores, in words.
        held_out: fraction of the training videos (of each domain) held out for model selection,
            where the only other published split is the one that metrics are reported on.
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
    def read(self, path: Path, options: ReadOptions) -> ConvertedSplit:
        """Read one published file; continues after bad records.

        Raises:
            DataError: the file cannot be read, or has an unknown format.
        """


def read_moments(path: Path, clip_len_s: float) -> ConvertedSplit:
    """Records of a file that already has our schema: JSON lines of QVHighlights."""
    scan = scan_annotations(path, clip_len_s)
    rows = []
    for row in scan.rows:
        given = row.as_row()
        optional = ("relevant_windows", "relevant_clip_ids", "saliency_scores")
        rows.append({key: value for key, value in given.items() if value or key not in optional})
    return ConvertedSplit(rows, scan.errors, scan.warnings)
