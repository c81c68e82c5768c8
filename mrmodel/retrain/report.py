"""Human-readable report on a delivery: metrics and limits, bad rows, reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mrmodel.errors import LONGEST_ID
from mrmodel.text import shortened

DeliveryState = Literal["taken", "quarantined", "waiting", "incomplete"]
_MOST_ROWS = 50
# Characters; what a sender wrote may be of any length, and reports and outcomes are kept.
_LONGEST_RULE = 500
_VERDICTS = {True: "within", False: "**beyond**", None: "not judged"}


@dataclass(frozen=True, slots=True)
class RejectedRecord:
    """A record that is excluded.

    Attributes:
        file: name of the table.
        line: counted from 1; None: the whole file.
        qid: of the record, or the video of a caption; cut if it is long.
        rule: that it violates; cut if it is long.
    """

    file: str
    line: int | None
    qid: object
    rule: str

    def __post_init__(self) -> None:
        if len(str(self.qid)) > LONGEST_ID:
            object.__setattr__(self, "qid", shortened(str(self.qid), LONGEST_ID))
        object.__setattr__(self, "rule", shortened(self.rule, _LONGEST_RULE))

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        who = "" if self.qid is None else f"qid {self.qid!r}: "
        return f"{place}: {who}{self.rule}"


@dataclass(frozen=True, slots=True)
class DriftMetric:
    """A metric and its limit.

    Attributes:
        name: what is compared.
        value: measured.
        limit: allowed maximum, including chance; None: no limit.
        count: number of values of the delivery that it is computed from.
    """

    name: str
    value: float
    limit: float | None
    count: int

    @property
    def passed(self) -> bool | None:
        """Whether the value is within the limit; None if there is none."""
        return None if self.limit is None else self.value <= self.limit

    def __str__(self) -> str:
        asked = "no limit" if self.limit is None else f"limit {self.limit:.3g}"
        return f"{self.name}: {self.value:.3g}, {asked}, of {self.count} values"


@dataclass(slots=True)
class DeliveryReport:
    """The result of checking one delivery.

    Attributes:
        name, digest: of the delivery.
        state: ``waiting``: skipped this time, for a transient reason; ``incomplete``: the sender
            has not finished.
        reasons: why it was not accepted.
        rows: table -> number of valid records.
        videos: new videos that come with them.
        known: number of records already in the data.
        bad: records that are excluded.
        figures: all compared metrics.
        notes: further information for the sender.
    """

    name: str
    digest: str
    state: DeliveryState
    reasons: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    videos: list[str] = field(default_factory=list)
    known: int = 0
    bad: list[RejectedRecord] = field(default_factory=list)
    figures: list[DriftMetric] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def identity(self) -> tuple[str, str]:
        """Of the delivery: name and digest."""
        return self.name, self.digest

    def markdown(self) -> str:
        """The report as Markdown; text from the sender is escaped."""
        lines = [f"### Delivery {_code(self.name)}: {self.state}", "", f"Digest {self.digest[:16]}"]
        lines += ["", *(f"- {_text(reason)}" for reason in self.reasons)]
        if self.state in ("taken", "quarantined"):
            lines += ["", self._counts()]
        if self.figures:
            lines += ["", *_figure_table(self.figures)]
        if self.bad:
            lines += ["", "| file | line | id | rule |", "|---|---|---|---|"]
            lines += [_bad_row(row) for row in self.bad[:_MOST_ROWS]]
        if len(self.bad) > _MOST_ROWS:
            lines += ["", f"... and {len(self.bad) - _MOST_ROWS} more."]
        lines += ["", *(f"- {_text(note)}" for note in self.notes)]
        return "\n".join(lines).rstrip() + "\n"

    def _counts(self) -> str:
        rows = ", ".join(f"{count} of {name}" for name, count in self.rows.items()) or "none"
        left_out = f"{len(self.bad)} bad, {self.known} in the data already"
        return f"Good rows: {rows}. New videos: {len(self.videos)}. Left out: {left_out}."


def some(names: Sequence[str]) -> str:
    """The first of many names, for a sentence."""
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _figure_table(figures: Iterable[DriftMetric]) -> list[str]:
    head = ["| figure | found | limit | values | |", "|---|---|---|---|---|"]
    return head + [
        f"| {_text(one.name)} | {one.value:.3g} | "
        f"{'-' if one.limit is None else f'{one.limit:.3g}'} | {one.count} | "
        f"{_VERDICTS[one.passed]} |"
        for one in figures
    ]


def _bad_row(row: RejectedRecord) -> str:
    line = "" if row.line is None else row.line
    qid = "" if row.qid is None else _code(str(row.qid))
    return f"| {row.file} | {line} | {qid} | {_text(row.rule)} |"


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', chr(39)).replace('|', '/').split())}`"


def _text(text: str) -> str:
    for letter in "\\`*_[]<>|#":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
