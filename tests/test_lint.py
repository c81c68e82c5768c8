"""The linter sees every Python file of the repository, whatever its folder is called."""

import subprocess
import sys

from tests.project import ROOT


def _lines(*command: str) -> set[str]:
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return {str((ROOT / line).resolve()) for line in done.stdout.splitlines()}


def test_ruff_sees_every_tracked_python_file() -> None:
    tracked = _lines("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py")
    seen = _lines(sys.executable, "-m", "ruff", "check", "--show-files", ".")
    assert not tracked - seen
