"""Finding 15: the check of a delivery ends, whatever the delivery holds."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mrmodel.retrain import ingest
from mrmodel.retrain.deliveries import list_deliveries
from mrmodel.retrain.ingest import IngestResult, _Ingestion, _pending
from mrmodel.retrain.outcomes import Ledger
from mrmodel.storage import open_store


def linger(folder: Path, *_: object) -> None:
    """As a library does that never returns to Python; it writes down the limit of its memory."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    (folder.parents[2] / "limit").write_text(str(soft))
    sum(range(1 << 60))


def ingestion_in(tmp_path: Path) -> _Ingestion:
    """One without a repository, with a delivery."""
    (tmp_path / "in/monday").mkdir(parents=True)
    (tmp_path / "in/monday/COMPLETE").touch()
    made = object.__new__(_Ingestion)
    made._ledger = Ledger(open_store(str(tmp_path / "ledger")), "moments")
    made._incoming, made._taken = open_store(str(tmp_path / "in")), []
    (tmp_path / "clone").mkdir()
    made._space = SimpleNamespace(folder=tmp_path / "clone")  # type: ignore[assignment]
    limits = SimpleNamespace(retrain=SimpleNamespace(max_files=10, max_gb=1.0))
    made._reference, made._before, made._config = None, None, limits  # type: ignore[assignment]
    made._result, made._taken_bytes, made._aside = IngestResult(), 0, []
    return made


def test_a_check_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finding 15: once, and the delivery is quarantined with the reason."""
    ingestion = ingestion_in(tmp_path)
    monkeypatch.setattr(ingest, "_check", linger)
    monkeypatch.setattr(ingest, "CHECK_TIMEOUT_S", 1)
    (delivery,) = list_deliveries(ingestion._incoming)
    started = time.monotonic()
    report = ingestion._conclude(ingestion._look(delivery))
    assert time.monotonic() - started < 60
    assert report.state == "quarantined"
    if sys.platform == "linux":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert 0 < int((tmp_path / "limit").read_text()) < 0.5 * memory + (4 << 30)
    (reason,) = report.reasons
    assert reason.startswith("its check took longer than ")
    (entry,) = ingestion._ledger.entries()
    assert (entry.outcome, entry.reasons) == ("quarantined", [reason])
    assert not _pending([delivery], [entry], [])
    assert multiprocessing.active_children() == []
