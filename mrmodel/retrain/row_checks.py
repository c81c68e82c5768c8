"""Reads the records of a delivered folder and checks each of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mrmodel.config.schema import Config
from mrmodel.data.annotations import scan_annotations, truth_problem
from mrmodel.errors import DataError, FileFormatError
from mrmodel.evaluate.run import unscorable
from mrmodel.files import digest_of
from mrmodel.lines import byte_lines, json_lines
from mrmodel.pretraining.intervid.captions import Chunk, parse_chunk
from mrmodel.retrain.baseline import Moment, Reference, caption_digest, moment_of
from mrmodel.retrain.deliveries import ANNOTATIONS, CAPTIONS, VAL
from mrmodel.retrain.report import RejectedRecord
from mrmodel.retrain.videos import DeliveredVideos
from mrmodel.types import Annotation, QueryId

# Of a table; QVHighlights has 10,000.
_MOST_LINES = 1_000_000


@dataclass(frozen=True, slots=True)
class DeliveredRecord:
    """A well-formed record.

    Attributes:
        table: name of its file.
        line: counted from 1.
        raw: the original line.
        vid: id of its video.
        annotation: the parsed record; None for a caption.
    """

    table: str
    line: int
    raw: bytes
    vid: str
    annotation: Annotation | None

    @property
    def id(self) -> object:
        """Human-readable identifier."""
        return self.vid if self.annotation is None else self.annotation.qid


@dataclass(slots=True)
class CheckedRecords:
    """All records of a delivery.

    Attributes:
        good: new, valid records, in order.
        known: number of records already in the data.
        bad: the others, each with the rule that it violates.
    """

    good: list[DeliveredRecord] = field(default_factory=list)
    known: int = 0
    bad: list[RejectedRecord] = field(default_factory=list)

    @property
    def bad_share(self) -> float:
        """Fraction of bad records."""
        total = len(self.good) + self.known + len(self.bad)
        return len(self.bad) / total if total else 0.0

    def counts(self) -> dict[str, int]:
        """Table -> number of good records."""
        return dict(Counter(row.table for row in self.good))


def check_records(
    folder: Path, reference: Reference, videos: DeliveredVideos, config: Config
) -> CheckedRecords:
    """Read the tables of a delivered folder; compare each record with the data and each other.

    Args:
        folder: the delivery.
        reference: the existing data.
        videos: of the delivery.
        config: clip length, and how captions are read.

    Raises:
        FileFormatError: a table has another format as a whole, or too many lines.
    """
    judged = CheckedRecords()
    seen = _Seen(reference)
    for row in _read(folder, config, judged.bad):
        rule = videos.leak(row.vid)
        if rule is None:
            # The caption table does not contain durations.
            duration_s = row.annotation.duration if row.annotation else 0.0
            rule = videos.problem(row.vid, duration_s)
        again, repeated = seen.look(row)
        if again and rule is None:
            judged.known += 1
        elif rule or repeated:
            judged.bad.append(RejectedRecord(row.table, row.line, row.id, rule or repeated))
        else:
            judged.good.append(row)
    _reject_unscored(judged, reference.scored, config)
    judged.bad.sort(key=lambda bad: (bad.file, bad.line or 0))
    return judged


def _reject_unscored(judged: CheckedRecords, known: Annotation | None, config: Config) -> None:
    """Move records of ``val.jsonl`` to the bad ones that the metrics cannot be computed with."""
    scored = [(row, row.annotation) for row in judged.good if row.table == VAL and row.annotation]
    bad = unscorable(
        [truth.as_row() for _, truth in scored],
        config.evaluate.protocol,
        None if known is None else known.as_row(),
    )
    lines = {scored[place][0].line for place in bad}
    judged.good = [row for row in judged.good if row.table != VAL or row.line not in lines]
    for place, rule in bad.items():
        row, _ = scored[place]
        judged.bad.append(RejectedRecord(row.table, row.line, row.id, rule))


class _Seen:
    """Records of the data, then those of the delivery, added one by one."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._moments: dict[Moment, tuple[str, QueryId]] = {}
        self._captions: set[str] = set()

    def look(self, row: DeliveredRecord) -> tuple[bool, str]:
        """Whether the data contain this record, and which rule about duplicates it violates."""
        if row.annotation is None:
            return self._caption(row)
        return self._annotation(row.table, row.annotation)

    def _caption(self, row: DeliveredRecord) -> tuple[bool, str]:
        digest = caption_digest(row.raw) or ""
        if digest in self._reference.captions:
            return True, ""
        if digest in self._captions:
            return False, "the same caption stands in the table already"
        self._captions.add(digest)
        return False, ""

    def _annotation(self, table: str, row: Annotation) -> tuple[bool, str]:
        there = self._reference.qids.get(table, {}).get(str(row.qid))
        if there is not None:
            same = there == digest_of(row.as_row())
            return same, "" if same else f"the data hold another row of this qid in {table}"
        moment = moment_of(row)
        found = self._reference.moments.get(moment) or self._moments.get(moment)
        if found is not None:
            where = f"qid {found[1]!r} of {found[0]}"
            return False, f"says the same of the same video as {where}"
        self._moments[moment] = (table, row.qid)
        return False, ""


def _read(folder: Path, config: Config, bad: list[RejectedRecord]) -> Iterator[DeliveredRecord]:
    for table in (*ANNOTATIONS, CAPTIONS):
        if (folder / table).exists():
            _require_few_lines(folder / table)
    for table in ANNOTATIONS:
        if (folder / table).exists():
            yield from _read_annotations(folder / table, config.features.clip_len_s, bad)
    if (folder / CAPTIONS).exists():
        yield from _read_captions(folder / CAPTIONS, config, bad)


def _require_few_lines(path: Path) -> None:
    """Raise FileFormatError on a table whose records, good or bad, would fill the memory."""
    count = sum(1 for _ in islice(byte_lines(path), _MOST_LINES + 1))
    if count > _MOST_LINES:
        rule = f"has more than {_MOST_LINES} lines; send it in parts"
        raise FileFormatError(rule, file=path)


def _read_annotations(
    path: Path, clip_len_s: float, bad: list[RejectedRecord]
) -> Iterator[DeliveredRecord]:
    scan = scan_annotations(path, clip_len_s).require_json_lines()
    bad += [RejectedRecord(path.name, error.line, error.qid, error.rule) for error in scan.errors]
    raws = {line.number: line.raw for line in json_lines(path)}
    for line, row in zip(scan.lines, scan.rows, strict=True):
        rule = truth_problem(row)
        if rule is None:
            yield DeliveredRecord(path.name, line, raws[line], row.vid, row)
        else:
            bad.append(RejectedRecord(path.name, line, row.qid, rule))


def _read_captions(
    path: Path, config: Config, bad: list[RejectedRecord]
) -> Iterator[DeliveredRecord]:
    lines: list[bytes] = []
    for number, raw, record in json_lines(path, nan=True):
        # Empty lines keep the line numbers.
        lines += [b""] * (number - 1 - len(lines))
        if isinstance(record, DataError):
            bad.append(RejectedRecord(path.name, number, None, record.rule))
        else:
            lines.append(raw)
    parsed = parse_chunk(Chunk(1, lines), config.intervid)
    bad += [
        RejectedRecord(path.name, row.line, None, f"{row.reason}: {row.detail}")
        for row in parsed.bad_rows
    ]
    for number in parsed.columns["line"].tolist():
        raw = lines[number - 1]
        yield DeliveredRecord(path.name, number, raw, json.loads(raw)["YoutubeID"], None)
