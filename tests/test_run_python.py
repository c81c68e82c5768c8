"""A module of a clone as a process: heard, with the clone's code, gone with its listener."""

from pathlib import Path

import psutil
import pytest

from mrmodel.processes import Ended, run_python

TALK = """
import os, sys
print("said", os.environ["EXTRA"], os.environ["TALK_PASSWORD"])
print("from", os.getcwd(), file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
HANG = """
import os, time
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_it_is_heard_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALK_PASSWORD", "planted-secret")
    (tmp_path / "talk.py").write_text(TALK)
    heard: list[str] = []
    ended = run_python(
        "talk", "7", folder=tmp_path, on_line=heard.append, variables={"EXTRA": "added"}
    )
    assert heard == ["said added ***", f"from {tmp_path}"]
    assert ended == Ended(7, heard)


def test_a_signal_is_told(tmp_path: Path) -> None:
    (tmp_path / "die.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert run_python("die", folder=tmp_path, on_line=pytest.fail) == Ended(-9, [])


def test_it_ends_with_its_listener(tmp_path: Path) -> None:
    (tmp_path / "hang.py").write_text(HANG)
    heard: list[str] = []

    def interrupt(line: str) -> None:
        heard.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_python("hang", folder=tmp_path, on_line=interrupt)
    assert not psutil.pid_exists(int(heard[0]))
