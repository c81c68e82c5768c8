"""Outcomes are written once, and reports cannot be broken by what senders write."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrmodel.errors import DataError
from mrmodel.retrain.outcomes import Ledger, LedgerEntry
from mrmodel.retrain.report import DeliveryReport, DriftMetric, RejectedRecord
from mrmodel.storage import open_store


def entry_of(digest: str, outcome: str, at: str) -> LedgerEntry:
    return LedgerEntry(delivery="monday", digest=digest, outcome=outcome, reasons=["so"], at=at)


def test_an_outcome_is_written_once(tmp_path: Path) -> None:
    ledger = Ledger(open_store(str(tmp_path)), "moments")
    second = entry_of("b", "refused", "2026-02-01")
    first = entry_of("a", "quarantined", "2026-01-01")
    assert ledger.note(second) == second
    assert ledger.note(first) == first
    assert ledger.note(entry_of("a", "promoted", "2026-03-01")) == first, "the first one stays"
    assert ledger.entries() == [first, second]
    assert Ledger(open_store(str(tmp_path)), "others").entries() == []
    assert (tmp_path / "moments/deliveries/monday/a.json").exists()


def test_an_object_that_is_no_outcome_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("moments/deliveries/monday/a.json", b'{"outcome": "lost"}')
    with pytest.raises(DataError, match=r"monday/a\.json: holds no outcome of a delivery"):
        Ledger(store, "moments").entries()


def test_a_report_as_a_page() -> None:
    report = DeliveryReport(
        "monday",
        "0123456789abcdef0123",
        "quarantined",
        reasons=["words a query: 0.9, limit 0.4"],
        rows={"train.jsonl": 3},
        known=1,
        bad=[RejectedRecord("train.jsonl", 7, "a|b`c", 'query = "<script>\n|": is bad')],
        figures=[
            DriftMetric("words a query", 0.9, 0.4, 12),
            DriftMetric("windows a query", 0.1, None, 12),
        ],
        notes=["[link](http://example.invalid)"],
    )
    lines = report.markdown().splitlines()
    assert lines[0] == "### Delivery `monday`: quarantined"
    assert "| words a query | 0.9 | 0.4 | 12 | **beyond** |" in lines
    assert "| windows a query | 0.1 | - | 12 | not judged |" in lines
    assert '| train.jsonl | 7 | `a/b\'c` | query = "\\<script\\> \\|": is bad |' in lines
    assert "- \\[link\\](http://example.invalid)" in lines
    assert "Good rows: 3 of train.jsonl. New videos: 0. Left out: 1 bad, 1 in the data" in lines[6]


def test_a_long_list_of_bad_rows_is_cut() -> None:
    bad = [RejectedRecord("val.jsonl", line, line, "is bad") for line in range(1, 200)]
    page = DeliveryReport("monday", "0", "quarantined", bad=bad).markdown()
    assert page.count("is bad") == 50
    assert "... and 149 more." in page
