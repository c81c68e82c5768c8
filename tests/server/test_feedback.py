"""Feedback over REST; the journal and its deliveries: tests/retrain/test_feedback.py."""

import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from mrmodel.server.feedback import JOURNAL, Journal
from tests.server.conftest import error_of

HIT = {"query": "a red car", "verdict": "accept", "start_s": 2, "end_s": 6.5}


def test_a_verdict_is_in_the_journal(client: TestClient, made: Path, ids: dict[str, str]) -> None:
    before = client.get("/v1/feedback").json()
    corrected = {"verdict": "correct", "corrected_start_s": 1.0, "corrected_end_s": 4.0}
    said = [HIT, HIT | corrected | {"start_s": 3.0}, HIT | {"verdict": "reject", "end_s": 7.0}]
    for one in said:
        answer = client.post("/v1/feedback", json=one | {"video": ids["b.mp4"]})
        assert answer.status_code == 201
    after = client.get("/v1/feedback").json()
    grown = [after[name] - before[name] for name in ("entries", "deliverable", "rejected_waiting")]
    assert grown == [3, 2, 1]
    body = answer.json()["entry"]
    entry = Journal(made / "library" / JOURNAL).read().entries[body["id"]]
    assert (body["video"], body["verdict"], body["end_s"]) == (ids["b.mp4"], "reject", 7.0)
    assert (entry.name, entry.duration_s) == ("b.mp4", 8.0)
    assert (entry.path, entry.model) == (str(made / "videos/b.mp4"), str(made / "model"))


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"video": "0123"}, 404, "no_such_video"),
        ({"verdict": "correct"}, 422, "invalid"),
        ({"end_s": 1.0}, 422, "invalid"),
        ({"start_s": 9.0, "end_s": 10.0}, 422, "invalid"),
        ({"start_s": "2"}, 422, "invalid"),
        ({"path": "/etc/passwd"}, 422, "invalid"),
    ],
)
def test_what_is_no_verdict_is_refused(
    client: TestClient, ids: dict[str, str], change: dict[str, Any], status: int, code: str
) -> None:
    body = HIT | {"video": ids["b.mp4"]} | change
    assert error_of(client.post("/v1/feedback", json=body), status) == code


def test_a_delivery_that_cannot_be_made_says_why(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MRMODEL_INCOMING", raising=False)
    job = client.post("/v1/feedback/deliver").json()["job"]
    while job["state"] in ("queued", "running"):
        time.sleep(0.02)
        job = client.get(f"/v1/jobs/{job['id']}").json()
    assert job["state"] == "failed"
    assert "MRMODEL_INCOMING" in job["error"]["message"]
