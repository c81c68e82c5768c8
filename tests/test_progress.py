"""What is shown of long work."""

import io
import time

from rich.console import Console

from mrmodel.progress import RichReporter


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
