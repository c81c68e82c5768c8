"""What is shown of long work."""

import io
import time

import pytest
from rich.console import Console

from mrmodel.progress import RichReporter, Steps
from tests.reporters import RecordingReporter


def lines_of(monkeypatch, done):
    """Ten steps of which `done` were there before; each new one takes 30 s."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    reporter = RichReporter(Console(file=stream, width=200))
    reporter.start("extract", 10, done)
    for _ in range(10 - done):
        now[0] += 30.0
        reporter.advance(clips_per_s=12.345)
    reporter.finish()
    return stream.getvalue().splitlines()


def test_lines_tell_how_long_the_rest_takes(monkeypatch):
    lines = lines_of(monkeypatch, done=0)
    assert lines[0] == "extract: 1/10 eta 0:04:30 clips_per_s 12.35"
    assert lines[-1] == "extract: 10/10 clips_per_s 12.35"
    assert len(lines) == 10


def test_a_terminal_shows_it_too_however_long_a_step_takes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=True, get_time=lambda: now[0])
    reporter = RichReporter(console)
    reporter.start("extract", 10)
    for _ in range(2):
        now[0] += 40.0
        reporter.advance(failed=1)
    reporter.finish()
    assert "eta 0:05:20 failed 1" in stream.getvalue()


def test_what_an_earlier_run_did_tells_nothing_about_the_speed(monkeypatch):
    assert lines_of(monkeypatch, done=6)[0] == "extract: 7/10 eta 0:01:30 clips_per_s 12.35"


def test_a_step_is_named_before_it_is_done():
    stream = io.StringIO()
    reporter = RichReporter(Console(file=stream, width=200), with_eta=False)
    with Steps(reporter, "register", 3) as steps:
        steps.begin("scoring")
        assert stream.getvalue() == "register: 0/3 now scoring\n"
        steps.begin("smoke test")
        assert stream.getvalue().splitlines()[1:] == ["register: 1/3 now smoke test"]
        steps.begin("storing")
    assert stream.getvalue().splitlines()[2:] == ["register: 2/3 now storing", "register: 3/3"]


def test_steps_that_were_not_needed_count_as_done():
    reporter = RecordingReporter()
    with Steps(reporter, "register", 4) as steps:
        steps.begin("scoring")
        steps.begin("looking")
    assert reporter.events == [
        ("register", 4, {}),
        ("advance", 0, {"now": "scoring"}),
        ("advance", 1, {"now": "looking"}),
        ("advance", 3, {}),
        ("finish", 0, {}),
    ]


def test_a_step_that_fails_is_the_last_one_named():
    stream = io.StringIO()
    terminal = Console(file=stream, width=200, force_terminal=True)
    reporter = RichReporter(terminal, with_eta=False)

    def register():
        with Steps(reporter, "register", 2) as steps:
            steps.begin("smoke test")
            raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        register()
    assert "0/2" in stream.getvalue()
    assert "now smoke test" in stream.getvalue()
    assert "2/2" not in stream.getvalue()
    assert "eta" not in stream.getvalue()
