"""The package's own programs collect garbage rarely; programs that import it are not changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Runs at the end of the process, after what the program registers.
WATCH = """
import atexit, gc
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0))
"""


@pytest.mark.parametrize(
    ("command", "rarely"),
    [
        (["-m", "mrmodel.version"], True),
        (["-m", "mrmodel.cli.main", "--version"], True),
        ([str(Path(sys.executable).parent / "mrmodel"), "--version"], True),
        (["-c", "import mrmodel, flows"], False),
        (["-m", "timeit", "-n", "1", "-r", "1", "import mrmodel"], False),
    ],
)
def test_own_programs_collect_garbage_rarely(
    command: list[str], rarely: bool, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    threshold, frozen = done.stdout.splitlines()[-1].split()
    assert (int(threshold) >= 50_000, frozen == "True") == (rarely, rarely)
