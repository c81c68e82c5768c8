"""The stage of an extraction, and the processes of a shard, to kill one at the right moment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from tests.project import Project

T = TypeVar("T")


def shard_steps() -> list[psutil.Process]:
    """Processes below this one that make a shard."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if "mrmodel.stages.shards" in line and "make" in line:
            found.append(process)
    return found


def repro(project: Project, stream: str) -> tuple[str, dict[str, bytes], str]:
    """Run the stage of a stream by DVC; its output, the files that it made, and the lock file."""
    said = project.run("dvc", "repro", "--no-run-cache", "-s", f"extract@{stream}")
    store = project.folder / "features" / "miniature" / stream
    files = {path.name: path.read_bytes() for path in sorted(store.iterdir())}
    lock = (project.folder / "dvc.lock").read_text()
    (project.folder / "dvc.lock").unlink()
    shutil.rmtree(store)
    return said, files, lock


def pieces_in(clone: Project, name: str = "shard-*") -> list[Path]:
    """Notes of the finished pieces of shards, or stages, that are not finished."""
    return list(clone.folder.glob(f".mrmodel/resume/{name}/??/*.json"))


def wait_until(condition: Callable[[], T], what: str, limit_s: float = 180) -> T:
    """The first true value of `condition`; fails with `what` after a time."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found
