"""Score files or records by the name of a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrmodel.components import PROTOCOLS
from mrmodel.data.annotations import Unscorable
from mrmodel.errors import DataError
from mrmodel.evaluate.protocols import Protocol, Scores
from mrmodel.evaluate.ragged import Mode
from mrmodel.evaluate.rows import Row, read_rows


def get_protocol(name: str) -> Protocol:
    """The protocol called `name`.

    Raises:
        UnknownNameError: no such protocol.
    """
    protocol: Protocol = PROTOCOLS.get(name)()
    return protocol


def unscorable(rows: Sequence[Row], protocol: str, known: Row | None = None) -> dict[int, str]:
    """Annotations that the metrics cannot be computed with: index -> the rule that it breaks.

    Weights are chosen by these metrics, so one of them would end every training.

    Args:
        rows: annotations, each qid once.
        protocol: name of the protocol.
        known: one that can be scored; some rules are about all rows, and each of them is judged
            beside it. None: the first rated one of `rows`, or the first, that can be scored alone.

    Raises:
        UnknownNameError: no such protocol.
    """
    judge = get_protocol(protocol)
    if known is None:
        rated = sorted(rows, key=lambda row: not row.get("saliency_scores"))
        known = next((row for row in rated if _rule(judge, [row]) is None), None)
    beside = [] if known is None else [known]
    bad: dict[int, str] = {}
    groups = [range(len(rows))]
    while groups:
        group = groups.pop()
        chosen = [rows[place] for place in group]
        first = [row for row in beside if all(row["qid"] != one["qid"] for one in chosen)]
        rule = _rule(judge, first + chosen)
        if rule is not None and len(group) > 1:
            middle = len(group) // 2
            groups += [group[:middle], group[middle:]]
        elif rule is not None:
            bad[group[0]] = rule
    return bad


def unscorable_by(protocol: str) -> Unscorable:
    """`unscorable` for parsed records."""
    return lambda records: unscorable([record.as_row() for record in records], protocol)


def _rule(protocol: Protocol, truth: Sequence[Row]) -> str | None:
    """Which rule annotations break; None: none."""
    empty: Row = {"pred_relevant_windows": [], "pred_saliency_scores": []}
    try:
        if truth:
            protocol.score(truth, [{"qid": row["qid"], **empty} for row in truth], "clean")
    except DataError as error:
        return error.rule
    return None


def evaluate(
    annotations: Sequence[Row],
    predictions: Sequence[Row],
    protocol: str,
    mode: Mode = "official",
    *,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """The metrics of predictions; see `Protocol.score`."""
    return get_protocol(protocol).evaluate(
        annotations, predictions, mode, allow_missing=allow_missing
    )


def score_files(
    annotations: Path,
    predictions: Path,
    protocol: str,
    mode: Mode = "official",
    *,
    allow_missing: bool = False,
) -> Scores:
    """Read two JSONL files and score them; see `Protocol.score`.

    Raises:
        DataError: a file, line or record is invalid; the message says where.
        UnknownNameError: no such protocol.
    """
    return get_protocol(protocol).score(
        read_rows(annotations), read_rows(predictions), mode, allow_missing=allow_missing
    )
