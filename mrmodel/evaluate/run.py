"""Score files or records by the name of a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrmodel.components import PROTOCOLS
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
